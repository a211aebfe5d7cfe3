#!/bin/bash
# build_and_push: with the engine that SLIPWAY_ENGINE names; leaves the image's digest in memory.
# A push is a run of its own, with everything cached: its session asks for a login that is new by then.
build_and_push() (
  set -e
  network=(${SLIPWAY_NETWORK:+--network "$SLIPWAY_NETWORK"})
  nocache=(${SLIPWAY_NOCACHE:+--no-cache})
  told=() labels=()
  while read -r name value; do
    told+=(--build-arg "$name=$(printf '%s' "$value" | base64 -d)")
  done <"$SLIPWAY_MEMORY/build-args"
  while read -r name value; do
    labels+=(--label "$name=$(printf '%s' "$value" | base64 -d)")
  done <"$SLIPWAY_MEMORY/labels"
  epoch=$(cat "$SLIPWAY_MEMORY/epoch" 2>/dev/null || true)
  for file in "$SLIPWAY_MEMORY/secrets"/*; do
    if [ -f "$file" ]; then told+=(--secret "id=${file##*/},src=$file"); fi
  done
  tools=$(mktemp -d)
  trap 'rm -rf "$tools"' EXIT
  cp "$SLIPWAY_MEMORY/docker-credential-slipway" "$tools" # memory may be mounted so that nothing runs there
  chmod +x "$tools/docker-credential-slipway"
  export PATH=$tools:$PATH DOCKER_CONFIG=${DOCKER_CONFIG:-$SLIPWAY_MEMORY}
  # Else engines go on without a login, and fail at the push.
  docker-credential-slipway get </dev/null >/dev/null || { printf 'ERROR: the login to the registry failed\n'; exit 1; }
  rm -f "$SLIPWAY_MEMORY/login" # the first session asks for one of its own, which lives longer
  printf 'Building: %s\n' "$SLIPWAY_IMAGE"
  case "$SLIPWAY_ENGINE" in
    docker-container)
      buildkit=$SLIPWAY_BUILDKIT_IMAGE
      # A copy of our own, if there is one, does not meet Docker Hub's limits.
      copy="${SLIPWAY_TOOLS_REPOSITORY:-}@${buildkit##*@}"
      if docker pull --quiet "$copy" >/dev/null 2>&1; then buildkit=$copy; fi
      docker buildx create --use --driver docker-container --driver-opt "image=$buildkit" \
        --driver-opt env.BUILDKIT_STEP_LOG_MAX_SIZE=-1 --driver-opt env.BUILDKIT_STEP_LOG_MAX_SPEED=-1 >/dev/null
      cached="type=registry,ref=$SLIPWAY_CACHE_REPOSITORY:layers"
      build=(docker buildx build --progress plain --provenance=false ${epoch:+--build-arg "SOURCE_DATE_EPOCH=$epoch"}
        "${network[@]}" "${told[@]}" "${labels[@]}")
      "${build[@]}" "${nocache[@]}" --cache-from "$cached" --output type=cacheonly .
      "${build[@]}" --cache-to "$cached,mode=max,image-manifest=true,oci-mediatypes=true,ignore-error=true" \
        --output "type=image,name=$SLIPWAY_IMAGE,push=true${epoch:+,rewrite-timestamp=true}" \
        --metadata-file "$tools/metadata" .
      ;;
    docker)
      docker buildx build --progress plain --provenance=false "${network[@]}" "${told[@]}" "${labels[@]}" \
        "${nocache[@]}" --metadata-file "$tools/metadata" --tag "$SLIPWAY_IMAGE" --push .
      # In the engine's store nobody is asked for a login.
      docker image rm --no-prune "$SLIPWAY_IMAGE" >/dev/null
      ;;
    podman | buildah)
      # Without a name, by which other builds would take the image from the store, where nobody asks for a login.
      # One time for all layers, the first that zip files can have: others' layers in the cache have it as well.
      # Only docker's format has these instructions, and there images are never equal.
      format=oci
      if grep -Eiq '^[[:space:]]*(HEALTHCHECK|ONBUILD|SHELL)[[:space:]]' Dockerfile; then
        format=docker told+=("${labels[@]}") labels=()
      fi
      build=("$SLIPWAY_ENGINE" build --layers --format "$format" --timestamp 315532800 --iidfile "$tools/image-id")
      "${build[@]}" "${network[@]}" "${told[@]}" "${nocache[@]}" .
      if [ "${#labels[@]}" -gt 0 ]; then # else cached layers would have those of the build that made them
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
# The mask outlives a stop: who ends the build waits for the last line, and so for the engine.
(set -o pipefail; build_and_push 2>&1 | (trap "" TERM; exec sh "$SLIPWAY_MEMORY/mask"))
