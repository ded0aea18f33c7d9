# Docker's own DNS, its rules and its containers are left as they are, on a
# machine where names of the mesh resolve.
# shellcheck shell=bash

machine control bookworm
machine host docker containers
add_application control
printf 'service: web\nnamespace: shop\nports: [{ name: http, port: 80, target: 8080, protocol: http }]\n' \
    >"$WORK/control/root/etc/isthmus/services.d/web.yaml"
ln -s ../run/systemd/resolve/stub-resolv.conf "$WORK/host/root/etc/resolv.conf"
boot control host
resolver control
install_packages control isthmus-federation isthmus-vm-agent
site control
join control
in_machine host resolvectl dns eth0 10.77.0.1
in_machine host resolvectl domain eth0 '~.'
in_machine host bash -s <<'IMAGE' >"$WORK/last" 2>&1 || fail "no image: $(cat "$WORK/last")"
set -euo pipefail
cd /
libraries=$(ldd bin/busybox usr/bin/getent | grep -o '/[^ ]*\.so[^ ]*' | sort -u)
tar -ch bin/busybox usr/bin/getent $libraries | docker import - box
docker network create inner
IMAGE

# run NAME NETWORK: a container that stays.
run() {
    in_machine host docker run -d --name "$1" --network "$2" box /bin/busybox sleep 1000 >"$WORK/last" 2>&1 ||
        fail "no container: $(cat "$WORK/last")"
}

inside() {
    in_machine host docker exec "$@"
}

# has NAME PATTERN CONTAINER: the address that a container finds.
has() {
    local said
    said=$(inside "$3" /usr/bin/getent hosts "$1" | awk '{ print $1; exit }')
    # shellcheck disable=SC2254
    case $said in $2) ;; *) echo "$3: $1 is at ${said:-no address}"; return 1 ;; esac
}

# resolves CONTAINER: others of its network by Docker, the rest by the site.
resolves() {
    has one '172.*' "$1" && has example.com 10.77.0.9 "$1" &&
        inside "$1" /bin/busybox ping -q -c 1 -W 2 one >/dev/null
}

# Docker's, of the host and of a container; its counters go on.
rules() {
    in_machine host nft -s list ruleset 2>/dev/null | sed '/^table inet isthmus/,/^}/d'
    # shellcheck disable=SC2016
    in_machine host sh -c 'nsenter --net --target "$(docker inspect -f "{{.State.Pid}}" two)" nft -s list ruleset 2>/dev/null'
    inside two /bin/busybox cat /etc/resolv.conf
}

run one inner
run two inner
eventually 5 resolves two
rules >"$WORK/rules"
grep -q 127.0.0.11 "$WORK/rules" || fail "Docker answers nobody: $(cat "$WORK/rules")"
install_packages host isthmus-vm-agent
join host
eventually 20 request host
capture host
eventually 5 leads_to host web.shop.mesh '2[45]?.*'
[ "$(in_machine host curl -sS --max-time 5 http://web.shop.mesh/)" = "hello from control" ] || fail "the host does not call"
resolves two || fail "$(resolves two)"
# Docker asks the host's resolver, but what of a container is captured is nothing.
virtual=$(address host web.shop.mesh)
refused() {
    ! inside two /bin/busybox wget -q -T 5 -O - "http://$virtual/" >"$WORK/refused" 2>&1 && grep -q refused "$WORK/refused"
}
within 1 "$(seconds_of refused)" "a virtual address, refused to a container"
diff "$WORK/rules" <(rules) || fail "Docker's rules are others"
step "captured: containers resolve as before, virtual addresses are refused to them; Docker's rules are as they were"

run three inner
run four bridge
resolves three || fail "a new container: $(resolves three)"
has example.com 10.77.0.9 four || fail "of the default network: $(has example.com 10.77.0.9 four)"
inside four /bin/busybox grep -qx 'nameserver 10.77.0.1' /etc/resolv.conf || fail "another server: $(inside four /bin/busybox cat /etc/resolv.conf)"
in_machine host systemctl kill --signal=KILL isthmus-dns isthmus-capture
resolves two || fail "ours are dead: $(resolves two)"
in_machine host systemctl restart docker
in_machine host docker start one two >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
eventually 10 resolves two
eventually 5 leads_to host web.shop.mesh '2[45]?.*'
step "new containers, a restart of Docker, the death of ours: the same"

in_machine host meshctl leave >"$WORK/last" 2>&1 || fail "leave: $(cat "$WORK/last")"
resolves two || fail "after leaving: $(resolves two)"
apt host purge isthmus-vm-agent isthmus-proxy isthmus-cli >"$WORK/last" 2>&1 || fail "purge: $(cat "$WORK/last")"
resolves two || fail "purged: $(resolves two)"
in_machine host nft list tables | grep isthmus && fail "our table is left"
step "left and purged: the same"
