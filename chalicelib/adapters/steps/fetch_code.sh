#!/bin/sh
# fetch_code: puts the code into build/, which exists even without code, because the Dockerfile copies it
(
  set -e
  cp "$SLIPWAY_MEMORY/Dockerfile" Dockerfile
  mkdir code
  is_public() { # whether $1 is an address of the Internet, not of this machine, its network, the cluster or metadata
    case "$1" in
      2001:0:* | 2001::* | 2002:*) return 1 ;; # they contain IPv4 addresses
      [23]???:*) ;;
      *:* | 0.* | 10.* | 127.* | 169.254.* | 192.0.0.* | 192.168.* | 198.1[89].* | 22[4-9].* | 2[3-5]?.*) return 1 ;;
      172.1[6-9].* | 172.2?.* | 172.3[01].*) return 1 ;;
      100.6[4-9].* | 100.[7-9]?.* | 100.1[01]?.* | 100.12[0-7].*) return 1 ;;
    esac
  }
  refused() { printf 'ERROR: %s\n' "$1"; exit 1; }
  git_setting() { # sets $1 to $2 for all following git commands
    count=${GIT_CONFIG_COUNT:-0}
    export "GIT_CONFIG_KEY_$count=$1" "GIT_CONFIG_VALUE_$count=$2" "GIT_CONFIG_COUNT=$((count + 1))"
  }
  git_masked() { # runs git; masks its output, because a host knows the login and git prints its messages
    status=0
    git "$@" >"$SLIPWAY_MEMORY/git.log" 2>&1 || status=$?
    sh "$SLIPWAY_MEMORY/mask" git-masks <"$SLIPWAY_MEMORY/git.log"
    rm "$SLIPWAY_MEMORY/git.log"
    return "$status"
  }
  check_host() { # refuses the URL $1 unless its host is public; git then connects only to the checked addresses
    case "$1" in https://*) ;; *) refused "code and submodules are fetched by https alone, not from $1" ;; esac
    authority=${1#https://}
    authority=${authority%%/*}
    port=
    case "$authority" in
      '['*) host=${authority#'['}; host=${host%%']'*}; port=${authority##*']'}; port=${port#:} ;;
      *:*) host=${authority%:*}; port=${authority##*:} ;;
      *) host=$authority ;;
    esac
    # curl and the resolver could understand other host names differently
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
    case "$host" in
      *:*) ;;
      *) git_setting http.curloptResolve "$host:${port:-443}:$(printf '%s' "$addresses" | tr '\n' ,)" ;;
    esac
  }
  locate() { # sets `url` to the repository at $1; follows redirects on the same host, because only that was checked
    url=$1
    check_host "$url"
    for _ in 1 2 3 4; do
      moved=$(GIT_TRACE_CURL=1 GIT_TRACE_CURL_NO_DATA=1 git ls-remote "$url" HEAD 2>&1 |
        sed -n 's|.*<= Recv header: [Ll]ocation: *\(.*\)/info/refs.*|\1|p' | head -n 1)
      case "$moved" in
        '') return 0 ;;
        "https://$authority/"*) url=$moved ;;
        /*) url=https://$authority$moved ;;
        *) refused "$1 has moved to another host: $moved" ;;
      esac
    done
    refused "$1 is redirected again and again"
  }
  pointers() { # files that are pointers of git LFS
    git ls-files -z ':(attr:filter=lfs)' | xargs -0 -r grep -l '^version https://git-lfs.github.com/spec/' --
  }
  fill() ( # fetches submodules and LFS files of the repository in $1, which is nested $2 deep
    cd "$1"
    if git ls-files --stage | grep -q '^160000'; then
      [ "$2" -lt 5 ] || refused "submodules lie in one another more than 5 deep"
      git_masked submodule --quiet init
      while read -r line; do
        locate "${line##* }"
        setting=${line% *}
        git config "$setting" "$url"
        git config "${setting%.url}.update" checkout
      done <<END
$(git config --get-regexp '^submodule\..*\.url$')
END
      git_masked submodule --quiet update
      while IFS= read -r folder; do fill "$folder" $(($2 + 1)); done <<END
$(git submodule --quiet foreach pwd)
END
    fi
    if [ -n "$(pointers)" ] && git lfs version >/dev/null 2>&1; then
      remote=$(git config remote.origin.url) # not from .lfsconfig, which could name any host
      git_masked -c "lfs.url=${remote%.git}.git/info/lfs" lfs pull
    fi
    left=$(pointers | head -n 1)
    [ -z "$left" ] || refused "$left is only a pointer of git LFS: what it stands for could not be fetched here"
  )
  inside() { # prints the path $1 of the code, links resolved, or nothing if it leads out
    resolved=$(cd code && readlink -f -- "$1" 2>/dev/null) || return 0
    case "$resolved/" in "$(pwd -P)/code/"*) printf '%s' "$resolved" ;; esac
  }
  if [ -n "$SLIPWAY_GIT_URL" ]; then
    printf 'Fetching %s at %s\n' "$SLIPWAY_GIT_URL" "$SLIPWAY_GIT_REVISION"
    export GIT_ALLOW_PROTOCOL=https GIT_TERMINAL_PROMPT=0 GIT_LFS_SKIP_SMUDGE=1
    git_setting http.followRedirects false
    git_setting credential.helper ''
    if [ -f "$SLIPWAY_MEMORY/git-login" ]; then
      # The login is in no command line and is sent to this host alone; it is deleted in any case.
      trap 'rm -f "$SLIPWAY_MEMORY/git-login" "$SLIPWAY_MEMORY/git-masks"' EXIT
      authority=${SLIPWAY_GIT_URL#https://}
      # shellcheck disable=SC2016 # the helper's own shell expands it
      helper='!f() { [ "$1" != get ] || cat "$SLIPWAY_MEMORY/git-login"; }; f'
      git_setting "credential.https://${authority%%/*}.helper" "$helper"
    fi
    locate "$SLIPWAY_GIT_URL"
    git_masked clone --quiet --no-checkout -- "$url" code
    name=${SLIPWAY_GIT_REVISION#origin/}
    case "$SLIPWAY_GIT_REVISION" in
      origin/*) set -- "refs/remotes/origin/$name" "refs/tags/$name" ;;
      *) set -- "refs/tags/$name" "refs/remotes/origin/$name" "$name" ;;
    esac
    for place; do
      if commit=$(git -C code rev-parse --quiet --verify "$place^{commit}"); then break; fi
    done
    if [ -z "$commit" ]; then # neither a branch nor a tag: a pull request, another ref, a hash
      git_masked -C code fetch --quiet -- origin "$name" || refused "the repository has no branch, tag, commit or ref $name"
      commit=$(git -C code rev-parse --verify 'FETCH_HEAD^{commit}')
    fi
    git -C code -c advice.detachedHead=false checkout --quiet --detach "$commit"
    printf '%s\n' "$commit" >"$SLIPWAY_MEMORY/commit"
    printf 'The commit is %s\n' "$commit"
    fill code 0
    git -C code show --no-patch --format=%ct >"$SLIPWAY_MEMORY/epoch"
    for label in revision=%H created=%cd; do
      value=$(TZ=UTC0 git -C code show --no-patch --date=format-local:%Y-%m-%dT%H:%M:%SZ --format="${label#*=}" | base64)
      printf 'org.opencontainers.image.%s %s\n' "${label%%=*}" "$value" >>"$SLIPWAY_MEMORY/labels"
    done
    find code -name .git -prune -exec rm -rf {} +
  elif [ -f "$SLIPWAY_MEMORY/code_url" ]; then
    download() { # without our secret in the header, which storage would take for its own login
      if command -v curl >/dev/null; then
        printf 'url = "%s"\n' "$(cat "$SLIPWAY_MEMORY/code_url")" | curl --config - -sSf --output code.tar.gz
      else
        wget -q -O code.tar.gz "$(cat "$SLIPWAY_MEMORY/code_url")"
      fi
    }
    left=5
    until download; do # the link may have expired: fetch the materials again, with a new link
      left=$((left - 1))
      [ "$left" -gt 0 ] || { printf 'ERROR: the code could not be fetched\n'; exit 1; }
      sleep 5
      sh "$SLIPWAY_MEMORY/ask" _materials
    done
    tar --extract --gzip --file code.tar.gz --directory code --no-same-owner
    rm code.tar.gz
  fi
  if [ -n "$SLIPWAY_DOCKERFILE" ]; then
    found=$(inside "$SLIPWAY_DOCKERFILE")
    [ -f "$found" ] || refused "the code has no file $SLIPWAY_DOCKERFILE"
    cp -- "$found" Dockerfile
  fi
  found=$(inside "${SLIPWAY_CONTEXT:-.}")
  [ -d "$found" ] || refused "the code has no directory $SLIPWAY_CONTEXT"
  ignored=$(inside "${SLIPWAY_CONTEXT:-.}/.dockerignore")
  if [ -f "$ignored" ]; then # engines expect it beside `build`, so its patterns get the prefix build/
    sed -e '/^#/d' -e 's/^[[:space:]]*//' -e 's/[[:space:]]*$//' -e '/^$/d' \
      -e 's|^\(!\{0,1\}\)[[:space:]]*/*|\1build/|' -- "$ignored" >.dockerignore
  fi
  mv -- "$found" build
)
