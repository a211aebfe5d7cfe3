#!/bin/sh
# fetch_code: the Dockerfile says COPY build, so the folder exists even without code
(
  set -e
  cp "$SLIPWAY_MEMORY/Dockerfile" Dockerfile
  mkdir code
  if [ -n "$SLIPWAY_GIT_URL" ]; then
    printf 'Fetching %s at %s\n' "$SLIPWAY_GIT_URL" "$SLIPWAY_GIT_REVISION"
    export GIT_ALLOW_PROTOCOL=https GIT_TERMINAL_PROMPT=0
    git -c http.followRedirects=false clone --quiet --no-checkout -- "$SLIPWAY_GIT_URL" code
    git -C code -c advice.detachedHead=false checkout --quiet --detach "$SLIPWAY_GIT_REVISION" --
    git -C code rev-parse HEAD >"$SLIPWAY_MEMORY/commit"
    printf 'The commit is %s\n' "$(cat "$SLIPWAY_MEMORY/commit")"
    rm -rf code/.git
  elif [ -f "$SLIPWAY_MEMORY/code_url" ]; then
    download() { # by a request without our secret: storage would take that for a login of its own
      if command -v curl >/dev/null; then
        printf 'url = "%s"\n' "$(cat "$SLIPWAY_MEMORY/code_url")" | curl --config - -sSf --output code.tar.gz
      else
        wget -q -O code.tar.gz "$(cat "$SLIPWAY_MEMORY/code_url")"
      fi
    }
    left=5
    until download; do # the link may have expired: materials come with another
      left=$((left - 1))
      [ "$left" -gt 0 ] || { printf 'ERROR: the code could not be fetched\n'; exit 1; }
      sleep 5
      sh "$SLIPWAY_MEMORY/ask" _materials
    done
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
