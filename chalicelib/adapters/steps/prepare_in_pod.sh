#!/bin/sh
# prepare_in_pod: what goes before run_buildkit. Its output is shown once, at the end, and again with the
# build's; `set -e` ends the pod when one of the steps fails.
# shellcheck disable=SC1091 # the files come with the materials
set -eu
exec 3>&1 >fetch.log 2>&1
trap 'cat fetch.log >&3' EXIT
sh -c "$SLIPWAY_ASK" ask _materials
. "$SLIPWAY_MEMORY/fetch_code"
. "$SLIPWAY_MEMORY/complete_dockerfile"
. "$SLIPWAY_MEMORY/report_code"
