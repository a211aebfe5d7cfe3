"""What a build gets from us and tells us, when it shows the secret of its attempt.

The secret opens the materials until the attempt has its code. From then on steps of the user run, and it
opens registry logins and reports alone. Once the build has ended it opens nothing.
"""

import json
import re
from base64 import urlsafe_b64decode
from dataclasses import dataclass, replace
from hmac import compare_digest

from chalicelib.domain.build import MAX_DOCKERFILE_BYTES, Build, BuildKey, Push, Source
from chalicelib.domain.materials import attempt_secret, labels_of, text_of
from chalicelib.errors import Forbidden, Gone, Invalid
from chalicelib.ports import Question, Services
from chalicelib.usecases import secrets, throttle
from chalicelib.usecases.conflicts import retry_on_conflict

REQUESTS_PER_MINUTE = 120  # of one build: its engine may ask for a login for each image
MAX_DIGESTS = 8  # of one build: each attempt reports one
HELPER = "slipway"  # engines call docker-credential-<this> for a login
DOCKER_HUB = "https://index.docker.io/v1/"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


@dataclass(frozen=True, slots=True)
class OwnBroker:
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
    """The build that asks. Whether there is one of this name is told to those alone who have its secret."""
    build = services.builds.get(BuildKey.parse(question.build))
    key, shown = services.deployment_secrets.build_key(), question.secret.encode()  # of texts, it takes ASCII alone
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
    """Docker's config.json: our registry's logins are asked for when they are needed, because they expire."""
    host = build.image.partition("/")[0]
    logins = {}
    if (login := services.deployment_secrets.docker_hub_login()) is not None:
        logins = {DOCKER_HUB: {"username": login[0], "password": login[1]}}
    return json.dumps({"credHelpers": {host: HELPER}, "auths": logins})


def _login(services: Services, build: Build, attempt: int) -> str:
    """As engines expect it from a credential helper."""
    _expect_current(build, attempt)
    login = services.registry_logins.mint(build.image)
    return json.dumps({"ServerURL": login.host, "Username": login.username, "Secret": login.password})


@retry_on_conflict
def _report(services: Services, key: BuildKey, question: Question) -> None:
    """A report may come twice, and that of a push late: from an attempt after which another began."""
    told = question.told
    digest, commit, dockerfile = told.get("digest"), told.get("commit"), told.get("dockerfile")
    if digest is not None and not _DIGEST.fullmatch(digest):
        raise Invalid({"digest": ["Must be sha256: and 64 hexadecimal digits."]})
    if commit is not None and not _COMMIT.fullmatch(commit):
        raise Invalid({"commit": ["Must be the whole hash of a commit."]})
    text = _text(dockerfile) if dockerfile is not None else None
    build = services.builds.get(key)
    if build is None or build.is_done:
        raise Gone("The build has ended.")
    new, body = build, None
    if "fetched" in told and build.fetched_attempt != question.attempt:
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
    """Raises Gone unless this attempt runs and shall go on. Its handle need not be noted."""
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
