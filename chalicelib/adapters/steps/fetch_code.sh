#!/bin/sh
# fetch_code: the Dockerfile says COPY build, so the folder exists even without code
(
  set -e
  mkdir code
  if [ -n "$SLIPWAY_GIT_URL" ]; then
    printf 'Fetching %s at %s\n' "$SLIPWAY_GIT_URL" "$SLIPWAY_GIT_REVISION"
    export GIT_ALLOW_PROTOCOL=https GIT_TERMINAL_PROMPT=0
    git -c http.followRedirects=false clone --quiet --no-checkout -- "$SLIPWAY_GIT_URL" code
    git -C code -c advice.detachedHead=false checkout --quiet --detach "$SLIPWAY_GIT_REVISION" --
    rm -rf code/.git
  elif [ -f code.tar.gz ]; then
    tar --extract --gzip --file code.tar.gz --directory code --no-same-owner
    rm code.tar.gz
  fi
  inside() { # a path of the code, links resolved, or nothing when it leads out
    resolved=$(cd code && readlink -f -- "$1" 2>/dev/null) || return 0
    case "$resolved/" in "$(pwd -P)/code/"*) printf '%s' "$resolved" ;; esac
  }
  if [ -n "$SLIPWAY_DOCKERFILE" ]; then
    found=$(inside "$SLIPWAY_DOCKERFILE")
    [ -f "$found" ] || { printf 'ERROR: the code has no file %s\n' "$SLIPWAY_DOCKERFILE"; exit 1; }
    cp -- "$found" Dockerfile
  fi
  found=$(inside "${SLIPWAY_CONTEXT:-.}")
  [ -d "$found" ] || { printf 'ERROR: the code has no directory %s\n' "$SLIPWAY_CONTEXT"; exit 1; }
  mv -- "$found" build
)
