#!/bin/sh
# Installs container engines, as root on Debian and Ubuntu. What is there already is left alone.
#
#   install_engines.sh buildah    buildah, runc, docker-registry
#   install_engines.sh docker     docker's daemon, its client, the buildx plugin
#   install_engines.sh            both
#
# No service is started. Exit status 2: this machine is not one where this can install.
set -eu

POLICY=/usr/sbin/policy-rc.d
PLUGINS=/usr/local/lib/docker/cli-plugins

say() { printf '%s\n' "$*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }
known() { apt-cache show "$1" >/dev/null 2>&1; }
has_buildx() { docker buildx version >/dev/null 2>&1; }

get_ready() {
    [ -z "${ready:-}" ] || return 0
    if ! has apt-get || [ "$(id -u)" -ne 0 ]; then
        say "Installing container engines needs root, and apt-get of Debian or Ubuntu."
        exit 2
    fi
    apt-get --quiet=2 update >&2
    ready=yes
}

# Packages would start their services, docker-registry's for everybody on the network.
install() {
    get_ready
    say "Installing $* …"
    if [ ! -e $POLICY ]; then
        trap 'rm -f $POLICY' EXIT
        printf '#!/bin/sh\nexit 101\n' >$POLICY
        chmod +x $POLICY
    fi
    DEBIAN_FRONTEND=noninteractive apt-get --quiet=2 --yes --no-install-recommends \
        --option Dpkg::Use-Pty=0 --option DPkg::Lock::Timeout=120 install "$@" >&2
}

install_buildah() {
    has buildah || install buildah
    has runc || install runc
    if ! has docker-registry; then
        install docker-registry
        [ ! -d /run/systemd/system ] || systemctl --quiet disable docker-registry.service
    fi
}

install_docker() {
    has dockerd || install docker.io
    has docker || install docker-cli # part of docker.io until Debian 12
    has_buildx && return
    get_ready
    if known docker-buildx; then install docker-buildx; else install_newer_buildx; fi
    has_buildx
}

# Debian 12 has no such package, and Debian 13's needs nothing newer than Debian 12 has. It comes from the
# mirror this machine uses, with package lists of its own, and only the plugin is taken out of it.
install_newer_buildx() {
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1)
    if [ -z "$mirror" ]; then
        say "This system has no package docker-buildx; see https://docs.docker.com/engine/install/"
        exit 2
    fi
    say "Fetching docker-buildx of Debian 13 …"
    work=$(mktemp -d)
    mkdir -p "$work/lists/partial" $PLUGINS
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$work/sources.list"
    (
        cd "$work"
        apt() {
            apt-get --quiet=2 --option "Dir::Etc::SourceList=$work/sources.list" --option Dir::Etc::SourceParts=- \
                --option "Dir::State::Lists=$work/lists" --option "Dir::Cache=$work" --option APT::Sandbox::User= \
                "$@" >&2
        }
        apt update
        apt download docker-buildx
        dpkg-deb -x docker-buildx_*.deb .
        cp usr/lib*/docker/cli-plugins/docker-buildx $PLUGINS/
    )
    rm -rf "$work"
}

case "${1:-all}" in
    buildah) install_buildah ;;
    docker) install_docker ;;
    all) install_buildah && install_docker ;;
    *) say "$0 [buildah | docker]" && exit 2 ;;
esac
