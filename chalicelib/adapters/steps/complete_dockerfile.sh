#!/bin/sh
# complete_dockerfile: adds the special files of a git repository, which were not known before it was fetched
(
  set -e
  for setup in build/polyaxon_setup.sh build/setup.sh; do
    # not for a link: chmod would follow it, also out of the code
    if [ -f "$setup" ] && [ ! -L "$setup" ]; then chmod +x "$setup"; fi
  done
  if grep -qx "$SLIPWAY_SPECIAL_FILES_MARK" Dockerfile; then
    for group in $SLIPWAY_SPECIAL_FILES; do
      for name in $(printf '%s' "$group" | tr : ' '); do
        if [ -f "build/$name" ]; then printf 'COPY build/%s /code\n' "$name"; break; fi
      done
    done > special-files
    sed -i -e "/^$SLIPWAY_SPECIAL_FILES_MARK\$/{r special-files" -e 'd}' Dockerfile
    rm special-files
  fi
)
