"""Makes the Dockerfile for a base image: the same blocks as Polyaxon, in the same order, byte for byte, except that
values of variables are quoted if engines would change them otherwise.

The folder `build` of the context has the code. The code is copied last, so build steps can only use the special files,
which are copied before them.
"""

import re
from collections.abc import Collection

from chalicelib.domain.build import SPECIAL_FILES_MARK
from chalicelib.domain.spec import Spec

_PLAIN = re.compile(r"""[^\s"'\\$]+(?: [^\s"'\\$]+)*""")  # engines do not change such a value, even without quotes
_SPECIAL = re.compile(r"""\$(?:(\w+)|\{(\w+)\})|["\\$]""", re.A)  # between double quotes
# Files of the code that are copied before the build steps: of each group, the first that exists.
SPECIAL_FILES = (
    ("polyaxon_requirements.txt", "requirements.txt"),
    ("polyaxon_conda_env.yaml", "polyaxon_conda_env.yml", "conda_env.yaml", "conda_env.yml"),
    ("polyaxon_setup.sh", "setup.sh"),
)


def generate(spec: Spec, files: Collection[str] | None = ()) -> str:
    """The Dockerfile for `spec.image`. `files` are the names in the top directory of the code, or None if they are not
    known yet; then a mark is in the place of their lines.

    `spec` has checked that every value stays within its line, so no value can add an instruction.
    """
    lines = ["", f"FROM {spec.image}", ""]
    lines += [f"ARG {name}" for name, _ in spec.build_args]
    if spec.lang_env:
        lines += [f"ENV {name} {spec.lang_env}" for name in ("LC_ALL", "LANG", "LANGUAGE")]
    lines += ["# Use bash as default shell, rather than sh", "ENV SHELL /bin/bash", ""]
    lines += _variables(spec)
    lines += ["WORKDIR /code", ""]
    if files is None:
        lines.append(SPECIAL_FILES_MARK)
    else:
        for group in SPECIAL_FILES:
            lines += [f"COPY build/{name} /code" for name in group if name in files][:1]
    lines += [f"RUN {_mounts(spec, step)}{step}" for step in spec.build_steps]
    lines += ["COPY build /code", ""]
    return "\n".join(lines)


def _variables(spec: Spec) -> list[str]:
    """An ENV line for each variable. The engine expands references to build arguments, to variables of earlier lines,
    and to the base image's variable of the same name. All other text is quoted, so the engine does not change it."""
    known, lines = {name for name, _ in spec.build_args}, []
    for name, value in spec.env_vars:
        known.add(name)
        escaped = _SPECIAL.sub(lambda found: found[0] if (found[1] or found[2]) in known else f"\\{found[0]}", value)
        lines.append(f"ENV {name} {value}" if _PLAIN.fullmatch(value) else f'ENV {name}="{escaped}"')
    return lines


def _mounts(spec: Spec, step: str) -> str:
    """The flags of RUN that mount the secrets whose files the step names."""
    named = [id_ for id_, _ in spec.secrets if re.search(rf"/run/secrets/{re.escape(id_)}(?![\w.-])", step)]
    # 0444, because the base image may run steps as another user than root
    return "".join(f"--mount=type=secret,id={id_},required=true,mode=0444 " for id_ in named)
