"""What builds on EKS need of AWS: where the cluster is."""

from __future__ import annotations

import base64
from urllib.parse import urlsplit

import boto3
import pytest

from chalicelib.adapters.eks.api import KubernetesApi, bearer_token
from chalicelib.errors import Unavailable
from infra.local.cluster.api import FakeKubernetes


def test_endpoint_and_certificate_are_asked_of_eks(on_aws: None) -> None:
    network = {"subnetIds": ["subnet-1", "subnet-2"]}
    role = "arn:aws:iam::123456789012:role/cluster"
    boto3.client("eks").create_cluster(name="lab", roleArn=role, resourcesVpcConfig=network)
    api = KubernetesApi("lab")
    with pytest.raises(Unavailable, match="certificate"):  # moto's is no real one
        api.call("GET", "/version")


def test_a_cluster_that_is_not_there_is_unavailable(on_aws: None) -> None:
    with pytest.raises(Unavailable, match="asked where the cluster nowhere is, did not answer"):
        KubernetesApi("nowhere").call("GET", "/version")


def test_a_token_of_another_kind_is_refused() -> None:
    fake = FakeKubernetes("lab", "slipway-builds")
    path = f"/api/v1/namespaces/{fake.namespace}/pods"
    for token in ("", "k8s-aws-v1.", "k8s-aws-v1.!!!", "Bearer x"):
        assert fake.answer("GET", path, token, b"")[0] == 401


@pytest.mark.parametrize("region", ["us-east-1", "eu-south-2", "us-gov-west-1", "cn-north-1", "cn-northwest-1"])
def test_a_token_is_a_request_to_the_sts_of_its_region(region: str) -> None:
    """In China it has another domain; the SDK knows which."""
    session = boto3.Session("AKIDEXAMPLE", "secret", region_name=region)
    token = bearer_token(session, "lab").removeprefix("k8s-aws-v1.")
    url = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
    assert f"https://{urlsplit(url).netloc}" == session.client("sts").meta.endpoint_url
