#!/bin/sh
# report_code: from now on the secret opens no materials; what git has told us is known to us alone
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
