"""What an attacker gets who has taken over a function, the builds' role or the login of a build.

Each question is asked of each role of the deployed template. Those named beside it may do it, because it is
their work; nobody else may.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.adapters.registry import session_policy
from infra.local import aws
from infra.local.machine.registry_proxy import Grant
from infra.local.machine.signed_logins import SignedLogins
from tests.aws import stack
from tests.aws.conftest import Packaged
from tests.aws.iam import allows
from tests.aws.stack import BUILD_KEY, NAME
from tests.factories import NOW

pytestmark = pytest.mark.slow

HERE = "us-east-1:123456789012"
HOST = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
MALLORYS = f"{HOST}/slipway/mallory/app-01234567:7"
BASES = (f"arn:aws:ecr:{HERE}:repository/base/python", f"arn:aws:ecr:{HERE}:repository/team/*")
HUB = f"arn:aws:secretsmanager:{HERE}:secret:hub-a1b2c3"
PARAMETERS = {"EksCluster": "lab", "BaseRepositories": ",".join(BASES), "DockerHubSecret": HUB}
FUNCTIONS = (
    "AnnounceRole",
    "ApiHandlerRole",
    "BrokerRole",
    "DeliverRole",
    "DispatchRole",
    "KeepLogRole",
    "OnRequestRole",
    "OnCodebuildEventRole",
    "ReconcileRole",
    "CleanUpRole",
)
LOGIN = "the login of a build"  # a session of RegistryRole, for mallory's project
ROLES = (*FUNCTIONS, "BuildRole", "CopyRole", "RegistryRole", LOGIN)
STARTS = {"DispatchRole", "ReconcileRole"}  # the functions that hand builds to their executors
READS_CODE = {"BrokerRole", "OnRequestRole"}  # signs links to it for builds; reads what is in it


@dataclass(frozen=True)
class Deployment:
    """Statements and trust of each role, and physical names by logical ones."""

    statements: dict[str, list[dict[str, Any]]]
    trust: dict[str, list[dict[str, Any]]]
    names: dict[str, str]

    def arn(self, role: str) -> str:
        return f"arn:aws:iam::123456789012:role/{self.names[role]}"

    def allows(self, role: str, action: str, resource: str, **context: str) -> bool:
        if role != LOGIN:
            return allows(self.statements[role], action, resource, context)
        session = json.loads(session_policy(self.arn("RegistryRole"), MALLORYS))["Statement"]
        whole = self.statements["RegistryRole"]
        return all(allows(each, action, resource, context) for each in (whole, session))


@pytest.fixture(scope="module")
def deployment(packaged: Packaged, transformed: Any) -> Iterator[Deployment]:
    moto = aws.Moto()
    moto.start()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {**aws.ENVIRONMENT, "AWS_ENDPOINT_URL": moto.url}.items():
            environment.setenv(name, value)
        boto3.setup_default_session()
        made = stack.create(transformed, packaged.archive.read_bytes(), PARAMETERS)
        roles = [role for role in ROLES if role != LOGIN]
        trust = {}
        for role in roles:
            described = boto3.client("iam").get_role(RoleName=made.resources[role])["Role"]
            document: Any = described["AssumeRolePolicyDocument"]
            trust[role] = (document if isinstance(document, dict) else ast.literal_eval(document))["Statement"]
        statements = {role: [each for _, each in made.allowed(role)] for role in roles}
        yield Deployment(statements, trust, made.resources)
    boto3.DEFAULT_SESSION = None
    moto.close()


def repository(name: str) -> str:
    return f"arn:aws:ecr:{HERE}:repository/{name}"


ANN, ANNS_CACHE = repository("slipway/ann/site-89abcdef"), repository("slipway-cache/ann/site-89abcdef")
SECRET = f"arn:aws:ssm:{HERE}:parameter/slipway/{NAME}/ann/0123/token"
HOOK_SECRET = f"arn:aws:ssm:{HERE}:parameter/slipway/{NAME}/ann/0123/hooks/ci"
BUCKET, BUILD_LOG = "arn:aws:s3:::{Bucket}", f"arn:aws:logs:{HERE}:log-group:{{BuildLogs}}:log-stream:anns"
QUESTIONS: dict[str, tuple[str, str, set[str]]] = {
    # what it is: action, resource ({X}: the physical name of X), whose work it is
    "read another build's code": ("s3:GetObject", f"{BUCKET}/code/0123", {"ApiHandlerRole", *READS_CODE}),
    "change another build's code": ("s3:PutObject", f"{BUCKET}/code/0123", {"ApiHandlerRole"}),
    "list other builds": ("s3:ListBucket", BUCKET, set()),
    "pull another's image": ("ecr:GetDownloadUrlForLayer", ANN, {"RegistryRole"}),
    # who sees a build succeed gives its image the tags that it asked for
    "push elsewhere": ("ecr:PutImage", ANN, {"RegistryRole", "DispatchRole", "OnCodebuildEventRole", "ReconcileRole"}),
    "poison a cache": ("ecr:PutImage", ANNS_CACHE, {"RegistryRole"}),
    "read a cache": ("ecr:BatchGetImage", ANNS_CACHE, {"RegistryRole"}),
    "push a base image": ("ecr:PutImage", repository("base/python"), set()),
    "push another BuildKit": ("ecr:PutImage", repository("slipway-tools"), {"CopyRole"}),
    "pull what is nobody's": ("ecr:BatchGetImage", repository("payroll/app"), set()),
    # who prepares a project's repository lets tags of `MovableTags` move
    "let tags move": ("ecr:PutImageTagMutability", ANN, {"DispatchRole", "ReconcileRole"}),
    "delete an image": ("ecr:BatchDeleteImage", ANN, set()),
    "delete a repository": ("ecr:DeleteRepository", ANN, set()),
    "open a repository": ("ecr:SetRepositoryPolicy", ANN, set()),
    # CodeBuild writes the logs of all builds by one role; .github/SECURITY.md says what follows
    "write another build's log": ("logs:PutLogEvents", BUILD_LOG, {"BuildRole", "CopyRole"}),
    "read another build's log": (
        "logs:GetLogEvents",
        BUILD_LOG,
        {"ApiHandlerRole", "KeepLogRole", "OnCodebuildEventRole", *STARTS},
    ),
    "delete a log": ("logs:DeleteLogStream", BUILD_LOG, set()),
    "write the log of a function": (
        "logs:PutLogEvents",
        f"arn:aws:logs:{HERE}:log-group:{{KeepLogLogs}}:log-stream:x",
        {"KeepLogRole"},
    ),
    "mint a wider login": (
        "sts:AssumeRole",
        "arn:aws:iam::123456789012:role/{RegistryRole}",
        {"BrokerRole"},  # which narrows it
    ),
    "ask as a build": (
        "lambda:InvokeFunction",
        f"arn:aws:lambda:{HERE}:function:{{Broker}}",
        {"ApiHandlerRole"},  # in vain without a build's secret
    ),
    "make secrets of builds": ("secretsmanager:GetSecretValue", BUILD_KEY, {"BrokerRole", *STARTS}),
    "start builds of its own": (
        "codebuild:StartBuild",
        f"arn:aws:codebuild:{HERE}:project/{NAME}-builds",
        {*STARTS},
    ),
    "run builds under another role": ("iam:PassRole", "arn:aws:iam::123456789012:role/{CopyRole}", set()),
    "change the project": (
        "codebuild:UpdateProject",
        f"arn:aws:codebuild:{HERE}:project/{NAME}-builds",
        set(),
    ),
    "read records and tokens": (
        "dynamodb:GetItem",
        f"arn:aws:dynamodb:{HERE}:table/{{Table}}",
        {*FUNCTIONS},
    ),
    "read the login of Docker Hub": ("secretsmanager:GetSecretValue", HUB, {"BrokerRole", "CopyRole"}),
    "read other secrets": ("secretsmanager:GetSecretValue", f"{HUB}-of-another", set()),
    "set a project's secret": ("ssm:PutParameter", SECRET, {"ApiHandlerRole"}),
    "delete a project's secret": ("ssm:DeleteParameter", SECRET, {"ApiHandlerRole", "CleanUpRole"}),
    "read a webhook's secret": ("ssm:GetParameters", HOOK_SECRET, {"BrokerRole", "DeliverRole"}),
    "read other parameters": ("ssm:GetParameters", f"arn:aws:ssm:{HERE}:parameter/slipway/x/y", set()),
    "change a function": (
        "lambda:UpdateFunctionCode",
        f"arn:aws:lambda:{HERE}:function:{NAME}-APIHandler",
        set(),
    ),
    "become somebody else": ("iam:PutRolePolicy", "arn:aws:iam::123456789012:role/{BuildRole}", set()),
    "reach clusters": ("eks:DescribeCluster", f"arn:aws:eks:{HERE}:cluster/other", set()),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("question", QUESTIONS)
def test_nobody_may_do_what_is_not_his_work(deployment: Deployment, question: str, role: str) -> None:
    action, resource, workers = QUESTIONS[question]
    context = {"s3:prefix": "builds/"} if action == "s3:ListBucket" else {}
    asked = resource.format(**deployment.names)
    assert deployment.allows(role, action, asked, **context) == (role in workers)


@pytest.mark.parametrize("role", ROLES)
def test_the_broker_alone_reads_a_projects_secrets(deployment: Deployment, role: str) -> None:
    """The policy of the key lets everybody in the account decrypt through SSM: a role must be denied it, or
    not be allowed to ask SSM."""
    own = {"Effect": "Allow", "Action": "kms:Decrypt", "Resource": "*"}
    through_ssm = {"kms:ViaService": "ssm.us-east-1.amazonaws.com"}
    key = f"arn:aws:kms:{HERE}:key/0123"
    reads = ("GetParameter", "GetParameters", "GetParametersByPath", "GetParameterHistory")
    asks = any(deployment.allows(role, f"ssm:{each}", SECRET) for each in reads)
    statements = deployment.statements["RegistryRole" if role == LOGIN else role]
    decrypts = allows([*statements, own], "kms:Decrypt", key, through_ssm)
    assert (asks and decrypts) == (role == "BrokerRole")
    lists = deployment.allows(role, "ssm:GetParametersByPath", SECRET.rpartition("/")[0])
    assert lists == (role in {"ApiHandlerRole", "OnRequestRole", "CleanUpRole"})


def test_a_login_opens_its_own_project_and_pulls_base_images(deployment: Deployment) -> None:
    own = ("slipway/mallory/app-01234567", "slipway-cache/mallory/app-01234567")
    for name in (*own, "base/python", "team/cuda", "slipway-tools"):
        for action in ("BatchGetImage", "GetDownloadUrlForLayer", "BatchCheckLayerAvailability"):
            assert deployment.allows(LOGIN, f"ecr:{action}", repository(name)), name
        for action in ("InitiateLayerUpload", "UploadLayerPart", "CompleteLayerUpload", "PutImage"):
            assert deployment.allows(LOGIN, f"ecr:{action}", repository(name)) == (name in own), name
    assert deployment.allows(LOGIN, "ecr:GetAuthorizationToken", "*")


def test_who_may_take_a_role(deployment: Deployment) -> None:
    """CodeBuild takes its roles for this project alone; the broker takes the registry's."""
    for role in ("BuildRole", "CopyRole"):
        (statement,) = deployment.trust[role]
        assert statement["Principal"] == {"Service": "codebuild.amazonaws.com"}
        project = f"arn:aws:codebuild:{HERE}:project/{NAME}-builds"
        assert statement["Condition"] == {
            "StringEquals": {"aws:SourceAccount": "123456789012", "aws:SourceArn": project}
        }
    (statement,) = deployment.trust["RegistryRole"]
    assert str(statement["Principal"]["AWS"]).rpartition("/")[2] == deployment.names["BrokerRole"]
    for role in FUNCTIONS:
        (statement,) = deployment.trust[role]
        assert statement["Principal"] == {"Service": "lambda.amazonaws.com"}


@pytest.mark.parametrize(
    ("changes", "asked", "allowed"),
    [
        ({}, {}, True),
        ({}, {"action": "S3:getobject"}, True),
        ({}, {"action": "s3:PutObject"}, False),
        ({}, {"resource": "arn:aws:s3:::other/x"}, False),
        ({"Action": "s3:Get*", "Resource": "*"}, {}, True),
        ({"Resource": None, "NotResource": "arn:aws:s3:::b/secret/*"}, {}, True),
        ({"Resource": None, "NotResource": ["x", "arn:aws:s3:::b/*"]}, {}, False),
        ({"Condition": {"StringEquals": {"k": "v"}}}, {}, False),
        ({"Condition": {"StringEquals": {"k": "v"}}}, {"context": {"k": "v"}}, True),
        ({"Condition": {"StringEquals": {"k": "v*"}}}, {"context": {"k": "v"}}, False),
        ({"Condition": {"StringLike": {"k": ["u", "v*"]}}}, {"context": {"k": "vw"}}, True),
    ],
)
def test_policies_are_evaluated_as_aws_does(changes: dict[str, Any], asked: dict[str, Any], allowed: bool) -> None:
    plain = {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": "arn:aws:s3:::b/*", **changes}
    statement = {name: value for name, value in plain.items() if value is not None}
    request = {"action": "s3:GetObject", "resource": "arn:aws:s3:::b/x", **asked}
    assert allows([statement], **request) == allowed
    assert not allows([statement, {"Effect": "Deny", "Action": "s3:*", "Resource": "*"}], **request)


names = st.lists(
    st.sampled_from(["slipway", "slipway-cache", "mallory", "app-01234567", "ann", "base", "python", "x"]),
    min_size=1,
    max_size=4,
).map("/".join)


@given(name=names, pushes=st.booleans())
def test_one_machines_registry_grants_what_the_session_policy_does(name: str, pushes: bool) -> None:
    """Both are made of `domain.repositories.rights`. On one machine everything else is a base repository."""
    text = SignedLogins("AWS:x", lambda: NOW).mint(MALLORYS).password.partition(".")[0]
    session = json.loads(session_policy("arn:aws:iam::123456789012:role/x", MALLORYS))["Statement"]
    action, method = ("PutImage", "PUT") if pushes else ("BatchGetImage", "GET")
    granted = Grant(text).allows(method, f"/v2/{name}/manifests/1")
    assert granted == allows(session, f"ecr:{action}", repository(name))
