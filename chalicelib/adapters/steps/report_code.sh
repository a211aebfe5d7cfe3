#!/bin/sh
# report_code: after this the secret gives no materials any more; only here the commit and the Dockerfile of git are known
(
  set -e
  set -- fetched=1
  if [ -n "$SLIPWAY_GIT_URL" ]; then
    set -- "$@" "commit=$(cat "$SLIPWAY_MEMORY/commit")"
    if [ "$(wc -c <Dockerfile)" -le "$SLIPWAY_MAX_DOCKERFILE_BYTES" ]; then
      set -- "$@" "dockerfile=$(base64 <Dockerfile | tr -d '\n' | tr '+/' '-_')"
    fi
  fi
  sh "$SLIPWAY_MEMORY/ask" _report "$@"
)
