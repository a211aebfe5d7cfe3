#!/bin/bash
# build_and_push: builds and pushes with the engine SLIPWAY_ENGINE; writes the digest to $SLIPWAY_MEMORY/digest.
# The push is a second run with everything cached: its session asks for a new login.
build_and_push() (
  set -e
  network=(${SLIPWAY_NETWORK:+--network "$SLIPWAY_NETWORK"})
  nocache=(${SLIPWAY_NOCACHE:+--no-cache})
  options=() labels=()
  while read -r name value; do
    options+=(--build-arg "$name=$(printf '%s' "$value" | base64 -d)")
  done <"$SLIPWAY_MEMORY/build-args"
  while read -r name value; do
    labels+=(--label "$name=$(printf '%s' "$value" | base64 -d)")
  done <"$SLIPWAY_MEMORY/labels"
  epoch=$(cat "$SLIPWAY_MEMORY/epoch" 2>/dev/null || true)
  for file in "$SLIPWAY_MEMORY/secrets"/*; do
    if [ -f "$file" ]; then options+=(--secret "id=${file##*/},src=$file"); fi
  done
  tools=$(mktemp -d)
  trap 'rm -rf "$tools"' EXIT
  cp "$SLIPWAY_MEMORY/docker-credential-slipway" "$tools" # programs in memory may not be executable
  chmod +x "$tools/docker-credential-slipway"
  export PATH=$tools:$PATH DOCKER_CONFIG=${DOCKER_CONFIG:-$SLIPWAY_MEMORY}
  # Without a login, engines would continue and fail only at the push.
  docker-credential-slipway get </dev/null >/dev/null || { printf 'ERROR: the login to the registry failed\n'; exit 1; }
  rm -f "$SLIPWAY_MEMORY/login" # the engine's session asks for a newer one
  printf 'Building: %s\n' "$SLIPWAY_IMAGE"
  case "$SLIPWAY_ENGINE" in
    docker-container)
      buildkit=$SLIPWAY_BUILDKIT_IMAGE
      # Prefer our own copy: Docker Hub limits pulls.
      copy="${SLIPWAY_TOOLS_REPOSITORY:-}@${buildkit##*@}"
      if docker pull --quiet "$copy" >/dev/null 2>&1; then buildkit=$copy; fi
      docker buildx create --use --driver docker-container --driver-opt "image=$buildkit" \
        --driver-opt env.BUILDKIT_STEP_LOG_MAX_SIZE=-1 --driver-opt env.BUILDKIT_STEP_LOG_MAX_SPEED=-1 >/dev/null
      cached="type=registry,ref=$SLIPWAY_CACHE_REPOSITORY:layers"
      build=(docker buildx build --progress plain --provenance=false ${epoch:+--build-arg "SOURCE_DATE_EPOCH=$epoch"}
        "${network[@]}" "${options[@]}" "${labels[@]}")
      "${build[@]}" "${nocache[@]}" --cache-from "$cached" --output type=cacheonly .
      "${build[@]}" --cache-to "$cached,mode=max,image-manifest=true,oci-mediatypes=true,ignore-error=true" \
        --output "type=image,name=$SLIPWAY_IMAGE,push=true${epoch:+,rewrite-timestamp=true}" \
        --metadata-file "$tools/metadata" .
      ;;
    docker)
      docker buildx build --progress plain --provenance=false "${network[@]}" "${options[@]}" "${labels[@]}" \
        "${nocache[@]}" --metadata-file "$tools/metadata" --tag "$SLIPWAY_IMAGE" --push .
      # An image in the engine's store could be used without a login.
      docker image rm --no-prune "$SLIPWAY_IMAGE" >/dev/null
      ;;
    podman | buildah)
      # Without a name: other builds could use an image with a name from the store without a login.
      # One time for all layers, also cached ones, so that digests are equal: the first time that zip files can have.
      # Only docker's format has the instructions below; its images are never equal.
      format=oci
      if grep -Eiq '^[[:space:]]*(HEALTHCHECK|ONBUILD|SHELL)[[:space:]]' Dockerfile; then
        format=docker options+=("${labels[@]}") labels=()
      fi
      build=("$SLIPWAY_ENGINE" build --layers --format "$format" --timestamp 315532800 --iidfile "$tools/image-id")
      "${build[@]}" "${network[@]}" "${options[@]}" "${nocache[@]}" .
      if [ "${#labels[@]}" -gt 0 ]; then # separately: cached layers have the labels of the build that made them
        printf 'FROM %s\n' "$(cat "$tools/image-id")" >"$tools/labelled"
        "${build[@]}" --quiet "${labels[@]}" --file "$tools/labelled" "$tools" >/dev/null
      fi
      printf 'Pushing %s\n' "$SLIPWAY_IMAGE"
      "$SLIPWAY_ENGINE" push --digestfile "$SLIPWAY_MEMORY/digest" "$(cat "$tools/image-id")" "docker://$SLIPWAY_IMAGE"
      ;;
    *)
      printf 'ERROR: SLIPWAY_ENGINE is "%s"; expected docker-container, docker, podman or buildah\n' "$SLIPWAY_ENGINE"
      exit 2
      ;;
  esac
  if [ -f "$tools/metadata" ]; then
    sed -n 's/.*"containerimage.digest": *"\([^"]*\)".*/\1/p' "$tools/metadata" >"$SLIPWAY_MEMORY/digest"
  fi
  printf 'Pushing finished: %s@%s\n' "${SLIPWAY_IMAGE%:*}" "$(cat "$SLIPWAY_MEMORY/digest")"
)
# `mask` ignores SIGTERM, so a stop waits for the last line, and so for the engine.
(set -o pipefail; build_and_push 2>&1 | (trap "" TERM; exec sh "$SLIPWAY_MEMORY/mask"))
