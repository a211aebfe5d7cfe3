#!/bin/sh
# Makes .venv with everything that development and the one-machine stack need. Says on standard error
# what it does and, when it cannot, what to do.
set -eu

say() { printf '%s\n' "$*" >&2; }

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    say "Slipway needs Python 3.11 or newer; $PYTHON is $(command -v "$PYTHON" >/dev/null && "$PYTHON" --version 2>&1 || echo 'not there')."
    say "Install one, or name it: make PYTHON=python3.13 …"
    exit 2
fi
say "Making .venv and installing packages (about a minute the first time) …"
if ! "$PYTHON" -m venv .venv >&2; then
    say "Python cannot make virtual environments here. On Debian and Ubuntu: apt-get install python3-venv"
    exit 2
fi
# chalice cannot work with pip 26.3 and newer
.venv/bin/python -m pip install --quiet --disable-pip-version-check 'pip<26.3' >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt >&2
touch .venv/ready
