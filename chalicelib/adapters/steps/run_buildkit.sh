#!/bin/sh
# run_buildkit: runs BuildKit in a pod, with the arguments of buildctl. The push is a second run with everything cached:
# its session asks for a new login.
# shellcheck disable=SC1091 # the files come with the materials
cat fetch.log
rm fetch.log
printf 'Building: %s\n' "$SLIPWAY_IMAGE"
for kind in build-arg label; do
  while read -r name value; do
    set -- "$@" --opt "$kind:$name=$(printf '%s' "$value" | base64 -d)"
  done <"$SLIPWAY_MEMORY/${kind}s"
done
if [ -s "$SLIPWAY_MEMORY/epoch" ]; then # first, so that a build argument of the build overrides it
  set -- --opt "build-arg:SOURCE_DATE_EPOCH=$(cat "$SLIPWAY_MEMORY/epoch")" "$@"
  SLIPWAY_OUTPUT=$SLIPWAY_OUTPUT,rewrite-timestamp=true
fi
for file in "$SLIPWAY_MEMORY/secrets"/*; do
  if [ -f "$file" ]; then set -- "$@" --secret "id=${file##*/},src=$file"; fi
done
tools=$(mktemp -d)
{
  cp "$SLIPWAY_MEMORY/docker-credential-slipway" "$tools" &&
    chmod +x "$tools/docker-credential-slipway" &&
    export PATH="$tools:$PATH" &&
    { docker-credential-slipway get </dev/null >/dev/null || { printf 'ERROR: the login to the registry failed\n'; false; }; } &&
    rm -f "$SLIPWAY_MEMORY/login" &&
    buildctl-daemonless.sh build "$@" ${SLIPWAY_NOCACHE:+--no-cache} \
      ${SLIPWAY_CACHE:+--import-cache "$SLIPWAY_CACHE"} &&
    buildctl-daemonless.sh build "$@" ${SLIPWAY_CACHE:+--export-cache "$SLIPWAY_CACHE,$SLIPWAY_CACHE_OPTIONS"} \
      --metadata-file "$tools/metadata" --output "$SLIPWAY_OUTPUT" &&
    sed -n 's/.*"containerimage.digest": *"\([^"]*\)".*/\1/p' "$tools/metadata" >"$SLIPWAY_MEMORY/digest" &&
    printf 'Pushing finished: %s@%s\n' "${SLIPWAY_IMAGE%:*}" "$(cat "$SLIPWAY_MEMORY/digest")" &&
    . "$SLIPWAY_MEMORY/report_image"
  printf '%s' "$?" >"$tools/status"
} 2>&1 | sh "$SLIPWAY_MEMORY/mask"
status=$(cat "$tools/status")
printf 'slipway-end %s\n' "$SLIPWAY_NONCE"
exit "$status"
