#!/bin/sh
# fetch_by_links: the files named by the arguments; runs in a pod, before fetch_code and complete_dockerfile.
# The output of all three is shown once, at the end; `set -e` also ends the pod when one of them fails.
set -eu
exec 3>&1 >fetch.log 2>&1
trap 'cat fetch.log >&3' EXIT
for name; do
  left=120
  until wget -q -O "$name" "$(cat "$SLIPWAY_LINKS/$name")"; do
    # the link may have died with the session that signed it: a fresh one will be mounted
    left=$((left - 1))
    [ "$left" -gt 0 ] || { printf 'ERROR: %s could not be fetched\n' "$name"; exit 1; }
    sleep 5
  done
done
