#!/bin/bash
# build_and_push: with the engine that SLIPWAY_ENGINE names; leaves the image's digest in memory.
# A push is a run of its own, with everything cached: its session asks for a login that is new by then.
build_and_push() (
  set -e
  network=(${SLIPWAY_NETWORK:+--network "$SLIPWAY_NETWORK"})
  nocache=(${SLIPWAY_NOCACHE:+--no-cache})
  told=()
  while read -r name value; do
    told+=(--build-arg "$name=$(printf '%s' "$value" | base64 -d)")
  done <"$SLIPWAY_MEMORY/build-args"
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
      build=(docker buildx build --progress plain --provenance=false "${network[@]}" "${told[@]}")
      "${build[@]}" "${nocache[@]}" --cache-from "$cached" --output type=cacheonly .
      "${build[@]}" --cache-to "$cached,mode=max,image-manifest=true,oci-mediatypes=true,ignore-error=true" \
        --metadata-file "$tools/metadata" --tag "$SLIPWAY_IMAGE" --push .
      ;;
    docker)
      docker buildx build --progress plain --provenance=false "${network[@]}" "${told[@]}" "${nocache[@]}" \
        --metadata-file "$tools/metadata" --tag "$SLIPWAY_IMAGE" --push .
      # In the engine's store nobody is asked for a login.
      docker image rm --no-prune "$SLIPWAY_IMAGE" >/dev/null
      ;;
    podman | buildah)
      # Without a name, by which other builds would take the image from the store, where nobody asks for a login.
      "$SLIPWAY_ENGINE" build --layers --format docker "${network[@]}" "${told[@]}" "${nocache[@]}" \
        --iidfile "$tools/image-id" .
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
