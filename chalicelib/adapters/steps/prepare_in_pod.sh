#!/bin/sh
# prepare_in_pod: runs before run_buildkit. Its output is shown at the end, and again in the build's log; `set -e`
# ends the pod when a step fails.
# shellcheck disable=SC1091 # the files come with the materials
set -eu
exec 3>&1 >fetch.log 2>&1
trap 'cat fetch.log >&3' EXIT
sh -c "$SLIPWAY_ASK" ask _materials
. "$SLIPWAY_MEMORY/fetch_code"
. "$SLIPWAY_MEMORY/complete_dockerfile"
. "$SLIPWAY_MEMORY/report_code"
