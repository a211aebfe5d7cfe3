#!/bin/sh
# fetch_code: the Dockerfile says COPY build, so the folder exists even without code
(
  set -e
  cp "$SLIPWAY_MEMORY/Dockerfile" Dockerfile
  mkdir code
  is_public() { # an address of the Internet, not of this machine, its network, the cluster or metadata
    case "$1" in
      2001:0:* | 2001::* | 2002:*) return 1 ;; # they carry addresses of IPv4
      [23]???:*) ;;
      *:* | 0.* | 10.* | 127.* | 169.254.* | 192.0.0.* | 192.168.* | 198.1[89].* | 22[4-9].* | 2[3-5]?.*) return 1 ;;
      172.1[6-9].* | 172.2?.* | 172.3[01].*) return 1 ;;
      100.6[4-9].* | 100.[7-9]?.* | 100.1[01]?.* | 100.12[0-7].*) return 1 ;;
    esac
  }
  refused() { printf 'ERROR: %s\n' "$1"; exit 1; }
  if [ -n "$SLIPWAY_GIT_URL" ]; then
    printf 'Fetching %s at %s\n' "$SLIPWAY_GIT_URL" "$SLIPWAY_GIT_REVISION"
    authority=${SLIPWAY_GIT_URL#https://}
    authority=${authority%%/*}
    port=
    case "$authority" in
      '['*) host=${authority#'['}; host=${host%%']'*}; port=${authority##*']'}; port=${port#:} ;;
      *:*) host=${authority%:*}; port=${authority##*:} ;;
      *) host=$authority ;;
    esac
    # curl would read other hosts in another way than the resolver
    case "$host" in '' | *. | *[!A-Za-z0-9._:-]*) refused "$host is no host name" ;; esac
    addresses=$({ getent ahosts "$host" || getent hosts "$host"; } 2>/dev/null | cut -d ' ' -f 1 | sort -u)
    # a proxy resolves names by itself
    [ -n "$addresses${HTTPS_PROXY:-}${https_proxy:-}" ] || refused "$host could not be resolved"
    case " $(cat "$SLIPWAY_MEMORY/private-git-hosts") " in
      *" $host "*) ;;
      *)
        for address in $addresses; do
          is_public "$address" || refused "$host has the address $address, which is not of the Internet"
        done
        ;;
    esac
    set -- -c http.followRedirects=false -c credential.helper=
    case "$host" in # git takes these addresses, whatever the name leads to by then
      *:*) ;;
      *) set -- "$@" -c "http.curloptResolve=$host:${port:-443}:$(printf '%s' "$addresses" | tr '\n' ,)" ;;
    esac
    if [ -f "$SLIPWAY_MEMORY/git-login" ]; then
      # The login is in no command line and goes to this host alone; it ends here, whatever happens.
      trap 'rm -f "$SLIPWAY_MEMORY/git-login" "$SLIPWAY_MEMORY/git-masks"' EXIT
      # shellcheck disable=SC2016 # the helper's own shell expands it
      set -- "$@" -c "credential.https://$authority.helper="'!f() { [ "$1" != get ] || cat "$SLIPWAY_MEMORY/git-login"; }; f'
    fi
    export GIT_ALLOW_PROTOCOL=https GIT_TERMINAL_PROMPT=0
    status=0 # git shows what the host says, which knows the login
    git "$@" clone --quiet --no-checkout -- "$SLIPWAY_GIT_URL" code >git.log 2>&1 || status=$?
    sh "$SLIPWAY_MEMORY/mask" git-masks <git.log
    rm git.log
    [ "$status" -eq 0 ]
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
    [ -f "$found" ] || refused "the code has no file $SLIPWAY_DOCKERFILE"
    cp -- "$found" Dockerfile
  fi
  found=$(inside "${SLIPWAY_CONTEXT:-.}")
  [ -d "$found" ] || refused "the code has no directory $SLIPWAY_CONTEXT"
  mv -- "$found" build
)
