"""What builds on EKS need of AWS: where the cluster is, links to the source."""

from __future__ import annotations

import boto3
import pytest
import urllib3

from chalicelib.adapters.eks.api import KubernetesApi
from chalicelib.adapters.s3 import S3Sources
from chalicelib.errors import Unavailable
from infra.local.cluster.api import FakeKubernetes
from tests.factories import make_claimed


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


def test_links_lead_to_the_staged_files_without_a_login(on_aws: None) -> None:
    boto3.client("s3").create_bucket(Bucket="links")
    sources, build = S3Sources("links"), make_claimed()
    sources.stage(build, "FROM linked\n")

    links = sources.links(build.uuid, ["Dockerfile"])

    assert list(links) == ["Dockerfile"]
    assert urllib3.request("GET", links["Dockerfile"]).data == b"FROM linked\n"


def test_a_token_of_another_kind_is_refused() -> None:
    fake = FakeKubernetes("lab", "slipway-builds")
    path = f"/api/v1/namespaces/{fake.namespace}/pods"
    for token in ("", "k8s-aws-v1.", "k8s-aws-v1.!!!", "Bearer x"):
        assert fake.answer("GET", path, token, b"")[0] == 401
