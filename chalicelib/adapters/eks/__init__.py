"""Builds as Kubernetes Jobs on an EKS cluster."""
