#!/bin/bash
# build_and_push: with the engine that SLIPWAY_ENGINE names
(
  set -e
  network=(${SLIPWAY_NETWORK:+--network "$SLIPWAY_NETWORK"})
  nocache=(${SLIPWAY_NOCACHE:+--no-cache})
  printf 'Building: %s\n' "$SLIPWAY_IMAGE"
  case "$SLIPWAY_ENGINE" in
    docker-container)
      buildkit=$SLIPWAY_BUILDKIT_IMAGE
      # A copy in the cache repository, if there is one, does not meet Docker Hub's limits.
      copy="${SLIPWAY_CACHE_REPOSITORY:-}@${buildkit##*@}"
      if docker pull --quiet "$copy" >/dev/null 2>&1; then buildkit=$copy; fi
      docker buildx create --use --driver docker-container --driver-opt "image=$buildkit" >/dev/null
      cache=()
      if [ -n "${SLIPWAY_CACHE_REPOSITORY:-}" ]; then
        cached="$SLIPWAY_CACHE_REPOSITORY:$(printf '%s' "${SLIPWAY_IMAGE%:*}" | sha256sum | cut -c1-40)"
        cache=(--cache-from "type=registry,ref=$cached"
               --cache-to "type=registry,ref=$cached,mode=max,image-manifest=true,oci-mediatypes=true,ignore-error=true")
      fi
      docker buildx build --progress plain --provenance=false "${network[@]}" "${nocache[@]}" "${cache[@]}" \
        --tag "$SLIPWAY_IMAGE" --push .
      ;;
    docker)
      docker buildx build --progress plain --provenance=false "${network[@]}" "${nocache[@]}" \
        --tag "$SLIPWAY_IMAGE" --push .
      ;;
    podman | buildah)
      "$SLIPWAY_ENGINE" build --layers --format docker "${network[@]}" "${nocache[@]}" --tag "$SLIPWAY_IMAGE" .
      printf 'Pushing %s\n' "$SLIPWAY_IMAGE"
      "$SLIPWAY_ENGINE" push "$SLIPWAY_IMAGE"
      ;;
    *)
      printf 'ERROR: SLIPWAY_ENGINE is "%s"; expected docker-container, docker, podman or buildah\n' "$SLIPWAY_ENGINE"
      exit 2
      ;;
  esac
  printf 'Pushing finished: %s\n' "$SLIPWAY_IMAGE"
)
