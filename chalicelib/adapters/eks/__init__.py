"""Builds as Kubernetes Jobs on an EKS cluster."""

from chalicelib.adapters.eks.api import KubernetesApi as KubernetesApi
from chalicelib.adapters.eks.executor import EksExecutor as EksExecutor
