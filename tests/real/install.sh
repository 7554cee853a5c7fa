#!/bin/sh
# Sees to what `pytest tests/real` needs on Debian: Postgres, Redis, Chromium, nginx, Caddy, Prometheus with
# promtool, systemd's tools, and the reference servers of the AT Protocol from npm. May be run again at any time;
# takes a second when everything is there.
set -eu
cd "$(dirname "$0")"

NODE_MIN=20
STAMP=node_modules/.installed

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

has() {
    command -v "$1" >/dev/null 2>&1
}

has_postgres() {
    # Debian keeps its servers out of PATH; the highest version serves.
    [ -n "$(find /usr/lib/postgresql -path '*/bin/postgres' 2>/dev/null)" ]
}

apt_install() {
    as_root apt-get update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

# The tests run servers of their own: those that Debian starts on installation would only hold the
# default ports. Services that were there before are somebody else's.
stop_service() {
    if as_root service "$1" status >/dev/null 2>&1; then as_root service "$1" stop; fi
}

install_packages() {
    packages="" services=""
    has_postgres || { packages="$packages postgresql" services="$services postgresql"; }
    has redis-server || { packages="$packages redis-server" services="$services redis-server"; }
    has nginx || { packages="$packages nginx-light" services="$services nginx"; }
    has caddy || { packages="$packages caddy" services="$services caddy"; }
    has promtool || { packages="$packages prometheus" services="$services prometheus"; }
    has systemd-analyze || packages="$packages systemd"
    has setpriv || packages="$packages util-linux"
    has faketime || packages="$packages faketime"
    # With fonts for the scripts and the emoji of the world, or pictures show boxes.
    has chromium || packages="$packages chromium fonts-noto-core fonts-noto-color-emoji"
    has node || packages="$packages nodejs"
    has npm || packages="$packages npm"
    # One dependency, better-sqlite3, compiles itself where no build of it can be fetched.
    has make || packages="$packages make"
    has g++ || packages="$packages g++"
    has python3 || packages="$packages python3"
    [ -n "$packages" ] || return 0
    # shellcheck disable=SC2086  # lists of plain words
    apt_install $packages
    for service in $services; do stop_service "$service"; done
}

check_node() {
    version=$(node -p 'process.versions.node.split(".")[0]')
    if [ "$version" -lt "$NODE_MIN" ]; then
        echo "install.sh: Node $NODE_MIN or newer is needed, this is $(node --version)" >&2
        exit 1
    fi
}

# What node_modules was made from: the lock, and the binary interface that native modules are built for.
wanted() {
    cat package.json package-lock.json .npmrc | sha256sum
    node -p process.versions.modules
}

install_modules() {
    if [ -f "$STAMP" ] && [ "$(wanted)" = "$(cat "$STAMP")" ]; then return 0; fi
    # The headers of the system save fetching them for the compiler.
    if [ -e /usr/include/node/node.h ]; then export npm_config_nodedir=/usr; fi
    npm ci --no-progress
    wanted >"$STAMP"
}

install_packages
check_node
install_modules
