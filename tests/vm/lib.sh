# What themes of the machine ring are written with: machines that boot, packages
# that are installed, and waiting for what is expected.
# shellcheck shell=bash
#
# WORK is a directory of this theme, REPO a repository of packages, CACHE where
# root directories are kept; all are given by `run`.

MACHINES=()

step() {
    echo "[$SECONDS s] $*"
}

fail() {
    echo "FAILED: $*"
    evidence
    exit 1
}

# What is shown of a world in which something failed.
evidence() {
    journals
}

journals() {
    local machine
    for machine in "${MACHINES[@]}"; do
        echo "--- journal of $machine"
        journalctl -q -D "$WORK/$machine/upper/var/log/journal" --no-pager -o short-monotonic \
            -u 'isthmus-*' 2>/dev/null | grep -v '"direction":' | tail -40 || true
    done
}

# eventually SECONDS COMMAND…: until it succeeds.
eventually() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >"$WORK/last" 2>&1; do
        [ $SECONDS -lt "$end" ] || fail "$* ($(tail -3 "$WORK/last"))"
        sleep 0.1
    done
}

# seconds_of COMMAND…: how long it takes; its output is in $WORK/last.
seconds_of() {
    local from=$EPOCHREALTIME
    "$@" >"$WORK/last" 2>&1 || fail "$*: $(tail -20 "$WORK/last")"
    awk "BEGIN { print $EPOCHREALTIME - $from }"
}

# at_most LIMIT SECONDS WHAT…
at_most() {
    awk "BEGIN { exit !($2 <= $1) }" || fail "${*:3} took $2 s, more than $1"
}

# within LIMIT SECONDS WHAT…: on a machine that has nothing else to do. Others take
# up to three times as long, and it is said.
within() {
    awk "BEGIN { exit !($2 <= $1) }" || echo "slow: ${*:3} took $2 s, more than $1"
    at_most "$(($1 * 3))" "$2" "${@:3}"
}

# --- machines

# machine NAME SUITE [legacy | containers]: one that is not booted yet, with the
# root directory of a Debian, the repository, and the network of its name.
machine() {
    local name=$1 dir=$WORK/$1 root=$WORK/$1/root number=${#MACHINES[@]}
    MACHINES+=("$name")
    mkdir -p "$dir"/{upper,work,root}
    mount -t overlay overlay -o "lowerdir=$CACHE/$2-$BASE_VERSION,upperdir=$dir/upper,workdir=$dir/work" "$root"
    mkdir -p "$root/var/log/journal" "$root/srv/isthmus"
    # An id of its own, and not a first boot: that would enable every unit.
    od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$root/etc/machine-id"
    rm -f "$root/etc/resolv.conf"
    echo "$name" >"$root/etc/hostname"
    rm -f "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*
    install -D -m 0644 "$REPO/isthmus.asc" "$root/usr/share/keyrings/isthmus.asc"
    echo "deb [signed-by=/usr/share/keyrings/isthmus.asc] file:/srv/isthmus/apt stable main" \
        >"$root/etc/apt/sources.list.d/isthmus.list"
    [ "${3:-}" = legacy ] || touch "$dir/unified"
    [ "${3:-}" != containers ] || touch "$dir/containers"
    connect "$name" $((number + 1))
}

# connect NAME NUMBER: its network, 10.77.0.NUMBER at one bridge.
connect() {
    ip link show br0 >/dev/null 2>&1 || { ip link add br0 type bridge && ip link set br0 up; }
    ip netns add "$1"
    ip link add "$1" type veth peer name eth0 netns "$1"
    ip link set "$1" master br0 up
    ip -n "$1" addr add "10.77.0.$2/24" dev eth0
    ip -n "$1" link set eth0 up
    ip -n "$1" link set lo up
}

# boot NAME…: all at once, and waits for them.
boot() {
    local name
    for name in "$@"; do
        start_machine "$name"
    done
    for name in "$@"; do
        eventually 60 in_machine "$name" systemctl is-system-running
    done
}

start_machine() {
    local dir=$WORK/$1 variables=() filter=()
    [ ! -e "$dir/unified" ] || variables=(SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1)
    # What a machine of its own would let a runtime of containers do.
    [ ! -e "$dir/containers" ] || {
        variables+=(SYSTEMD_NSPAWN_API_VFS_WRITABLE=network)
        filter=(--system-call-filter='add_key keyctl bpf')
    }
    (
        join_cgroup "$1"
        exec env "${variables[@]}" systemd-nspawn --quiet --boot --directory="$dir/root" --machine="$1" \
            --register=no --keep-unit --console=pipe --resolv-conf=off --timezone=off --capability=CAP_NET_ADMIN \
            "${filter[@]}" --bind-ro="$REPO:/srv/isthmus" \
            --network-namespace-path="/run/netns/$1" </dev/null >>"$dir/console" 2>&1
    ) &
    echo $! >"$dir/nspawn"
}

# Every container in a place of its own, also where no systemd runs the host.
join_cgroup() {
    local at
    for at in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
        [ -e "$at/cgroup.procs" ] || continue
        mkdir -p "$at/$CGROUP-$1"
        echo "$BASHPID" >"$at/$CGROUP-$1/cgroup.procs"
    done
}

# reboot NAME: as `systemctl reboot` does it.
reboot() {
    in_machine "$1" systemctl reboot
    ended "$1"
    boot "$1"
}

# ended NAME: waits until a machine is off.
ended() {
    wait "$(cat "$WORK/$1/nspawn")" || true
}

# in_machine NAME COMMAND…: in a machine that runs.
in_machine() {
    local pid
    pid=$(first_child "$(cat "$WORK/$1/nspawn")") || return
    shift
    nsenter --target "$pid" --mount --uts --ipc --net --pid -- "$@"
}

first_child() {
    local child
    child=$(cat "/proc/$1/task/$1/children")
    [ -n "$child" ] && echo "${child%% *}"
}

# in_network NAME COMMAND…: a program of this host, in a machine's network.
in_network() {
    ip netns exec "$@"
}

# main_pid MACHINE UNIT: in the machine's own numbers.
main_pid() {
    in_machine "$1" systemctl show "$2" -p MainPID --value
}

# journal MACHINE UNIT MATCH…: the fields of its entries.
journal() {
    local dir=$WORK/$1/root/var/log/journal unit=$2
    shift 2
    journalctl -q -D "$dir" --no-pager -o json "_SYSTEMD_UNIT=$unit.service" "$@"
}

# --- packages

# apt MACHINE COMMAND…: apt-get, from our repository and no other.
apt() {
    local name=$1
    shift
    in_machine "$name" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin apt-get -y -qq "$@"
}

# install MACHINE PACKAGE[=VERSION]…
install_packages() {
    apt "$1" update >"$WORK/$1/apt" 2>&1 || fail "$1: $(cat "$WORK/$1/apt")"
    apt "$1" install "${@:2}" >>"$WORK/$1/apt" 2>&1 || fail "$1: $(tail -30 "$WORK/$1/apt")"
}

# --- a site

# site MACHINE: makes it the control plane and the gateway of site west.
site() {
    local address start
    address=$(ip -n "$1" -4 -o addr show dev eth0 | awk '{ sub("/.*", "", $4); print $4 }')
    in_machine "$1" meshctl site init west --trust-domain west.example \
        --gateway-address "$address:8443" >"$WORK/init" || fail "site init: $(cat "$WORK/init")"
    read -ra start < <(grep -o 'systemctl enable.*' "$WORK/init")
    in_machine "$1" "${start[@]}" >"$WORK/last" 2>&1 || fail "${start[*]}: $(cat "$WORK/last")"
    eventually 20 in_machine "$1" meshctl check
    in_machine "$1" systemctl is-active --quiet isthmus-federation isthmus-gateway || fail "no control plane"
    CONTROL=$1
}

token() {
    in_machine "$CONTROL" meshctl token create --namespace shop --account web 2>/dev/null
}

join() {
    token | in_machine "$1" meshctl join - >"$WORK/joined" 2>&1 || fail "$1: $(cat "$WORK/joined")"
}

# add_application MACHINE: one, and what an operator writes about it; before it
# boots.
add_application() {
    local root=$WORK/$1/root
    mkdir -p "$root/srv/web" "$root/etc/isthmus/services.d"
    echo "hello from $1" >"$root/srv/web/index.html"
    cat >"$root/etc/systemd/system/web.service" <<'UNIT'
[Service]
ExecStart=/usr/bin/busybox httpd -f -p 127.0.0.1:8080 -h /srv/web
[Install]
WantedBy=multi-user.target
UNIT
    systemctl --quiet --root="$root" enable web
    printf 'service: web\nnamespace: shop\nport: 8080\nprotocol: http\ncheck: { http: /, interval: 1s }\n' \
        >"$root/etc/isthmus/services.d/web.yaml"
}

# The machines that back web.shop, as federation has it.
backing() {
    in_machine "$CONTROL" meshctl -o json endpoints web.shop | grep -o '"locality": "[^"]*"' | cut -d'"' -f4 | sort | xargs
}

backs() {
    [ "$(backing)" = "$*" ] || { echo "web.shop is backed by: $(backing)"; return 1; }
}

# request MACHINE: one to web.shop, by its proxy.
request() {
    in_machine "$1" curl -sS --fail-with-body --max-time 10 -H 'Host: web.shop' http://127.0.0.1:4140/
}

# requests MACHINE: one after the other, until there is $WORK/enough. What is said
# of those that fail is in $WORK/failed.
requests() {
    while [ ! -e "$WORK/enough" ]; do
        if request "$1" >"$WORK/answer" 2>"$WORK/error"; then
            cat "$WORK/answer" >>"$WORK/answers"
        else
            echo "at $(date +%T.%N): $(cat "$WORK/answer" "$WORK/error")" >>"$WORK/failed"
        fi
        sleep 0.02
    done
}

none_failed() {
    [ ! -e "$WORK/failed" ] || fail "$* lost requests: $(cat "$WORK/failed")"
}

# --- names

# resolver MACHINE: the site's own, at the machine's 10.77.0.1. It has every name
# at 10.77.0.9 but web.shop, which is not there; what it was asked is in
# $WORK/asked.
resolver() {
    in_network "$1" python3 - >"$WORK/asked" 2>&1 <<'PYTHON' &
import socket, struct
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("10.77.0.1", 53))
while True:
    query, client = server.recvfrom(4096)
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode())
        at += query[at] + 1
    kind, = struct.unpack(">H", query[at + 1:at + 3])
    name = ".".join(labels)
    print(name, flush=True)
    answer = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4\x0a\x4d\0\x09" if kind == 1 and name != "web.shop" else b""
    code = b"\x81\x83" if name == "web.shop" else b"\x81\x80"
    head = query[:2] + code + b"\0\1" + (b"\0\1" if answer else b"\0\0") + b"\0\0\0\0"
    server.sendto(head + query[12:at + 5] + answer, client)
PYTHON
}

# address MACHINE NAME [ahostsv6]
address() {
    in_machine "$1" getent "${3:-ahostsv4}" "$2" | awk '{ print $1; exit }'
}

# leads_to MACHINE NAME PATTERN [ahostsv6]
leads_to() {
    local said
    said=$(address "$1" "$2" "${4:-}")
    # shellcheck disable=SC2254
    case $said in $3) ;; *) echo "$2 is at ${said:-no address} on $1"; return 1 ;; esac
}

# capture MACHINE: what its capture.yaml says, and virtual addresses.
capture() {
    local command
    eventually 20 in_machine "$1" curl -sf http://127.0.0.1:4191/ready
    for command in 'enable --confirm-within 60s' confirm; do
        # shellcheck disable=SC2086
        in_machine "$1" meshctl vm capture $command >"$WORK/last" 2>&1 || fail "$1: $(cat "$WORK/last")"
    done
}

# --- a thousand connections

# add_load MACHINE: what the connections lead to, and what an operator writes
# about it.
add_load() {
    local services=$WORK/$1/root/etc/isthmus/services.d
    mkdir -p "$services"
    cat >"$services/life.yaml" <<'YAML'
service: life
namespace: shop
ports:
- { name: http, port: 80, target: 8090, protocol: http }
- { name: grpc, port: 81, target: 8091, protocol: grpc }
- { name: echo, port: 7000, target: 8092, protocol: tcp }
YAML
    in_network "$1" "$LOAD" serve 127.0.0.1 &
}

# take_load MACHINE: gives its proxy a door for bytes.
take_load() {
    printf 'listeners: [{ listen: 127.0.0.1:7000, service: life.shop, port: echo }]\n%s\n' "${2:-}" \
        >>"$WORK/$1/root/etc/isthmus/proxy.yaml"
    replaced "$1" isthmus-proxy systemctl reload isthmus-proxy
}

# replaced MACHINE UNIT COMMAND…: after it, another process is the unit's.
replaced() {
    local machine=$1 unit=$2 before
    before=$(main_pid "$machine" "$unit")
    in_machine "$machine" "${@:3}" >"$WORK/last" 2>&1 || fail "${*:3}: $(cat "$WORK/last")"
    another_pid() {
        local after
        after=$(main_pid "$1" "$2")
        [ "$after" != "$3" ] && [ "$after" != 0 ] && in_machine "$1" systemctl is-active --quiet "$2"
    }
    eventually 30 another_pid "$machine" "$unit" "$before"
}

# keep MACHINE KINDS EACH CLIENTS: opens connections; `lap` looks at them.
keep() {
    rm -f "$WORK/laps" "$WORK/lapped"
    mkfifo "$WORK/laps" "$WORK/lapped"
    in_network "$1" "$LOAD" keep 127.0.0.1:4140 127.0.0.1:7000 "${@:2}" <"$WORK/laps" >"$WORK/lapped" 2>"$WORK/load" &
    LOADING=$!
    exec 8>"$WORK/laps" 9<"$WORK/lapped"
}

# lap WHAT…: all of them have carried bytes both ways since, and nothing failed.
lap() {
    local said
    echo "$*" >&8
    read -r -t 90 said <&9 || fail "$*: no connections any more: $(tail -5 "$WORK/load")"
    [[ $said != FAILED* ]] || fail "$*: $said"
    step "$said"
}

# let_go: closes them; none has failed.
let_go() {
    exec 8>&-
    wait "$LOADING" || fail "the connections: $(cat <&9) $(tail -5 "$WORK/load")"
}
