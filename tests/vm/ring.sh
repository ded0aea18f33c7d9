# What a ring of themes is run with, here and in tests/k8s: root directories, a
# repository of packages, and namespaces that end with their theme.
# shellcheck shell=bash disable=SC2016,SC2154
#
# RING is the ring's directory, LIMIT the most seconds of one theme; `work` is
# removed at the end.

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/isthmus-nspawn
# Another one where what is in the root directories changes.
BASE_VERSION=3
INCLUDE=systemd,systemd-sysv,dbus,iproute2,curl,busybox,nftables,openssh-server,openssh-client,libgcc-s1,procps,gpgv,ca-certificates,libfaketime
TARGET=$(readlink -f "${CARGO_TARGET_DIR:-target}")
export CACHE BASE_VERSION TARGET

# base NAME SUITE [PACKAGES]: a root directory, once, whoever else wants it.
base() {
    local to=$CACHE/$1-$BASE_VERSION lock
    mkdir -p "$CACHE"
    exec {lock}>"$CACHE/lock"
    flock "$lock"
    [ -d "$to" ] || make_base "$to" "${@:2}"
    exec {lock}>&-
}

make_base() {
    local to=$1
    echo "--- making $to (once)"
    rm -rf "$to.new"
    debootstrap --variant=minbase --include="$INCLUDE${3:+,$3}" "$2" "$to.new" >"$CACHE/debootstrap.log" 2>&1 ||
        { tail "$CACHE/debootstrap.log"; exit 1; }
    rm -rf "$to.new"/var/cache/apt/archives/*.deb "$to.new"/var/lib/apt/lists/*
    mv "$to.new" "$to"
}

# repository PACKAGES…: of each kind, at $REPO, of what these directories have.
repository() {
    mkdir "$work/packages"
    local from
    for from in "$@"; do
        cp "$from"/*.{deb,rpm} "$work/packages/"
    done
    packaging/repo "$work/packages" "$REPO"
    rm -rf "$work/packages"
}

# theme NAME: in namespaces that end with it. It runs beside this shell, which
# hears of an interrupt at once, then.
theme() {
    local status=0
    export WORK=$work/$1 CGROUP=isthmus-${work##*/}-$1
    mkdir "$WORK"
    unshare --mount --net --pid --fork --kill-child --mount-proc \
        timeout --foreground "$LIMIT" bash -euo pipefail -c \
        'mount --make-rprivate /
         mount -t tmpfs none /run
         mkdir /run/netns
         . "$0/lib.sh"
         . "$0/themes/$1.sh"' "$RING" "$1" </dev/null &
    running=$!
    wait "$running" || status=$?
    running=''
    [ $status != 124 ] || echo "FAILED: not done within $LIMIT s"
    [ $status = 0 ] || { echo "--- $1 FAILED"; exit 1; }
    rm -rf "$WORK"
}

# Nothing stays, whatever has happened.
clean() {
    [ -z "$running" ] || { kill -KILL "$running" && wait "$running"; } 2>/dev/null || true
    local left
    # What was killed leaves its cgroup when it is gone.
    for _ in {1..50}; do
        find /sys/fs/cgroup -depth -path "*/isthmus-${work##*/}-*" -type d -exec rmdir {} + 2>/dev/null || true
        left=$(find /sys/fs/cgroup -path "*/isthmus-${work##*/}-*" -type d -print -quit)
        [ -n "$left" ] || break
        sleep 0.1
    done
    [ -z "$left" ] || echo "left behind: $left"
    rm -rf "$work"
}

# themes NAME…: those, or every theme of the ring, into THEMES.
themes() {
    local name
    THEMES=("$@")
    [ $# -gt 0 ] || for name in "$RING"/themes/*.sh; do
        name=${name##*/}
        THEMES+=("${name%.sh}")
    done
    for name in "${THEMES[@]}"; do
        [ -e "$RING/themes/$name.sh" ] || { echo "$name: no such theme in $RING/themes"; exit 1; }
    done
}

# run_themes: THEMES, one after the other.
run_themes() {
    local name start
    for name in "${THEMES[@]}"; do
        start=$SECONDS
        echo "--- $name"
        theme "$name"
        echo "--- $name: $((SECONDS - start)) s"
    done
}
