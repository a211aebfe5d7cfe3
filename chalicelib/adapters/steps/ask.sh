#!/bin/sh
# ask: sends a request about this build to the API. Arguments: the route, then fields (name=value). Writes materials to
# files, prints any other answer. Fails at once if the API refuses; repeats for five minutes if it does not answer.
# busybox's wget needs the secret as an argument; curl reads it from a file, so that no list of processes shows it.
set -u
umask 077
what=$1 secret=${SLIPWAY_SECRET:-} answer=$SLIPWAY_MEMORY/answer.$$
[ -n "$secret" ] || secret=$(cat "$SLIPWAY_SECRET_FILE")
shift
mkdir -p "$SLIPWAY_MEMORY/secrets"
trap 'rm -f "$answer" "$answer.fields"' EXIT
printf 'attempt=%s' "$SLIPWAY_ATTEMPT" >"$answer.fields"
[ $# -eq 0 ] || printf '&%s' "$@" >>"$answer.fields"
until=$(($(date +%s) + 300)) pause=1
while true; do
  : >"$answer"
  if command -v curl >/dev/null; then
    status=$(printf 'header = "Authorization: Build %s"\n' "$secret" | curl --config - --silent --max-time 60 \
      --data "@$answer.fields" --output "$answer" --write-out '%{http_code}' "$SLIPWAY_API/$what")
  elif said=$(timeout 60 wget -O "$answer" --header "Authorization: Build $secret" \
    --post-file "$answer.fields" "$SLIPWAY_API/$what" 2>&1); then
    status=200
  else
    status=$(printf '%s' "$said" | sed -n 's/.*\(HTTP\/[0-9.]*\|ERROR\) \([0-9]\{3\}\).*/\2/p' | tail -n 1)
  fi
  case "${status:-000}" in
    200) break ;;
    408 | 409 | 429) ;;
    4??)
      printf 'ERROR: the API refuses %s to this build: %s %s\n' "${what#_}" "$status" "$(head -c 300 "$answer")" >&2
      exit 1
      ;;
  esac
  if [ "$(date +%s)" -ge "$until" ]; then
    printf 'ERROR: the API did not answer this build, asked for %s: %s\n' "${what#_}" "${status:-000}" >&2
    exit 1
  fi
  sleep "$pause"
  pause=$((pause < 16 ? pause * 2 : 30))
done
if [ "$what" = _materials ]; then
  while read -r name text; do
    printf '%s' "$text" | base64 -d >"$SLIPWAY_MEMORY/$name" || exit 1
  done <"$answer"
else
  cat "$answer"
fi
