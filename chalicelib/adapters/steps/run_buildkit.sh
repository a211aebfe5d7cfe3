#!/bin/sh
# run_buildkit: BuildKit with the arguments of buildctl, in a pod
cat fetch.log
printf 'Building: %s\n' "$SLIPWAY_IMAGE"
status=0
buildctl-daemonless.sh build "$@" || status=$?
[ "$status" -ne 0 ] || printf 'Pushing finished: %s\n' "$SLIPWAY_IMAGE"
printf 'slipway-end %s\n' "$SLIPWAY_NONCE"
exit "$status"
