#!/bin/sh
# Installs what a lock lists into .venv, which it makes if need be. Says on standard error what it does and,
# when it cannot, what to do.
set -eu

say() { printf '%s\n' "$*" >&2; }

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    say "Slipway needs Python 3.11 or newer; $PYTHON is $(command -v "$PYTHON" >/dev/null && "$PYTHON" --version 2>&1 || echo 'not there')."
    say "Install one, or name it: make PYTHON=python3.13 …"
    exit 2
fi
if [ ! -x .venv/bin/python ] && ! "$PYTHON" -m venv .venv >&2; then
    say "Python cannot make virtual environments here. On Debian and Ubuntu: apt-get install python3-venv"
    exit 2
fi
say "Installing what $1 lists into .venv; this may take minutes …"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$1" >&2
