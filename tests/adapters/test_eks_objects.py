"""Jobs and Secrets as they are described, before anything is sent."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any, Literal

import kubernetes_validate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chalicelib.adapters import steps
from chalicelib.adapters.eks.job import job_of, resources_of, secret_of
from chalicelib.domain.build import SPECIAL_FILES_MARK, Build, Source
from chalicelib.domain.dockerfile import SPECIAL_FILES
from chalicelib.domain.environment import parse_environment, placement
from chalicelib.domain.record import replace
from chalicelib.domain.spec import parse_content
from chalicelib.settings import EksSettings, Profile
from infra.local.cluster.node import expanded
from infra.local.cluster.rules import refusal
from tests.adapters.attempts import attempt_api, shell_and_path
from tests.adapters.clusters import EXECUTION
from tests.factories import SPEC, make_archive, make_claimed

EXPECTED = Path(__file__).with_name("expected")
LAB = EksSettings("lab", node_keys=("disk", "example.com/pool"))
SCHEMAS = "1.33"


def job(build: Build, eks_settings: EksSettings = LAB, *, plain_http: bool = False) -> dict[str, Any]:
    kind: Literal["ecr", "plain"] = "plain" if plain_http else "ecr"
    return job_of(build, eks_settings, replace(EXECUTION, registry_kind=kind, queue_timeout_minutes=30))


def valid(described: dict[str, Any]) -> None:
    """By the official schemas, and by what servers refuse beyond them."""
    kubernetes_validate.validate(described, SCHEMAS, strict=True)
    assert refusal(described) is None


UPLOADED = make_claimed(
    source=Source(code_sha256="ab" * 32, context="src"),
    resources={"cpu": {"requests": 0.5, "limits": 2}, "memory": {"limits": 1024}},
    placement=placement(
        parse_environment(
            "environment",
            {
                "labels": {"team": "vision"},
                "annotations": {"why": "a demo, of labels!"},
                "node_selector": {"disk": "ssd"},
                "tolerations": [{"key": "example.com/pool", "operator": "Exists", "effect": "NoSchedule"}],
            },
        ),
        LAB.node_keys,
    ),
)
CLONED = make_claimed(
    number=2,
    attempt=2,
    nocache=True,
    source=Source(git_url="https://git.test/a/b", git_revision="main", dockerfile="docker/Dockerfile"),
)


@pytest.mark.parametrize(
    ("name", "described"),
    [
        ("userns-upload", job(UPLOADED)),
        ("rootless-git", job(CLONED, replace(LAB, profile="rootless", node_selector={"pool": "builds"}))),
        (
            "plain-registry",
            job(
                make_claimed(),
                EksSettings("lab", image="mirror.test/buildkit"),
                plain_http=True,
            ),
        ),
    ],
)
def test_the_whole_job(name: str, described: dict[str, Any]) -> None:
    """A changed Job is a decision: look at the difference, then replace the file."""
    # the scripts have tests of their own below
    described = json.loads(json.dumps(described))
    pod = described["spec"]["template"]["spec"]
    pod["initContainers"][0]["command"][2] = "…"
    for variable in pod["initContainers"][0]["env"]:
        if variable["name"] == "SLIPWAY_ASK":
            variable["value"] = "…"
    file = EXPECTED / f"{name}.json"
    if not file.exists():
        file.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n")
        pytest.fail(f"{file.name} was missing and is written now: read it.")
    assert described == json.loads(file.read_text())


def test_the_secret_belongs_to_the_job_which_does_not_show_it() -> None:
    made = job(UPLOADED)
    made["metadata"]["uid"] = "11111111-2222-3333-4444-555555555555"
    secret = secret_of(made, "hush-4711")

    assert secret["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": made["metadata"]["name"],
            "uid": made["metadata"]["uid"],
        }
    ]
    assert base64.b64decode(secret["data"]["secret"]) == b"hush-4711"
    valid(secret)
    assert "hush" not in json.dumps(made)


def test_nothing_in_a_pod_can_speak_to_the_cluster_or_to_aws() -> None:
    for profile in ("userns", "rootless"):
        pod = job(UPLOADED, replace(LAB, profile=profile))["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert "serviceAccountName" not in pod
        assert "hostNetwork" not in pod
        text = json.dumps(pod)
        assert "hostPath" not in text
        assert "AWS_" not in text


def test_a_pod_stays_where_it_is_on_a_node_of_the_architecture() -> None:
    template = job(UPLOADED, replace(LAB, architecture="arm64"))["spec"]["template"]
    annotations = template["metadata"]["annotations"]
    assert annotations["karpenter.sh/do-not-disrupt"] == "true"
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert template["spec"]["nodeSelector"]["kubernetes.io/arch"] == "arm64"


def test_disk_becomes_ephemeral_storage() -> None:
    made = resources_of({"disk": {"limits": 51_200}})
    assert made["requests"]["ephemeral-storage"] == "10240Mi"
    assert made["limits"]["ephemeral-storage"] == "51200Mi"


@pytest.mark.parametrize(
    ("wanted", "requests", "limits"),
    [
        (None, ("1000m", "2048Mi"), (None, "4096Mi")),
        ({"cpu": {"requests": 0.25}}, ("250m", "2048Mi"), (None, "4096Mi")),
        ({"cpu": {"limits": 0.5}}, ("500m", "2048Mi"), ("500m", "4096Mi")),
        ({"cpu": {"requests": 2, "limits": 4.5}}, ("2000m", "2048Mi"), ("4500m", "4096Mi")),
        ({"memory": {"requests": 8192}}, ("1000m", "8192Mi"), (None, "8192Mi")),
        ({"memory": {"limits": 512}}, ("1000m", "512Mi"), (None, "512Mi")),
        ({"memory": {"requests": 100.5, "limits": 200}}, ("1000m", "101Mi"), (None, "200Mi")),
        ({"cpu": {"requests": 0}, "memory": {"limits": 0}}, ("1000m", "2048Mi"), (None, "4096Mi")),
    ],
)
def test_amounts_become_quantities(wanted: Any, requests: Any, limits: Any) -> None:
    made = resources_of(wanted)
    assert (made["requests"]["cpu"], made["requests"]["memory"]) == requests
    assert (made["limits"].get("cpu"), made["limits"]["memory"]) == limits


_amount = st.none() | st.integers(0, 10**6) | st.floats(0, 10**6)
_amounts = st.fixed_dictionaries({"limits": _amount}) | st.fixed_dictionaries({"requests": _amount})
_name = st.from_regex(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", fullmatch=True)
_environments = st.fixed_dictionaries(
    {},
    optional={
        "resources": st.fixed_dictionaries({}, optional={"cpu": _amounts, "memory": _amounts}),
        "labels": st.dictionaries(_name, _name | st.just(""), max_size=3),
        "annotations": st.dictionaries(_name, st.text(max_size=20), max_size=3),
        "node_selector": st.dictionaries(st.sampled_from(LAB.node_keys), _name, max_size=2),
        "tolerations": st.lists(
            st.fixed_dictionaries(
                {"key": st.sampled_from(LAB.node_keys), "value": _name},
                optional={
                    "effect": st.sampled_from(["NoSchedule", "NoExecute"]),
                    "operator": st.just("Equal"),
                },
            ),
            max_size=2,
        ),
    },
)
_sources = st.none() | st.builds(
    Source,
    code_sha256=st.just("ab" * 32),
    context=st.none() | st.just("src/ü"),
    dockerfile=st.none() | st.just("a b/Dockerfile"),
)


@settings(max_examples=60)
@given(
    _environments,
    _sources,
    st.sampled_from(["userns", "rootless"]),
    st.booleans(),
    st.integers(1, 9999),
    st.booleans(),
)
def test_every_object_that_can_be_made_is_taken_by_a_server(
    environment: dict[str, Any],
    source: Source | None,
    profile: Profile,
    plain_http: bool,
    attempt: int,
    nocache: bool,
) -> None:
    spec = parse_content({**SPEC, "environment": environment})
    build = replace(
        make_claimed(),
        attempt=attempt,
        nocache=nocache,
        source=source,
        resources=spec.environment.resources,
        placement=placement(spec.environment, LAB.node_keys),
    )
    valid(job(build, replace(LAB, profile=profile), plain_http=plain_http))


# The script of the first container, in the shell that BuildKit's image has


@pytest.fixture(params=["dash", "busybox"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], str]:
    return shell_and_path(request.param, tmp_path)


def fetched(
    shell: tuple[list[str], str], folder: Path, dockerfile: str, code: bytes | None = None, **variables: str
) -> tuple[int, str, Path]:
    """Status, output and the folder with the result."""
    command, path = shell
    work = folder / "work"
    work.mkdir()
    empty = dict.fromkeys(("SLIPWAY_GIT_URL", "SLIPWAY_GIT_REVISION", "SLIPWAY_CONTEXT", "SLIPWAY_DOCKERFILE"), "")
    with attempt_api({"Dockerfile": dockerfile}, {"code": code} if code else {}) as api:
        told = api.variables(folder / "memory")
        (folder / "secret").write_text(told.pop("SLIPWAY_SECRET"))
        done = subprocess.run(
            [*command, "-c", steps.step("prepare_in_pod")],
            cwd=work,
            env={"PATH": path, "SLIPWAY_SECRET_FILE": str(folder / "secret"), **told, **empty, **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.stderr == ""
    if done.returncode == 0:
        assert api.told("_report") == [{"attempt": "1", "fetched": "1"}]
        assert api.logins.count(None) == (1 if code else 0)  # storage is asked without our secret
    return done.returncode, done.stdout, work


def test_code_is_laid_out_beside_its_dockerfile(shell: tuple[list[str], str], tmp_path: Path) -> None:
    code = make_archive({"src/app.py": "print()", "src/setup.sh": "true", "README": "x"})
    status, output, work = fetched(shell, tmp_path, "FROM x\n", code, SLIPWAY_CONTEXT="src")
    assert (status, output) == (0, "")
    assert sorted(each.name for each in (work / "build").iterdir()) == ["app.py", "setup.sh"]
    assert (work / "build" / "setup.sh").stat().st_mode & 0o100
    assert (work / "Dockerfile").read_text() == "FROM x\n"


def test_without_code_the_folder_is_empty_and_the_mark_goes(shell: tuple[list[str], str], tmp_path: Path) -> None:
    status, _, work = fetched(shell, tmp_path, "FROM x\n#slipway-special-files\nRUN y\n")
    assert status == 0
    assert list((work / "build").iterdir()) == []
    assert (work / "Dockerfile").read_text() == "FROM x\nRUN y\n"


def test_special_files_of_the_code_are_copied(shell: tuple[list[str], str], tmp_path: Path) -> None:
    code = make_archive({"requirements.txt": "a", "setup.sh": "true"})
    _, _, work = fetched(shell, tmp_path, "FROM x\n#slipway-special-files\nRUN y\n", code)
    assert (work / "Dockerfile").read_text().splitlines() == [
        "FROM x",
        "COPY build/requirements.txt /code",
        "COPY build/setup.sh /code",
        "RUN y",
    ]


@pytest.mark.parametrize("group", SPECIAL_FILES)
def test_of_each_group_of_special_files_the_first_is_copied(
    shell: tuple[list[str], str], tmp_path: Path, group: tuple[str, ...]
) -> None:
    code = make_archive(dict.fromkeys(reversed(group), "x"))
    _, _, work = fetched(shell, tmp_path, f"FROM x\n{SPECIAL_FILES_MARK}\n", code)
    assert (work / "Dockerfile").read_text() == f"FROM x\nCOPY build/{group[0]} /code\n"


def test_a_link_named_setup_makes_nothing_executable(shell: tuple[list[str], str], tmp_path: Path) -> None:
    code = io.BytesIO()
    with tarfile.open(fileobj=code, mode="w:gz") as tar:
        for name, target in (("setup.sh", "data"), ("data", "")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = (tarfile.SYMTYPE, target) if target else (tarfile.REGTYPE, "")
            entry.mode = 0o644
            tar.addfile(entry)
    status, _, work = fetched(shell, tmp_path, "FROM x\n", code.getvalue())
    assert status == 0
    assert (work / "build" / "setup.sh").is_symlink()
    assert not (work / "build" / "data").stat().st_mode & 0o111


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("SLIPWAY_CONTEXT", "nowhere", "ERROR: the code has no directory nowhere"),
        ("SLIPWAY_DOCKERFILE", "a/Dockerfile", "ERROR: the code has no file a/Dockerfile"),
    ],
)
def test_what_the_code_does_not_have_is_said(
    shell: tuple[list[str], str], tmp_path: Path, variable: str, value: str, words: str
) -> None:
    code = make_archive({"README": "x"})
    status, output, _ = fetched(shell, tmp_path, "FROM x\n", code, **{variable: value})
    assert status != 0
    assert output.strip() == words


@pytest.mark.parametrize("name", ["x$(SLIPWAY_IMAGE)", "$$y", "a$", "$(x", "$$(SLIPWAY_IMAGE)"])
def test_what_a_build_names_arrives_in_the_pod_as_it_was_written(name: str) -> None:
    """Kubernetes puts variables in the place of `$(NAME)`."""
    source = Source(git_url="https://git.test/a/b", git_revision=name, dockerfile="Dockerfile")
    pod = job(make_claimed(source=source))["spec"]["template"]["spec"]
    for container in (*pod["initContainers"], *pod["containers"]):
        arrived: dict[str, str] = {}
        for each in container["env"]:
            arrived[each["name"]] = expanded(each["value"], arrived)
        assert arrived["SLIPWAY_GIT_REVISION"] == name
        assert arrived.get("SLIPWAY_ASK", steps.VARIABLES["SLIPWAY_ASK"]) == steps.VARIABLES["SLIPWAY_ASK"]
