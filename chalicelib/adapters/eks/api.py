"""A small client of the Kubernetes API of an EKS cluster; the package `kubernetes` has 126 MB."""

import base64
import json
import ssl
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import boto3
import urllib3
from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest

from chalicelib.adapters.aws import answered
from chalicelib.errors import Unavailable

TOKEN_SECONDS = 540  # a token is valid for 15 minutes
TRIES = 3
_TIMEOUT = urllib3.Timeout(connect=2, read=10)
# Every call may be repeated: objects have fixed names, so a repeated call is answered with 409 or 404.
_RETRIES = urllib3.Retry(
    TRIES - 1,
    redirect=False,
    status_forcelist=(429, 500, 502, 503, 504),
    allowed_methods=None,
    backoff_factor=0.2,
    respect_retry_after_header=True,
    retry_after_max=2,
    raise_on_status=False,
)


def bearer_token(session: Any, cluster: str) -> str:
    """A token for EKS: a presigned request to STS that names the cluster. Raises Unavailable without credentials."""
    credentials, region = session.get_credentials(), session.region_name
    if credentials is None:
        raise Unavailable("There are no AWS credentials to reach the cluster with.")
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    url = f"https://sts.{region}.{domain}/?Action=GetCallerIdentity&Version=2011-06-15"
    request = AWSRequest("GET", url, headers={"x-k8s-aws-id": cluster})
    SigV4QueryAuth(credentials.get_frozen_credentials(), "sts", region, expires=60).add_auth(request)
    return "k8s-aws-v1." + base64.urlsafe_b64encode(request.url.encode()).decode().rstrip("=")


class KubernetesApi:
    """One cluster. Endpoint and certificate authority (PEM in base64) are looked up in EKS unless given."""

    def __init__(
        self,
        cluster: str,
        endpoint: str = "",
        certificate: str = "",
        *,
        token: Callable[[], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster, self._endpoint, self._certificate = cluster, endpoint, certificate
        self._clock = clock
        self._make_token = token or (lambda: bearer_token(boto3.Session(), cluster))
        self._token, self._token_until = "", 0.0

    def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, query: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer, whatever the status. Raises Unavailable if there is no answer."""
        answer = self._request(method, path, body, query)
        if answer.status == 401:  # the token may have expired
            self._token = ""
            answer = self._request(method, path, body, query)
        return answer.status, _parsed(answer.data)

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None, query: Mapping[str, str] | None
    ) -> urllib3.BaseHTTPResponse:
        http = self._http  # this may look up the endpoint
        try:
            return http.request(method, self._endpoint + path, fields=query, headers=self._headers(method), json=body)
        except urllib3.exceptions.HTTPError as exc:
            raise Unavailable("The cluster did not answer.") from exc

    def _headers(self, method: str) -> dict[str, str]:
        now = self._clock()
        if not self._token or now >= self._token_until:
            self._token, self._token_until = self._make_token(), now + TOKEN_SECONDS
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        login = {"Authorization": f"Bearer {self._token}"} if self._token else {}  # a proxy may log in for us
        return {**login, "Content-Type": kind, "Accept": "application/json"}

    @cached_property
    def _http(self) -> urllib3.PoolManager:
        if not self._endpoint:
            with answered(f"EKS, asked where the cluster {self._cluster} is,"):
                found = boto3.client("eks").describe_cluster(name=self._cluster)["cluster"]
            self._endpoint, self._certificate = found["endpoint"], found["certificateAuthority"]["data"]
        return urllib3.PoolManager(ssl_context=_trusting(self._certificate), timeout=_TIMEOUT, retries=_RETRIES)


def _trusting(certificate: str) -> ssl.SSLContext:
    try:
        authority = base64.b64decode(certificate).decode() if certificate else None
        context = ssl.create_default_context(cadata=authority)
    except (ValueError, ssl.SSLError) as exc:
        raise Unavailable("The certificate of the cluster's authority cannot be read.") from exc
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # the default since Python 3.13; EKS's certificates do not pass it
    return context


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(data or b"{}")
    except ValueError:
        return {"message": data[:200].decode(errors="replace")}
    return parsed if isinstance(parsed, dict) else {"message": str(parsed)[:200]}
