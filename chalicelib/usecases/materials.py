"""Answers builds, which authenticate with the secret of their attempt.

Until the attempt has its code, the secret gives the materials. After that, when the user's steps run, it only gives
registry logins and accepts reports. After the end of the build it gives nothing.
"""

import json
import re
from base64 import urlsafe_b64decode
from hmac import compare_digest

from msgspec import Struct

from chalicelib.domain.build import MAX_DOCKERFILE_BYTES, Build, BuildKey, Push, Source
from chalicelib.domain.materials import attempt_secret, labels_of, text_of
from chalicelib.domain.record import replace
from chalicelib.errors import Forbidden, Gone, Invalid
from chalicelib.ports import Question, Services
from chalicelib.usecases import secrets, throttle
from chalicelib.usecases.conflicts import retry_on_conflict

REQUESTS_PER_MINUTE = 120  # of one build; its engine may ask for a login for each image
MAX_DIGESTS = 8  # of one build: each attempt reports one
HELPER = "slipway"  # engines call docker-credential-<this> for a login
DOCKER_HUB = "https://index.docker.io/v1/"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


class OwnBroker(Struct, frozen=True):
    """`Broker` in this process."""

    services: Services

    def ask(self, question: Question) -> str:
        services, build = self.services, _asking(self.services, question)
        match question.about:
            case "materials":
                return _materials(services, build, question.attempt)
            case "login":
                return _login(services, build, question.attempt)
            case "report":
                _report(services, build.key, question)
                return ""


def _asking(services: Services, question: Question) -> Build:
    """The build that asks. Raises Forbidden for a wrong secret, also if there is no such build."""
    build = services.builds.get(BuildKey.parse(question.build))
    key, shown = services.deployment_secrets.build_key(), question.secret.encode()  # for texts, it accepts only ASCII
    if build is None or not compare_digest(attempt_secret(key, build.uuid, question.attempt).encode(), shown):
        raise Forbidden("This secret is not one of this build's attempt.")
    throttle.admit(services, f"build/{build.uuid}", REQUESTS_PER_MINUTE)
    return build


def _materials(services: Services, build: Build, attempt: int) -> str:
    _expect_current(build, attempt)
    if build.fetched_attempt >= attempt:
        raise Gone("This attempt has its code; its secret opens no materials any more.")
    body = services.builds.body(build.key)
    if body is None:
        raise Gone("The build was purged.")
    source = build.source or Source()
    code = {"code_url": services.sources.url(source.code_sha256)} if source.code_sha256 else {}
    if source.uploaded_at is not None:
        code["epoch"] = str(int(source.uploaded_at.timestamp()))
    return text_of(
        {
            **services.scripts,
            "Dockerfile": body.dockerfile or "",
            "build-args": text_of(body.build_args or {}),
            "labels": text_of(labels_of(build)),
            "config.json": _docker_configuration(services, build),
            "private-git-hosts": services.settings.private_git_hosts,
            **secrets.materials(services, build, body),
            **code,
        }
    )


def _docker_configuration(services: Services, build: Build) -> str:
    """Docker's config.json. A credential helper gets logins for our registry when they are needed: they expire."""
    host = build.image.partition("/")[0]
    logins = {}
    if (login := services.deployment_secrets.docker_hub_login()) is not None:
        logins = {DOCKER_HUB: {"username": login[0], "password": login[1]}}
    return json.dumps({"credHelpers": {host: HELPER}, "auths": logins})


def _login(services: Services, build: Build, attempt: int) -> str:
    """A registry login, in the format of credential helpers."""
    _expect_current(build, attempt)
    login = services.registry_logins.mint(build.image)
    return json.dumps({"ServerURL": login.host, "Username": login.username, "Secret": login.password})


@retry_on_conflict
def _report(services: Services, key: BuildKey, question: Question) -> None:
    """Records a report. It may come twice; that of a push may be late, after another attempt has begun."""
    reported = question.reported
    digest, commit, dockerfile = reported.get("digest"), reported.get("commit"), reported.get("dockerfile")
    if digest is not None and not _DIGEST.fullmatch(digest):
        raise Invalid({"digest": ["Must be sha256: and 64 hexadecimal digits."]})
    if commit is not None and not _COMMIT.fullmatch(commit):
        raise Invalid({"commit": ["Must be the whole hash of a commit."]})
    text = _text(dockerfile) if dockerfile is not None else None
    build = services.builds.get(key)
    if build is None or build.is_done:
        raise Gone("The build has ended.")
    new, body = build, None
    if "fetched" in reported and build.fetched_attempt != question.attempt:
        _expect_current(build, question.attempt)
        new = replace(new, fetched_attempt=question.attempt, commit=commit or build.commit)
        body = services.builds.body(key) if text is not None else None
        body = body and replace(body, found_dockerfile=text)
    if digest is not None and digest not in {push.digest for push in build.pushes}:
        if len(build.pushes) >= MAX_DIGESTS:
            raise Invalid({"digest": [f"A build reports at most {MAX_DIGESTS} digests."]})
        new = replace(new, pushes=(*build.pushes, Push(question.attempt, digest)))
    if new != build:
        services.builds.save(new, body)


def _expect_current(build: Build, attempt: int) -> None:
    """Raises Gone if this attempt is over or a stop was requested. An attempt without a stored handle is not over."""
    if build.is_done:
        raise Gone("The build has ended.")
    if build.stop_requested_at is not None:
        raise Gone("The build is being stopped.")
    if build.submitting_at is None or build.attempt != attempt:
        raise Gone("This attempt is over.")


def _text(encoded: str) -> str:
    """A Dockerfile as reports carry it: base64 for URLs. Raises Invalid."""
    try:
        text = urlsafe_b64decode(encoded).decode()
    except ValueError as exc:
        raise Invalid({"dockerfile": ["Must be UTF-8 in base64."]}) from exc
    if len(text.encode()) > MAX_DOCKERFILE_BYTES:
        raise Invalid({"dockerfile": [f"Must have at most {MAX_DOCKERFILE_BYTES} bytes."]})
    return text
