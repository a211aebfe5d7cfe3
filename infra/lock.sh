#!/bin/sh
# Writes the locks: every package with its version and the hashes of its files, from the lists requirements.in.
# Versions stay as they are locked unless a list asks for others; `--upgrade` as argument takes the newest.
set -eu
lock() {
    list=$1 lock=$2; shift 2
    .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
        --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" "$list" --output-file "$lock" "$@"
}
lock infra/aws/requirements.in requirements.txt "$@"
lock infra/local/requirements.in infra/local/requirements.txt --constraints requirements.txt "$@"
lock tests/requirements.in tests/requirements.txt --constraints infra/local/requirements.txt "$@"
lock tests/mutants/requirements.in tests/mutants/requirements.txt --constraints tests/requirements.txt "$@"
lock infra/ui/requirements.in infra/ui/requirements.txt "$@"
