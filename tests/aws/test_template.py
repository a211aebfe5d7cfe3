"""What is deployed, read: what no emulator would tell us is wrong."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from chalice.app import CloudWatchEvent
from moto.events.models import EventPattern
from msgspec import NODEFAULT
from msgspec.structs import fields

from chalicelib import settings, telemetry
from chalicelib.adapters import webhooks
from chalicelib.adapters.codebuild import build_id_of_event
from chalicelib.adapters.dynamodb.table import Item
from chalicelib.domain.build import DONE
from chalicelib.domain.cleanup import OFFERED_DAYS, REPLACED_DAYS, STAGED_DAYS
from chalicelib.usecases.cleanup import Cleaned
from chalicelib.usecases.hooks import TRY_AGAIN_AFTER
from infra.aws.package import ROOT, SERVICES
from tests.aws.conftest import FUNCTIONS, HERE, Packaged, listed, policy, recorded, transformed_with

# Actions for which the services know no resources.
WILDCARD_RESOURCES = {"ecr:GetAuthorizationToken", "xray:PutTraceSegments", "xray:PutTelemetryRecords"}
# In a VPC, AWS asks roles for these on all of them: who makes an interface does not know its id.
WILDCARD_RESOURCES |= {
    f"ec2:{action}"
    for action in (
        *("CreateNetworkInterface", "DeleteNetworkInterface", "DescribeNetworkInterfaces"),
        *("DescribeDhcpOptions", "DescribeSecurityGroups", "DescribeSubnets", "DescribeVpcs"),
    )
}


class Recording(Mapping[str, str]):
    """An environment that knows every name that it was asked for."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values, self.asked = values, set[str]()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        self.asked.add(str(name))
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


# Settings of the one-machine stack, and limits that follow from Lambda, DynamoDB and the command line.
NOT_IN_AWS = {
    f"SLIPWAY_{name}"
    for name in (
        *("REGISTRY_LOGIN", "ACCOUNT_MEMORY_SECONDS"),
        *("MAX_ANSWER_BYTES", "MAX_UPLOAD_BYTES", "MAX_BODY_BYTES"),
    )
}


def own_variables(written: Any) -> dict[str, set[str]]:
    """By the settings that only some functions get, those functions."""
    found: dict[str, set[str]] = {}
    for name, resource in written["Resources"].items():
        own = resource.get("Properties", {}).get("Environment", {})
        for variable in own.get("Variables", {}):
            found.setdefault(variable, set()).add(name)
    return found


def test_functions_get_exactly_the_settings_that_are_read(written: Any) -> None:
    given = {*written["Globals"]["Function"]["Environment"]["Variables"], *own_variables(written)}
    config = json.loads((ROOT / ".chalice" / "config.json").read_text())
    environment = Recording({})
    with pytest.raises(KeyError):
        settings.read(environment)
    settings.stack(environment)
    settings.api_prefix(environment)
    assert {*given, *config["environment_variables"]} == environment.asked - NOT_IN_AWS, (
        "say in infra/aws/template.yaml, under Globals, what each setting is in AWS"
    )


def described_settings() -> Iterator[Any]:
    """Variable, default, type and Meta of each setting."""
    for prefix, kind in (("SLIPWAY_", settings.Settings), ("SLIPWAY_EKS_", settings.EksSettings)):
        hints = get_type_hints(kind, include_extras=True)
        for each in fields(kind):
            if each.name != "eks":
                default = None if each.default is NODEFAULT else each.default
                type_, meta = get_args(hints[each.name])
                yield pytest.param(f"{prefix}{each.name.upper()}", default, type_, meta, id=each.name)


@pytest.mark.parametrize(("variable", "default", "type_", "meta"), [*described_settings()])
def test_a_parameter_has_the_default_and_the_bounds_of_its_setting(
    written: Any, variable: str, default: Any, type_: Any, meta: Any
) -> None:
    value = written["Globals"]["Function"]["Environment"]["Variables"].get(variable)
    parameter = written["Parameters"].get(value.get("Ref")) if isinstance(value, dict) else None
    if parameter is None:
        assert not isinstance(value, str) or default is None or value == str(default)
        return
    if parameter["Type"] == "Number":
        assert parameter["Default"] == default
        assert (parameter.get("MinValue"), parameter.get("MaxValue")) == (meta.ge, meta.le)
    elif variable == "SLIPWAY_AUTOMATION_USER":
        assert (parameter["Default"], default) == ("automation", "")  # bootstrap makes that user
    elif isinstance(default, bool):
        assert (parameter["Default"], parameter["AllowedValues"]) == (str(default).lower(), ["true", "false"])
    else:
        assert parameter["Default"] in ("", default)  # empty: not set
        assert parameter.get("AllowedValues", []) == list(get_args(type_) if default else ())


def test_the_table_has_the_keys_and_indexes_of_the_model(written: Any) -> None:
    table = written["Resources"]["Table"]["Properties"]
    schema = Item._get_schema()  # what PynamoDB would create the table with

    def named(keys: Any) -> list[Any]:
        return sorted(tuple(sorted(key.items())) for key in keys)

    def indexes(entries: Any) -> dict[str, Any]:
        return {
            each["IndexName"]: (
                [(key["AttributeName"], key["KeyType"]) for key in each["KeySchema"]],
                each["Projection"]["ProjectionType"],
                sorted(each["Projection"].get("NonKeyAttributes", [])),
            )
            for each in entries
        }

    assert indexes(table["GlobalSecondaryIndexes"]) == indexes(
        {
            "IndexName": each["index_name"],
            "KeySchema": each["key_schema"],
            "Projection": each["projection"],
        }
        for each in schema["global_secondary_indexes"]
    )
    assert named(table["KeySchema"]) == named(schema["key_schema"])
    assert named(table["AttributeDefinitions"]) == named(schema["attribute_definitions"])
    assert table["TimeToLiveSpecification"] == {"AttributeName": Item.ttl.attr_name, "Enabled": True}


@pytest.mark.parametrize(
    ("prefix", "is_allowed"),
    [
        *((name, True) for name in ("slipway", "team/slipway", "my-cache2", "cache", "slipway-cache/dev")),
        *((name, False) for name in ("slipway-cache", "team/slipway-cache", "Slipway", "/slipway", "slipway/", "")),
    ],
)
def test_no_prefix_of_images_is_that_of_another_deployments_caches(written: Any, prefix: str, is_allowed: bool) -> None:
    """A teardown deletes all that has the names of the deployment's repositories."""
    pattern = written["Parameters"]["RegistryPrefix"]["AllowedPattern"]
    assert bool(re.fullmatch(pattern, prefix)) is is_allowed


@pytest.mark.parametrize(
    ("given", "refusals"),
    [
        ({}, []),
        ({"Backend": "eks"}, ["Backend=eks needs EksCluster, the name of the cluster."]),
        ({"Backend": "eks", "EksCluster": "lab"}, []),
        ({"KeepImages": "5"}, []),
        (
            {"KeepImages": "5", "KeepImageDays": "5"},
            ["ECR keeps images by count or by age, not both; set KeepImages or KeepImageDays."],
        ),
        ({"BuildVpc": "vpc-1"}, ["BuildVpc needs BuildSubnets.", "BuildVpc needs BuildSecurityGroups."]),
        ({"BuildVpc": "vpc-1", "BuildSubnets": "subnet-1,subnet-2"}, ["BuildVpc needs BuildSecurityGroups."]),
        ({"BuildVpc": "vpc-1", "BuildSubnets": "subnet-1", "BuildSecurityGroups": "sg-1"}, []),
        ({"FunctionSubnets": "subnet-1"}, ["FunctionSubnets needs FunctionSecurityGroups."]),
        ({"FunctionSubnets": "subnet-1", "FunctionSecurityGroups": "sg-1,sg-2"}, []),
    ],
)
def test_parameters_that_do_not_fit_together_are_refused_at_deployment(
    written: Any, given: Mapping[str, str], refusals: list[str]
) -> None:
    values = {name: given.get(name, str(each.get("Default", ""))) for name, each in written["Parameters"].items()}

    def value_of_rule(part: Any) -> Any:
        """As CloudFormation has it. It documents no other functions for rules; the linter accepts others as well."""
        match part:
            case {"Ref": name}:
                is_list = written["Parameters"][name]["Type"] == "CommaDelimitedList"
                return values[name].split(",") if is_list else values[name]
            case {"Fn::Not": [each]}:
                return not value_of_rule(each)
            case {"Fn::Or": each}:
                return any(map(value_of_rule, each))
            case {"Fn::Equals": [left, right]}:
                return value_of_rule(left) == value_of_rule(right)
            case {"Fn::Contains": [texts, text]}:
                return text in value_of_rule(texts)
        assert isinstance(part, str), f"{part} is no function of rules"
        return part

    assert refusals == [
        each["AssertDescription"]
        for rule in written["Rules"].values()
        if value_of_rule(rule.get("RuleCondition", {"Fn::Equals": ["", ""]}))
        for each in rule["Assertions"]
        if not value_of_rule(each["Assert"])
    ]


@pytest.mark.slow
def test_the_packaged_template_has_the_same_rules(packaged: Packaged, written: Any) -> None:
    assert yaml.safe_load(packaged.template.read_text())["Rules"] == written["Rules"]


def test_browsers_may_follow_links_and_send_the_form_of_an_upload(written: Any) -> None:
    """Of any page: what counts is the signature, and a redirected request has the origin `null`."""
    (rule,) = written["Resources"]["Bucket"]["Properties"]["CorsConfiguration"]["CorsRules"]
    assert rule["AllowedOrigins"] == rule["AllowedHeaders"] == ["*"]
    assert set(rule["AllowedMethods"]) == {"GET", "POST"}
    assert {"Content-Disposition", "Content-Range", "ETag"} <= set(rule["ExposedHeaders"])


def test_records_and_files_are_hard_to_lose_and_hard_to_reach(written: Any) -> None:
    table, bucket = written["Resources"]["Table"], written["Resources"]["Bucket"]
    assert table["DeletionPolicy"] == bucket["DeletionPolicy"] == "RetainExceptOnCreate"
    assert table["Properties"]["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert table["Properties"]["SSESpecification"]["SSEEnabled"] is True
    assert table["Properties"]["BillingMode"] == "PAY_PER_REQUEST"
    assert written["Parameters"]["DeletionProtection"]["Default"] == "true"
    assert all(bucket["Properties"]["PublicAccessBlockConfiguration"].values())
    assert bucket["Properties"]["VersioningConfiguration"] == {"Status": "Enabled"}
    rules = bucket["Properties"]["LifecycleConfiguration"]["Rules"]
    expiring = {rule["Prefix"]: rule["ExpirationInDays"] for rule in rules if "ExpirationInDays" in rule}
    # nothing else is forgotten but by the service itself
    assert expiring == {"uploads/": OFFERED_DAYS, "builds/": STAGED_DAYS}
    (former,) = [rule for rule in rules if "ExpirationInDays" not in rule]
    assert former["NoncurrentVersionExpiration"] == {"NoncurrentDays": REPLACED_DAYS}


def test_a_key_of_the_operator_encrypts_what_is_kept(written: Any) -> None:
    """All but the ids of events that were not delivered: EventBridge would need the key as well."""
    names = {
        "AWS::DynamoDB::Table": lambda each: each["SSESpecification"]["KMSMasterKeyId"],
        "AWS::S3::Bucket": lambda each: each["BucketEncryption"]["ServerSideEncryptionConfiguration"][0][
            "ServerSideEncryptionByDefault"
        ]["KMSMasterKeyID"],
        "AWS::SQS::Queue": lambda each: each["KmsMasterKeyId"],
        "AWS::Logs::LogGroup": lambda each: each["KmsKeyId"],
        "AWS::SecretsManager::Secret": lambda each: each["KmsKeyId"],
    }
    key = {"Fn::If": ["HasKmsKey", {"Ref": "KmsKey"}, {"Ref": "AWS::NoValue"}]}
    count = 0
    for name, each in written["Resources"].items():
        if (of := names.get(each.get("Type", ""))) and name != "EventsDeadQueue":
            assert of(each["Properties"]) == key, name
            count += 1
    assert count > 15
    rights = written["Resources"]["KeyPolicy"]["Properties"]
    assert len(rights["Roles"]) == len(FUNCTIONS)
    (statement,) = rights["PolicyDocument"]["Statement"]
    assert statement["Condition"]["StringEquals"].keys() == {"kms:ViaService"}


@pytest.mark.slow
def test_builds_and_functions_run_in_a_vpc_of_the_operator_if_there_is_one(transformed: Any) -> None:
    """With the rights to network interfaces then, and only then."""
    resources = transformed["Resources"]
    nothing = {"Ref": "AWS::NoValue"}
    condition, has, otherwise = resources["BuildProject"]["Properties"]["VpcConfig"]["Fn::If"]
    assert (condition, has["VpcId"], otherwise) == ("HasBuildVpc", {"Ref": "BuildVpc"}, nothing)
    functions = [each for each in resources.values() if each["Type"] == "AWS::Lambda::Function"]
    for each in functions:
        condition, has, otherwise = each["Properties"]["VpcConfig"]["Fn::If"]
        assert (condition, has["SubnetIds"], otherwise) == (
            "HasFunctionVpc",
            {"Ref": "FunctionSubnets"},
            nothing,
        )
    assert resources["BuildVpcPolicy"]["Condition"] == "HasBuildVpc"
    lent = [resources["FunctionVpcPolicy"], resources["BrokerVpcPolicy"]]
    assert {each["Condition"] for each in lent} == {"HasFunctionVpc"}
    roles = [each["Properties"]["Role"]["Fn::GetAtt"][0] for each in functions]
    assert sorted(role["Ref"] for each in lent for role in each["Properties"]["Roles"]) == sorted(roles)
    elsewhere = {key: each for key, each in resources.items() if not key.endswith("VpcPolicy")}
    assert "ec2:" not in json.dumps(elsewhere)


@pytest.mark.slow
def test_every_role_has_the_path_and_the_boundary_of_the_operator(transformed: Any) -> None:
    roles = [each for each in transformed["Resources"].values() if each["Type"] == "AWS::IAM::Role"]
    assert len(roles) == len(FUNCTIONS) + 3
    for each in roles:
        assert each["Properties"]["Path"] == {"Ref": "RolePath"}
        assert each["Properties"]["PermissionsBoundary"] == {
            "Fn::If": ["HasPermissionsBoundary", {"Ref": "PermissionsBoundary"}, {"Ref": "AWS::NoValue"}]
        }


def test_a_message_is_not_seen_twice_while_its_function_may_run(written: Any) -> None:
    """AWS asks for six times the function's timeout."""
    functions = json.loads((ROOT / ".chalice" / "config.json").read_text())["stages"]["aws"]["lambda_functions"]
    for queue, function in (
        ("DispatchQueue", "dispatch"),
        ("LogQueue", "keep_log"),
        ("RequestsQueue", "on_request"),
        ("HookQueue", "deliver"),
    ):
        properties = written["Resources"][queue]["Properties"]
        assert properties["VisibilityTimeout"] >= 6 * functions[function]["lambda_timeout"]
        tries = 1 + len(TRY_AGAIN_AFTER) if queue == "HookQueue" else 5
        assert properties["RedrivePolicy"]["maxReceiveCount"] == tries


def test_the_function_that_tells_webhooks_outlives_the_slowest_receiver() -> None:
    """What it does before and after has as long again."""
    functions = json.loads((ROOT / ".chalice" / "config.json").read_text())["stages"]["aws"]["lambda_functions"]
    assert functions["deliver"]["lambda_timeout"] >= 2 * (webhooks.CONNECT_SECONDS + webhooks.SECONDS)


def test_every_function_has_a_policy_of_its_own() -> None:
    functions = json.loads((ROOT / ".chalice" / "config.json").read_text())["stages"]["aws"]["lambda_functions"]
    assert {name: each["iam_policy_file"] for name, each in functions.items()} == {
        name: f"policy-{name}.json" for name in FUNCTIONS
    }


def statements(written: Any) -> Iterator[dict[str, Any]]:
    """Of all identity policies: functions', CodeBuild's, EKS's."""
    for function in FUNCTIONS:
        yield from policy(function)
    for resource in written["Resources"].values():
        properties = resource.get("Properties", {})
        documents = [each["PolicyDocument"] for each in properties.get("Policies", [])]
        if resource.get("Type") == "AWS::IAM::Policy":
            documents.append(properties["PolicyDocument"])
        for document in documents:
            for each in document["Statement"]:
                yield each["Fn::If"][1] if "Fn::If" in each else each


def test_nothing_is_allowed_by_wildcards(written: Any) -> None:
    count = 0
    for statement in statements(written):
        count += 1
        actions = listed(statement["Action"])
        assert not [action for action in actions if "*" in action], statement
        if "*" in listed(statement["Resource"]):
            assert set(actions) <= WILDCARD_RESOURCES, statement
    assert count > 40


def test_only_functions_that_submit_know_where_the_api_is_and_only_the_apis_the_broker(written: Any) -> None:
    """Else CloudFormation would meet a circle: the API names its function."""
    assert own_variables(written) == {
        "SLIPWAY_API_URL": {"Dispatch", "Reconcile"},
        "SLIPWAY_BROKER_FUNCTION": {"APIHandler"},
    }


@pytest.mark.slow
def test_no_resource_needs_itself(transformed: Any) -> None:
    """cfn-lint does not see all circles."""
    resources = transformed["Resources"]
    needs = {name: set(needed(each, resources.keys())) for name, each in resources.items()}
    assert "RestAPI" in needs["Dispatch"] and "APIHandler" in needs["RestAPI"]  # so that something is searched
    assert [*TopologicalSorter(needs).static_order()]  # raises CycleError


@pytest.mark.slow
def test_what_aws_makes_by_a_roles_rights_is_made_after_them(transformed: Any) -> None:
    """A function in a VPC, a mapping of an encrypted queue or stream, CodeBuild's project in a VPC. The other rights
    that AWS checks then are in the role itself."""
    resources = transformed["Resources"]
    needs = {name: set(needed(each, resources.keys())) for name, each in resources.items()}

    def before(name: str) -> set[str]:
        return needs[name].union(*map(before, needs[name]))

    makers = {
        "AWS::CodeBuild::Project": {"BuildVpcPolicy"},
        "AWS::Lambda::Function": {"FunctionVpcPolicy", "KeyPolicy"},
        "AWS::Lambda::EventSourceMapping": {"FunctionVpcPolicy", "KeyPolicy"},
    }
    made = {name: makers[each["Type"]] for name, each in resources.items() if each["Type"] in makers}
    made["Broker"] = {"BrokerVpcPolicy"}  # nothing encrypted invokes it
    assert len(made) == 1 + len(FUNCTIONS) + 5
    assert {name: rights & before(name) for name, rights in made.items()} == made
    for each in resources.values():  # AWS's linter refuses it
        assert not [name for name in listed(each.get("DependsOn", [])) if "Condition" in resources[name]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mapping", "actions"),
    [
        (
            "AnnounceAnnounceDynamodbEventSource",
            {f"dynamodb:{name}" for name in ("DescribeStream", "GetRecords", "GetShardIterator", "ListStreams")}
            | {"sqs:SendMessage"},  # to where it puts failures
        ),
        *(
            (
                f"{name}{name}SqsEventSource",
                {f"sqs:{action}" for action in ("DeleteMessage", "GetQueueAttributes", "ReceiveMessage")},
            )
            for name in ("Deliver", "Dispatch", "KeepLog", "OnRequest")
        ),
    ],
)
def test_the_rights_of_a_mapping_are_in_the_role_itself(transformed: Any, mapping: str, actions: set[str]) -> None:
    """Lambda refuses to make a mapping without them."""
    resources = transformed["Resources"]
    function = resources[mapping]["Properties"]["FunctionName"]["Ref"]
    role = resources[resources[function]["Properties"]["Role"]["Fn::GetAtt"][0]]["Properties"]
    documents = [each["PolicyDocument"] for each in role["Policies"]]
    assert actions <= {action for each in documents for s in each["Statement"] for action in listed(s["Action"])}


def needed(value: Any, names: Collection[str]) -> Iterator[str]:
    """The resources that a part of a template refers to."""
    match value:
        case {"Ref": str(name)} if name in names:
            yield name
        case {"Fn::GetAtt": [str(name), *_]}:
            yield name
        case {"Fn::Sub": str(text) | [str(text), *_]}:
            yield from (name for name in re.findall(r"\$\{(\w+)[.}]", text) if name in names)
    if isinstance(value, dict):
        if "Type" in value and "DependsOn" in value:
            yield from listed(value["DependsOn"])
        value = [*value.values()]
    if isinstance(value, list):
        for each in value:
            yield from needed(each, names)


def test_a_build_may_write_its_log_and_nothing_else(written: Any) -> None:
    """What it pulls and pushes, the login of its own says, which it asks for."""
    role = written["Resources"]["BuildRole"]["Properties"]
    assert "ManagedPolicyArns" not in role
    statements = [each for policy in role["Policies"] for each in policy["PolicyDocument"]["Statement"]]
    assert [set(listed(each["Action"])) for each in statements] == [{"logs:CreateLogStream", "logs:PutLogEvents"}]
    project = written["Resources"]["BuildProject"]["Properties"]
    assert not [each for each in project["Environment"]["EnvironmentVariables"] if "Type" in each]  # secrets


@pytest.mark.slow
def test_events_come_when_a_status_may_change(transformed: Any) -> None:
    (pattern,) = [
        each["Properties"]["EventPattern"]
        for each in transformed["Resources"].values()
        if each["Type"] == "AWS::Events::Rule" and "EventPattern" in each["Properties"]
    ]
    pattern["detail"]["project-name"] = ["slipway-builds"]  # CloudFormation's Ref
    rule = EventPattern.load(json.dumps(pattern))
    started, ended = recorded("codebuild_phase_change"), recorded("codebuild_state_change")
    assert rule.matches_event(started) and rule.matches_event(ended)
    started["detail"]["completed-phase"] = "UPLOAD_ARTIFACTS"
    assert not rule.matches_event(started)
    ended["detail"]["project-name"] = "slipway-builds-of-others"
    assert not rule.matches_event(ended)


@pytest.mark.slow
def test_no_secret_of_a_build_travels_with_an_event(transformed: Any) -> None:
    """What CodeBuild tells has the build's variables: the function and the dead letters get its id alone."""
    rules = [each for each in transformed["Resources"].values() if each["Type"] == "AWS::Events::Rule"]
    targets = [each["Properties"]["Targets"] for each in rules if "EventPattern" in each["Properties"]]
    ((target,),) = targets
    assert target["InputTransformer"]["InputPathsMap"] == {"build": "$.detail.build-id"}
    template = target["InputTransformer"]["InputTemplate"]
    event = json.loads(template.replace("<build>", '"arn:aws:codebuild:eu:1:build/slipway-builds:7"'))
    assert event["detail"] == {"build-id": "arn:aws:codebuild:eu:1:build/slipway-builds:7"}
    assert build_id_of_event(CloudWatchEvent(event, None).to_dict()) == "slipway-builds:7"


def test_only_the_broker_may_mint_logins(written: Any) -> None:
    trusting = {
        name: each["Properties"]["AssumeRolePolicyDocument"]["Statement"]
        for name, each in written["Resources"].items()
        if each.get("Type") == "AWS::IAM::Role"
    }
    ((trust,),) = [trusting["RegistryRole"]]
    assert trust["Principal"] == {"AWS": {"Fn::GetAtt": ["BrokerRole", "Arn"]}}
    for function in FUNCTIONS:
        actions = {action for each in policy(function) for action in listed(each["Action"])}
        assert ("lambda:InvokeFunction" in actions) == (function == "api_handler")
        assert ("secretsmanager:GetSecretValue" in actions) == (function in ("broker", "dispatch", "reconcile"))
        assert "sts:AssumeRole" not in actions
    (lending,) = [
        each["Properties"]["Roles"]
        for each in written["Resources"].values()
        if each.get("Type") == "AWS::IAM::Policy" and "sts:AssumeRole" in json.dumps(each)
    ]
    assert lending == [{"Ref": "BrokerRole"}]


def test_the_dashboard_and_alarms_show_exactly_the_metrics_that_are_sent(written: Any) -> None:
    dashboard = written["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    shown = set()
    for widget in json.loads(dashboard)["widgets"]:
        namespace = ""
        for metric in widget["properties"]["metrics"]:
            namespace = namespace if metric[0] == "." else metric[0]
            if namespace == telemetry.NAMESPACE:
                shown.add(metric[1])
    assert shown == sent_metrics()
    alarm = written["Resources"]["BuildsPastTheirDeadline"]["Properties"]
    assert alarm["Namespace"] == telemetry.NAMESPACE
    assert alarm["MetricName"] in shown


def value_of(alarm: Any, sent: Mapping[str, float]) -> float | None:
    """An alarm's expression as CloudWatch has it: functions of METRICS() leave out series without data."""
    (expression,) = [each["Expression"] for each in alarm["Metrics"] if "Expression" in each]
    if not sent:
        return None
    return {"SUM(METRICS())": sum(sent.values()), "MAX(METRICS())": max(sent.values())}[expression]


@pytest.mark.parametrize(
    ("alarm", "kind"),
    [
        ("OldMessages", "Queue"),
        *((name, "Function") for name in ("FunctionErrors", "FunctionThrottles")),
    ],
)
def test_an_alarm_fires_by_each_of_its_metrics_alone(written: Any, alarm: str, kind: str) -> None:
    """A queue that was idle for six hours sends none, nor does a function that is not invoked."""
    properties = written["Resources"][alarm]["Properties"]
    watched = [each for each in properties["Metrics"] if "MetricStat" in each]
    for metric in watched:
        value = value_of(properties, {metric["Id"]: properties["Threshold"] + 1})
        assert value is not None and value > properties["Threshold"]
    assert value_of(properties, {}) is None and properties["TreatMissingData"] == "notBreaching"
    resources = {resource_of(each) for each in watched}
    assert len(resources) == len(watched)
    assert resources == watched_by(written, kind)


def watched_by(written: Any, kind: str) -> set[str]:
    """The resources that an alarm must watch: all functions, or all queues that functions empty, but one."""
    if kind == "Function":
        return {name for name, each in written["Resources"].items() if "LoggingConfig" in each.get("Properties", {})}
    # What a receiver does not take waits for hours, by its owner's fault: the list of webhooks says it.
    return {name for name in queues(written) if not name.endswith("DeadQueue")} - {"HookQueue"}


def queues(written: Any) -> set[str]:
    return {name for name, each in written["Resources"].items() if each.get("Type") == "AWS::SQS::Queue"}


def test_a_message_that_lies_in_one_dead_letter_queue_hides_none_that_comes_into_another(written: Any) -> None:
    """What users cause, a bad request, has a queue of its own. An alarm sends no mail while it is on."""
    watched = {}
    for name, each in written["Resources"].items():
        if name.endswith("DeadLetters"):
            alarm = each["Properties"]
            (dimension,) = alarm["Dimensions"]
            watched[name] = dimension["Value"]["Fn::GetAtt"]
            assert (alarm["Threshold"], alarm["ComparisonOperator"]) == (0, "GreaterThanThreshold")
            assert (alarm["MetricName"], alarm["Statistic"]) == ("ApproximateNumberOfMessagesVisible", "Maximum")
            assert (alarm["AlarmActions"], alarm["TreatMissingData"]) == ([{"Ref": "Alarms"}], "notBreaching")
    dead = {name for name in queues(written) if name.endswith("DeadQueue")}
    assert watched == {name.replace("DeadQueue", "DeadLetters"): [name, "QueueName"] for name in dead}


def resource_of(metric: Any) -> str:
    """The resource that a metric of an alarm is about."""
    (dimension,) = metric["MetricStat"]["Metric"]["Dimensions"]
    value = dimension["Value"]
    return str(value["Ref"] if "Ref" in value else value["Fn::GetAtt"][0])


def sent_metrics() -> set[str]:
    """The names of all measures that the code has."""
    names = {status.value.title().replace("_", "") for status in DONE}
    names |= {f"{field.name.title()}Purged" for field in fields(Cleaned)}
    for path in (ROOT / "chalicelib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Subscript(value=ast.Name("measures"), slice=ast.Constant(name)):
                    names.add(str(name))
                case ast.Dict(keys=[*_, ast.Constant("measures")], values=[*_, ast.Dict(keys=keys)]):
                    names |= {str(key.value) for key in keys if isinstance(key, ast.Constant)}
    return names


def test_botocore_keeps_the_services_that_adapters_ask_for() -> None:
    asked = {"dynamodb"}  # by PynamoDB
    for path in (ROOT / "chalicelib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "client"
                and node.args
            ):
                assert isinstance(node.args[0], ast.Constant)
                asked.add(str(node.args[0].value))
    assert asked == SERVICES


def lint(path: Path, *options: str) -> str:
    program = Path(sys.executable).with_name("cfn-lint")
    done = subprocess.run([program, path, *options], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.proof
def test_the_packaged_template_is_sound(packaged: Packaged) -> None:
    assert lint(packaged.template) == ""


@pytest.mark.proof
def test_the_transformed_template_is_sound(transformed: Any, tmp_path: Path) -> None:
    path = tmp_path / "template.json"
    path.write_text(json.dumps(transformed))
    assert lint(path) == ""


# Each parameter that changes resources, and not only what functions read, with those that it needs.
OF_RESOURCES = {
    "AlarmEmail": {"AlarmEmail": "me@example.com"},
    "BaseRepositories": {"BaseRepositories": "arn:aws:ecr:us-east-1:123456789012:repository/base"},
    "BuildArchitecture": {"BuildArchitecture": "arm64"},
    "BuildVpc": {"BuildVpc": "vpc-0123abcd", "BuildSubnets": "subnet-0123abcd", "BuildSecurityGroups": "sg-0123abcd"},
    "DockerHubSecret": {"DockerHubSecret": "arn:aws:secretsmanager:us-east-1:123456789012:secret:hub-abcdef"},
    "EksCluster": {"EksCluster": "lab", "EksLogGroup": "/lab/pods"},
    "EventBus": {"EventBus": "builds"},
    "FunctionSubnets": {"FunctionSubnets": "subnet-0123abcd", "FunctionSecurityGroups": "sg-0123abcd"},
    "KmsKey": {"KmsKey": "arn:aws:kms:us-east-1:123456789012:key/01234567-89ab-cdef-0123-456789abcdef"},
    "ReplyQueues": {"ReplyQueues": "arn:aws:sqs:us-east-1:123456789012:answers arn:aws:sqs:us-east-1:210987654321:b"},
    "PermissionsBoundary": {"PermissionsBoundary": "arn:aws:iam::123456789012:policy/most"},
}


def created(template: Any, given: Mapping[str, str]) -> dict[str, Any]:
    """The resources that CloudFormation creates with these parameters, without what depends on others."""
    values = {name: each.get("Default", "") for name, each in template["Parameters"].items()} | dict(given)

    def evaluate(value: Any) -> Any:
        if isinstance(value, list):
            return [each for each in map(evaluate, value) if each != {"Ref": "AWS::NoValue"}]
        if not isinstance(value, dict):
            return value
        if "Fn::If" in value:
            name, then, otherwise = value["Fn::If"]
            return evaluate(then if holds(template["Conditions"][name]) else otherwise)
        kept = {key: evaluate(each) for key, each in value.items()}
        return {key: each for key, each in kept.items() if each != {"Ref": "AWS::NoValue"}}

    def holds(condition: Any) -> bool:
        ((operation, arguments),) = condition.items()
        if operation == "Fn::Not":
            return not holds(arguments[0])
        assert operation == "Fn::Equals"
        left, right = (plain(each) for each in arguments)
        return bool(left == right)

    def plain(value: Any) -> Any:
        if isinstance(value, dict) and "Fn::Join" in value:
            return plain(value["Fn::Join"][1])
        return values[value["Ref"]] if isinstance(value, dict) else value

    resources = template["Resources"].items()
    return {
        name: evaluate(each)
        for name, each in resources
        if "Condition" not in each or holds(template["Conditions"][each["Condition"]])
    }


def names_in(value: Any) -> Iterator[str]:
    """What a part of a template refers to."""
    if isinstance(value, list):
        for each in value:
            yield from names_in(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            match key:
                case "Ref":
                    yield each
                case "Fn::GetAtt":
                    yield (each if isinstance(each, list) else each.split("."))[0]
                case "Fn::Sub":
                    text, more = (each, {}) if isinstance(each, str) else each
                    yield from {name.partition(".")[0] for name in re.findall(r"\${([^!}]+)}", text)} - {*more}
                    yield from names_in(more)
                case "Variables":
                    pass  # of functions
                case _:
                    yield from names_in(each)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_RESOURCES)
def test_a_parameter_that_is_not_set_changes_nothing_and_one_that_is_set_is_used(
    packaged: Packaged, transformed: Any, name: str
) -> None:
    given = OF_RESOURCES[name]
    off, on = created(transformed, {}), created(transformed_with(packaged, given), given)
    for resources in (off, on):  # none refers to one that is not created
        known = {*resources, *transformed["Parameters"]}
        assert {each for each in names_in(resources) if not each.startswith("AWS::")} <= known
    assert on != off
    is_read_by_a_condition_alone = name == "BuildArchitecture"
    for each in given:
        assert is_read_by_a_condition_alone or each in set(names_in(on)), each
        assert each not in set(names_in(off)), each


@pytest.mark.slow
def test_the_transformed_template_is_sound_with_all_of_them_set(packaged: Packaged, tmp_path: Path) -> None:
    given = {"RolePath": "/team/slipway/", "KeepImages": "500", "KeepImageTags": "release v1"}
    given |= {name: value for each in OF_RESOURCES.values() for name, value in each.items()}
    template = transformed_with(packaged, given)
    for name, value in given.items():
        template["Parameters"][name]["Default"] = value
    path = tmp_path / "template.json"
    path.write_text(json.dumps(template))
    assert lint(path) == ""


@pytest.mark.slow
def test_what_bites_only_on_aws(transformed: Any) -> None:
    """Each of these works in every emulator without the line that makes it work in AWS."""
    resources = transformed["Resources"]
    body = resources["RestAPI"]["Properties"]["Body"]
    assert "multipart/form-data" in body["x-amazon-apigateway-binary-media-types"]
    assert resources["RestAPI"]["Properties"]["EndpointConfiguration"] == {"Types": ["REGIONAL"]}
    stage = next(each["Properties"] for each in resources.values() if each["Type"] == "AWS::ApiGateway::Stage")
    assert stage["StageName"] == "api"
    assert stage["TracingEnabled"] is True
    beside_the_api = {path for path in body["paths"] if not path.startswith("/v1/")}
    assert beside_the_api == {"/healthz", "/ui", "/ui/{file}"}  # below the stage, `api`
    refusals = body["x-amazon-apigateway-gateway-responses"]
    assert refusals["MISSING_AUTHENTICATION_TOKEN"]["statusCode"] == "404"
    for refusal in refusals.values():  # none repeats what was sent
        assert json.loads(refusal["responseTemplates"]["application/json"]).keys() == {"detail"}
        assert "$" not in json.dumps(refusal)
    for name in (
        "DispatchDispatchSqsEventSource",
        "KeepLogKeepLogSqsEventSource",
        "OnRequestOnRequestSqsEventSource",
        "DeliverDeliverSqsEventSource",
    ):
        assert resources[name]["Properties"]["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
        assert resources[name]["Properties"]["ScalingConfig"] == {"MaximumConcurrency": 2}
    for resource in resources.values():
        if resource["Type"] == "AWS::Lambda::Function":
            properties = resource["Properties"]
            assert properties["Architectures"] == [HERE]
            assert properties["TracingConfig"] == {"Mode": "Active"}
            assert properties["LoggingConfig"].keys() > {"LogGroup"}
            assert properties["LoggingConfig"]["LogFormat"] == "JSON"  # with the request's id
            assert "ReservedConcurrentExecutions" not in properties  # new accounts have ten in all
        if resource["Type"] == "AWS::Events::Rule":
            (target,) = resource["Properties"]["Targets"]
            assert target["DeadLetterConfig"]["Arn"] == {"Fn::GetAtt": ["EventsDeadQueue", "Arn"]}
            assert "RetryPolicy" in target


def test_a_cluster_lets_in_the_functions_that_speak_to_it(written: Any) -> None:
    """As members of the group that the Role of infra/aws/kubernetes is bound to."""
    documents = yaml.safe_load_all((ROOT / "infra" / "aws" / "kubernetes" / "access.yaml").read_text())
    groups = [s["name"] for each in documents if each["kind"] == "RoleBinding" for s in each["subjects"]]
    entries = [each for each in written["Resources"].values() if each.get("Type") == "AWS::EKS::AccessEntry"]
    assert [each["Properties"]["KubernetesGroups"] for each in entries] == [groups, groups]
    assert all(each["Condition"] == "HasEks" for each in entries)
    principals = json.dumps([each["Properties"]["PrincipalArn"] for each in entries])
    assert "DispatchRole" in principals
    assert "ReconcileRole" in principals


@pytest.mark.slow
def test_only_builds_that_were_made_or_changed_wake_the_function_that_tells_of_them(transformed: Any) -> None:
    source = transformed["Resources"]["AnnounceAnnounceDynamodbEventSource"]["Properties"]
    assert source["EventSourceArn"] == {"Fn::GetAtt": ["Table", "StreamArn"]}
    ((pattern,),) = [source["FilterCriteria"]["Filters"]]
    wanted = EventPattern.load(pattern["Pattern"])
    made, leased, changed = recorded("changes")["Records"]
    assert [wanted.matches_event(each) for each in (made, leased, changed)] == [True, True, True]
    assert not wanted.matches_event(made | {"eventName": "REMOVE"})
    assert not wanted.matches_event(made | {"dynamodb": {"Keys": {"pk": {"S": "P#ada/vision"}, "sk": {"S": "P"}}}})


@pytest.mark.slow
def test_a_change_that_always_fails_holds_up_its_shard_for_a_bounded_time(transformed: Any, written: Any) -> None:
    """Without these, for a day; an alarm tells of what waits, and of what was put aside."""
    source = transformed["Resources"]["AnnounceAnnounceDynamodbEventSource"]["Properties"]
    assert source["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert source["BisectBatchOnFunctionError"] is True
    assert 0 < source["MaximumRetryAttempts"] <= 50
    assert 0 < source["MaximumRecordAgeInSeconds"] <= 1_800
    aside = source["DestinationConfig"]["OnFailure"]["Destination"]
    assert aside == {"Fn::GetAtt": ["EventsDeadQueue", "Arn"]}
    assert any(each["Resource"] == aside for each in policy("announce") if each["Action"] == "sqs:SendMessage")
    assert written["Resources"]["Table"]["Properties"]["StreamSpecification"]["StreamViewType"] == "NEW_AND_OLD_IMAGES"
    waiting = written["Resources"]["OldChanges"]["Properties"]
    assert (waiting["MetricName"], waiting["Dimensions"][0]["Value"]) == ("IteratorAge", {"Ref": "Announce"})
    assert waiting["Threshold"] < source["MaximumRecordAgeInSeconds"] * 1_000
