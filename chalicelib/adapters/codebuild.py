"""The executor on CodeBuild."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
from botocore.config import Config

from chalicelib.adapters.aws import answered
from chalicelib.adapters.steps import VARIABLES, variables_of
from chalicelib.domain.build import Build, Status
from chalicelib.domain.environment import machine
from chalicelib.domain.failure import KILLED, KILLED_CODE
from chalicelib.domain.lifecycle import Observation, Outcome, steps_of
from chalicelib.domain.repositories import cache_repository
from chalicelib.errors import Busy, ExecutorRefused, SlipwayError
from chalicelib.settings import Settings

MAX_BUILDSPEC_CHARACTERS = 25_600  # StartBuild's limit
_MAX_IDS = 100  # of one BatchGetBuilds, and of one page of ListBuildsForProject
_CLOCK_SKEW = timedelta(minutes=2)
_WAIT = {"AccountLimitExceededException", "ThrottlingException", "TooManyRequestsException", "RequestLimitExceeded"}
_REFUSED = {"InvalidInputException", "ResourceNotFoundException", "AccessDeniedException"}

_STATUS_OF_PHASE = {
    **dict.fromkeys(("SUBMITTED", "QUEUED", "PROVISIONING"), Status.SCHEDULED),
    **dict.fromkeys(("DOWNLOAD_SOURCE", "INSTALL", "PRE_BUILD"), Status.BUILDING),
    **dict.fromkeys(("BUILD", "POST_BUILD", "UPLOAD_ARTIFACTS", "FINALIZING"), Status.RUNNING),
}
_OF_COMMANDS = ("INSTALL", "PRE_BUILD", "BUILD", "POST_BUILD")  # phases with commands, whose log has the reason
_EXPLAINED = (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.FAULT)


def start_build_request(build: Build, settings: Settings, secret: str) -> dict[str, Any]:
    """The StartBuild request of a build's current attempt. A pure function of build and attempt, because CodeBuild
    demands that an idempotency token always comes with the same parameters."""
    variables = {
        "SLIPWAY_BUILD": str(build.key),
        "SLIPWAY_UUID": build.uuid,
        **variables_of(build, settings.api_url),
        "SLIPWAY_SECRET": secret,
        "SLIPWAY_BUILDKIT_IMAGE": settings.buildkit_image,
        "SLIPWAY_CACHE_REPOSITORY": cache_repository(build.image),
    }
    chosen = machine(build.resources)
    return {
        **({"computeTypeOverride": chosen} if chosen else {}),
        "projectName": settings.codebuild_project,
        "idempotencyToken": f"{build.uuid}-{build.attempt}",
        "sourceTypeOverride": "NO_SOURCE",
        "buildspecOverride": buildspec(),
        "timeoutInMinutesOverride": settings.build_timeout_minutes,
        "queuedTimeoutInMinutesOverride": settings.queue_timeout_minutes,
        "autoRetryLimitOverride": 0,  # we count attempts ourselves
        "environmentVariablesOverride": [
            {"name": name, "value": value, "type": "PLAINTEXT"} for name, value in variables.items()
        ],
    }


def buildspec() -> str:
    """The buildspec of every build; a buildspec in a user's code is never used. It is JSON, which is YAML too. Its
    commands are short, because CodeBuild prints them: the scripts are among the materials."""
    phases = {
        "pre_build": ("fetch_code", "complete_dockerfile", "report_code"),
        "build": ("build_and_push", "report_image"),
        "post_build": ("end_of_log",),
    }
    commands = {phase: [f'. "$SLIPWAY_MEMORY/{name}"' for name in names] for phase, names in phases.items()}
    commands["pre_build"].insert(0, 'sh -c "$SLIPWAY_ASK" ask _materials')
    text = json.dumps(
        {
            "version": 0.2,
            "env": {"shell": "bash", "variables": VARIABLES},
            "phases": {phase: {"commands": lines} for phase, lines in commands.items()},
        },
        indent=1,
    )
    assert len(text) <= MAX_BUILDSPEC_CHARACTERS
    return text


def build_id_of_event(event: Mapping[str, Any]) -> str:
    """The id of the CodeBuild build in a state-change or phase-change event. Nothing else of the event is used. Raises
    KeyError for another event."""
    return str(event["detail"]["build-id"]).rpartition(":build/")[2]


class CodeBuildExecutor:
    """`Executor` on CodeBuild; a handle is a CodeBuild id (`project:uuid`)."""

    emits_events = True
    replay_seconds = 150  # an idempotency token is valid for 300

    def __init__(self, settings: Settings, secret_of: Callable[[str, int], str]) -> None:
        """`secret_of` returns the secret of an attempt, given the build's uuid and the attempt."""
        self._settings, self._secret_of = settings, secret_of
        self._codebuild: Any = boto3.client("codebuild")
        # The SDK must not repeat a start: if the first answer was lost, "throttled" on the second try does not mean
        # that nothing was started.
        once = Config(retries={"total_max_attempts": 1})
        self._starting: Any = boto3.client("codebuild", config=once)

    def submit(self, build: Build) -> str:
        request = start_build_request(build, self._settings, self._secret_of(build.uuid, build.attempt))
        with answered("CodeBuild", refusal=_refusal):
            return str(self._starting.start_build(**request)["build"]["id"])

    def find_handle(self, build: Build) -> str | None:
        """Searches the list, newest first, back to the claim: CodeBuild cannot search by variables."""
        assert build.submitting_at is not None
        since = build.submitting_at - _CLOCK_SKEW
        with answered("CodeBuild", refusal=_refusal):
            for page in self._codebuild.get_paginator("list_builds_for_project").paginate(
                projectName=self._settings.codebuild_project, sortOrder="DESCENDING"
            ):
                found = self._describe(page["ids"])
                for described in found:
                    key, uuid, attempt = _identity(described)
                    if (key, attempt) == (str(build.key), build.attempt) and uuid in ("", build.uuid):
                        return str(described["id"])
                if found and min(described["startTime"] for described in found) < since:
                    return None
        return None

    def observe(self, handles: Sequence[str]) -> Mapping[str, Observation]:
        with answered("CodeBuild", refusal=_refusal):
            described = self._describe(handles)
        return {str(each["id"]): observation_of(each) for each in described if _identity(each)[0]}

    def stop(self, handle: str) -> None:
        unknown, ended = "ResourceNotFoundException", "InvalidInputException"
        with answered("CodeBuild", refusal=_refusal, ignored=[unknown, ended]):
            self._codebuild.stop_build(id=handle)

    def _describe(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        chunks = [ids[start : start + _MAX_IDS] for start in range(0, len(ids), _MAX_IDS)]
        return [each for chunk in chunks for each in self._codebuild.batch_get_builds(ids=list(chunk))["builds"]]


def observation_of(described: Mapping[str, Any]) -> Observation:
    """The observation in one element of BatchGetBuilds' answer."""
    key, uuid, attempt = _identity(described)
    phases = described.get("phases", [])
    stages = [
        (_STATUS_OF_PHASE[phase["phaseType"]], phase["startTime"].astimezone(UTC))
        for phase in phases
        if phase["phaseType"] in _STATUS_OF_PHASE and "startTime" in phase
    ]
    logs = described.get("logs", {})
    group, stream = logs.get("groupName"), logs.get("streamName")
    outcome = Outcome.__members__.get(described["buildStatus"])  # the names are the same; None for IN_PROGRESS
    ended: datetime | None = described.get("endTime")
    failed = {phase["phaseType"] for phase in phases if _has_failed(phase)}
    return Observation(
        key=key,
        uuid=uuid,
        attempt=attempt,
        handle=str(described["id"]),
        log=f"{group}:{stream}" if group and stream else None,
        steps=steps_of(stages),
        outcome=outcome,
        ended_at=ended and ended.astimezone(UTC),
        reason=_reason(described, phases) if outcome in _EXPLAINED else None,
        has_own_reason=bool(failed) and failed.isdisjoint(_OF_COMMANDS),
    )


def _has_failed(phase: Mapping[str, Any]) -> bool:
    return phase.get("phaseStatus") in ("FAILED", "FAULT")


def _reason(described: Mapping[str, Any], phases: Sequence[Mapping[str, Any]]) -> str | None:
    """CodeBuild's reason of a build that did not succeed."""
    took_long = f"The build took longer than {described.get('timeoutInMinutes')} minutes."
    for phase in phases:
        if phase.get("phaseStatus") == "TIMED_OUT":
            waited = described.get("queuedTimeoutInMinutes")
            is_queued = phase["phaseType"] == "QUEUED"
            return f"The build waited longer than {waited} minutes in the queue." if is_queued else took_long
        if _has_failed(phase):
            messages = [context.get("message", "") for context in phase.get("contexts", [])]
            words = " ".join(messages).rpartition(" Reason: ")[2].strip()  # before that, it is our own command
            if words.endswith(f"exit status {KILLED_CODE}"):
                words = f"The command {KILLED}."
            return f"{phase['phaseType']}: {words or phase['phaseStatus']}"
    return took_long if described["buildStatus"] == "TIMED_OUT" else None


def _identity(described: Mapping[str, Any]) -> tuple[str, str, int]:
    """Key, uuid and attempt of a build; the key is empty for a build that is not Slipway's."""
    variables = {each["name"]: each["value"] for each in described["environment"]["environmentVariables"]}
    uuid = variables.get("SLIPWAY_UUID", "")  # older versions did not set it
    return variables.get("SLIPWAY_BUILD", ""), uuid, int(variables.get("SLIPWAY_ATTEMPT", "0"))


def _refusal(code: str, words: str) -> SlipwayError | None:
    if code in _WAIT:
        return Busy(f"CodeBuild asks us to wait: {code}.")
    if code in _REFUSED:
        return ExecutorRefused(f"CodeBuild refused the build: {words}")
    return None
