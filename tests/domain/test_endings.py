# ruff: noqa: E501 - logs are quoted as they are
"""How builds end, and what people are told. Each text was printed by a program on the machine where the test was
written (git 2.39.5, tar 1.34, gzip 1.12, buildah 1.28.2) or is quoted from the public page that is named."""

from __future__ import annotations

import pytest

from chalicelib.domain.failure import KILLED, failure_reason

GIT, TAR, BUILDAH = "git", "tar and gzip", "buildah"
ENDINGS = [
    (GIT, "fatal: unable to access 'https://127.0.0.1:9/x/': Failed to connect to 127.0.0.1 port 9 after 0 ms: Couldn't connect to server", "A server cannot be reached: "),
    (GIT, "fatal: unable to access 'https://no-such-host.invalid/x/': Could not resolve host: no-such-host.invalid", "A server cannot be reached: "),
    (GIT, "fatal: repository 'http://127.0.0.1:18556/404/x/' not found", ""),
    (GIT, "fatal: could not read Username for 'https://127.0.0.1:18443': terminal prompts disabled", "Access is refused: "),
    (GIT, "fatal: unable to access 'http://127.0.0.1:18556/403/x/': The requested URL returned error: 403", "Access is refused: "),
    (GIT, "fatal: unable to access 'http://127.0.0.1:18556/301/x/': The requested URL returned error: 301", ""),
    (GIT, "fatal: unable to access 'http://127.0.0.1:18556/500/x/': The requested URL returned error: 500", "A server cannot be reached: "),
    (GIT, "fatal: unable to access 'https://127.0.0.1:18443/404/x/': server certificate verification failed. CAfile: /etc/ssl/certs/ca-certificates.crt CRLfile: none", "A server's certificate is not trusted: "),
    (GIT, "fatal: transport 'git' not allowed", ""),
    (GIT, "fatal: invalid reference: nope", ""),
    (GIT, "fatal: reference is not a tree: 0123456789012345678901234567890123456789", ""),
    (GIT, "warning: You appear to have cloned an empty repository.\nfatal: invalid reference: origin/HEAD", ""),
    (TAR, "\ngzip: stdin: unexpected end of file\ntar: Unexpected EOF in archive\ntar: Unexpected EOF in archive\ntar: Error is not recoverable: exiting now", "The code's archive is damaged: tar: Unexpected EOF in archive"),
    (TAR, "\ngzip: stdin: not in gzip format\ntar: Child returned status 1\ntar: Error is not recoverable: exiting now", "The code's archive is damaged: gzip: stdin: not in gzip format"),
    (TAR, "\ngzip: stdin: invalid compressed data--crc error\n\ngzip: stdin: invalid compressed data--length error\ntar: Child returned status 1\ntar: Error is not recoverable: exiting now", "The code's archive is damaged: gzip: stdin: invalid compressed data--length error"),
    (TAR, "tar (child): missing.tgz: Cannot open: No such file or directory\ntar (child): Error is not recoverable: exiting now\ntar: Child returned status 2\ntar: Error is not recoverable: exiting now", "tar (child): missing.tgz: Cannot open: No such file or directory"),
    (TAR, "tar: t/f: Wrote only 5120 of 10240 bytes\ntar: Exiting with failure status due to previous errors", "The disk is full: tar: t/f: Wrote only 5120 of 10240 bytes"),
    ("cp", "cp: error writing 'full/f': No space left on device", ""),
    (BUILDAH, 'Error: building at STEP "COPY build/nope /x": checking on sources under "/tmp/ctx": copier: stat: "/build/nope": no such file or directory', "A file that the Dockerfile copies is missing (code is in `build/`): "),
    (BUILDAH, 'Error: building at STEP "FOO ": Build error: Unknown instruction: "FOO" &imagebuilder.Step{Env:[]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Command:"foo", Args:[]string{""}, Flags:[]string{}, Attrs:map[string]bool(nil), Message:"FOO ", Original:"FOO bar"}', "The Dockerfile cannot be read: "),
    (BUILDAH, 'Error: creating build container: initializing source docker://127.0.0.1:9/x:latest: pinging container registry 127.0.0.1:9: Get "https://127.0.0.1:9/v2/": dial tcp 127.0.0.1:9: connect: connection refused', "A server cannot be reached: "),
    (BUILDAH, 'Error: creating build container: initializing source docker://no-such-host.invalid/x:latest: pinging container registry no-such-host.invalid: Get "https://no-such-host.invalid/v2/": dial tcp: lookup no-such-host.invalid on 10.255.255.53:53: no such host', "A server cannot be reached: "),
    (BUILDAH, "STEP 1/1: FROM UPPER/x:y:z\nError: creating build container: invalid reference format", "creating build container: invalid reference format"),
    (BUILDAH, "STEP 1/1: FROM docker.io/library/Nope\nError: creating build container: repository name must be lowercase", "creating build container: repository name must be lowercase"),
    (BUILDAH, 'subprocess exited with status 3\nsubprocess exited with status 3\nError: building at STEP "RUN exit 3": exit status 3', "Exit code 3: exit 3"),
    (BUILDAH, 'subprocess exited with status 127\nError: building at STEP "RUN nope": exit status 127', "Exit code 127 (what it calls was not found): nope"),
    (BUILDAH, 'subprocess exited with status 126\nError: building at STEP "RUN touch /f; chmod 600 /f; /f": exit status 126', "Exit code 126 (what it calls cannot be executed): touch /f; chmod 600 /f; /f"),
    (BUILDAH, 'subprocess exited on segmentation fault\nsubprocess exited with status 1\nError: building at STEP "RUN kill -11 $$": exit status 1', "Exit code 1: kill -11 $$"),
    (BUILDAH, "Error: creating build container: initializing source docker://127.0.0.1:18555/denied/x:latest: reading manifest latest in 127.0.0.1:18555/denied/x: denied", "Access is refused: "),
    (BUILDAH, "Error: creating build container: initializing source docker://127.0.0.1:18555/unauth/x:latest: reading manifest latest in 127.0.0.1:18555/unauth/x: unauthorized", "Access is refused: "),
    (BUILDAH, "Error: creating build container: initializing source docker://127.0.0.1:18555/tag/x:latest: reading manifest latest in 127.0.0.1:18555/tag/x: manifest unknown", ""),
    (BUILDAH, "Error: creating build container: initializing source docker://127.0.0.1:18555/broken/x:latest: reading manifest latest in 127.0.0.1:18555/broken/x: received unexpected HTTP status: 500 Internal Server Error", "A server cannot be reached: "),
    (BUILDAH, "Error: parsing main Dockerfile: /tmp/ctx/Dockerfile: ENV must have two arguments", ""),
    (BUILDAH, 'STEP 4/4: RUN exit 0\nError: building at STEP "RUN exit 0": determining run uid: user: unknown user error looking up user "nobody-here"', 'building at STEP "RUN exit 0": determining run uid: user: unknown user error looking up user "nobody-here"'),
    ("https://github.com/elastic/golang-crossbuild/issues/659", "ERROR: failed to solve: arm64v8/debian:12: failed to copy: httpReadSeeker: failed open: unexpected status code https://registry-1.docker.io/v2/arm64v8/debian/manifests/sha256:53692cdc49e2b0abdd9adf36466b366aaebdbbdbb2e6a7f432e2b4fb7327fd93: 429 Too Many Requests - Server message: toomanyrequests: You have reached your unauthenticated pull rate limit. https://www.docker.com/increase-rate-limit", "The base image's registry refuses more anonymous pulls for now; use a mirror or log in."),
    ("https://github.com/docker/hub-feedback/issues/2429", "Error: ERROR: Error response from daemon: toomanyrequests: You have reached your pull rate limit. You may increase the limit by authenticating and upgrading: https://www.docker.com/increase-rate-limit", "The base image's registry refuses more anonymous pulls for now; use a mirror or log in."),
    ("https://github.com/zhaarey/wrapper/issues/33", "ERROR: failed to solve: builder: failed to resolve source metadata for docker.io/library/builder:latest: pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed", "Access is refused: "),
    ("https://github.com/ethereum-optimism/optimism/issues/2191", "failed to solve: rpc error: code = Unknown desc = executor failed running [/bin/sh -c yarn build]: exit code: 137", f"Exit code 137 ({KILLED}): yarn build"),
    ("https://github.com/moby/buildkit/issues/3776", "ERROR: tag invalid: The image tag '<tag>' already exists in the '<ecr-repo>' repository and cannot be overwritten because the repository is immutable.", "The image's tag is there already: "),
    ("https://github.com/irbis-sh/zen-desktop/issues/482", 'ERROR: failed to build: failed to solve: failed to resolve source metadata for docker.io/docker/dockerfile:1.19: failed to do request: Head "https://registry-1.docker.io/v2/docker/dockerfile/manifests/1.19": tls: failed to verify certificate: x509: certificate signed by unknown authority', "A server's certificate is not trusted: "),
    ("https://github.com/openremote/openremote/issues/3025", 'ERROR: failed to build: failed to solve: failed to compute cache key: failed to calculate checksum of ref 7rwf5y97vt3qxjefart17zyuq::46riyywj6v8fif7dfjs5vd0es: "/deployment": not found', "A file that the Dockerfile copies is missing (code is in `build/`): "),
    ("https://github.com/mozilla/addons/issues/14827", 'ERROR: failed to solve: python:3.11-slim-bookworm: failed to resolve source metadata for docker.io/library/python:3.11-slim-bookworm: failed to do request: Head "https://registry-1.docker.io/v2/library/python/manifests/3.11-slim-bookworm": net/http: TLS handshake timeout', "A server cannot be reached: "),
    ("https://github.com/InternationalColorConsortium/iccDEV/issues/640", "ERROR: failed to build: failed to solve: dockerfile parse error on line 81: unknown instruction: echo", "The Dockerfile cannot be read: "),
    ("https://github.com/docker/buildx/issues/2749", "ERROR: failed to solve: failed to push cr.staging.coscene.cn/coscene/honeybee-server-go: unexpected status from HEAD request to https://cr.staging.coscene.cn/v2/coscene/honeybee-server-go/blobs/sha256:422765c0b75d56b699a9402733a1b7b414ab9a3ca8b54417331672e03b3481af: 401 Unauthorized", "Access is refused: "),
    ("https://github.com/docker/build-push-action/issues/556", "#7 ERROR: authorization status: 401: authorization failed\n------\n > exporting to image:\n------\nerror: failed to solve: authorization status: 401: authorization failed", "Access is refused: failed to solve: authorization status: 401: authorization failed"),
    ("https://github.com/guacsec/guac/issues/2832", "ERROR: failed to build: failed to solve: ResourceExhausted: write /var/lib/docker/overlay2/yp9tg0uq1ufym66lbal7o82n2/diff/guacone-linux-arm64: no space left on device", ""),
    ("https://github.com/serverless/containers/issues/19", "ERROR: failed to build: failed to solve: ResourceExhausted: failed to read dockerfile: failed to create temp dir: mkdir /var/lib/docker/tmp/buildkit-mount2667628103: no space left on device", ""),
    ("https://github.com/urre/wordpress-nginx-docker-compose/issues/109", '#0 0.689 exec /bin/sh: exec format error\n------\nfailed to solve: process "/bin/sh -c apt-get update && apt-get install -y sudo less mariadb-client" did not complete successfully: exit code: 1', "Exit code 1: apt-get update && apt-get install -y sudo less mariadb-client"),
    (BUILDAH, 'defError: building at STEP "RUN printf def; exit 3": while running runtime: exit status 3', "Exit code 3: printf def; exit 3"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "log", "told"), ENDINGS, ids=[f"{n} {source}" for n, (source, *_) in enumerate(ENDINGS)]
)
def test_an_ending_in_words(source: str, log: str, told: str) -> None:
    """`told` is the message, or what stands before the log's own line."""
    reason = failure_reason(log.split("\n"))
    assert reason is not None
    line = log.removeprefix("Error: ").removeprefix("ERROR: ").rpartition("\n")[2]
    assert reason in (told, told + line), reason


def test_there_are_many_endings_and_each_is_another() -> None:
    assert len({log for _, log, _ in ENDINGS}) == len(ENDINGS) >= 30
