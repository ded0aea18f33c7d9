# A machine that has left and was purged is as it was before, but for what
# Debian's policy keeps.
# shellcheck shell=bash

# looks MACHINE: all that could have changed. Contents of files by hash; what
# package managers and journals write about themselves is not of the host.
looks() {
    in_machine "$1" bash -s <<'LOOK'
cd /
find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./run -o -path ./tmp \
    -o -path ./srv/isthmus -o -path ./var/log -o -path ./var/tmp -o -path ./var/cache/apt -o -path ./var/lib/apt \
    -o -path ./var/lib/dpkg -o -path ./var/cache/debconf -o -path ./var/lib/systemd/catalog \) -prune -o -printf '%M %u:%g %l %p\n' | sort -k4
find etc usr/lib/systemd usr/lib/sysusers.d usr/lib/tmpfiles.d -xdev -type f -print0 | sort -z | xargs -0 sha256sum
find run -maxdepth 2 -not -path 'run/user*' -not -path 'run/systemd/*' -not -path 'run/log*' | sort
find run/systemd/transient run/systemd/generator* run/systemd/system 2>/dev/null | sort
echo "rules: $(nft list ruleset)"
ip -4 route show table all; ip -6 route show table all | sed 's/ proto kernel.*//; s/ metric.*//'; ip rule; ip -6 rule; ip -br addr | awk '{ print $1, $3 }'
cat /etc/resolv.conf 2>&1
systemctl list-unit-files --plain --no-legend --no-pager | awk '{ print "unit", $1, $2 }'
systemctl list-units --plain --no-legend --no-pager --type=service,timer,socket,path,slice | awk '{ print "loaded", $1, $3 }' | sort
LOOK
}

# kept LINE: what policy keeps. Numbers of users must not become others'; the
# name of a unit that has run may be loaded until systemd forgets it.
kept() {
    case $1 in
    *" ./etc/passwd-" | *" ./etc/group-" | *" ./etc/shadow-" | *" ./etc/gshadow-" | *" ./etc/.pwd.lock") ;;
    *" etc/passwd" | *" etc/group" | *" etc/shadow" | *" etc/gshadow") ;;
    *" etc/passwd-" | *" etc/group-" | *" etc/shadow-" | *" etc/gshadow-") ;;
    *" ./var/lib/systemd/deb-systemd-helper-"*) return 1 ;;
    *) return 1 ;;
    esac
}

# as_before MACHINE: says what differs and may not.
as_before() {
    local line found=''
    looks "$1" >"$WORK/$1/after"
    while read -r line; do
        kept "${line#[<>] }" || found+=$line$'\n'
    done < <(diff "$WORK/$1/before" "$WORK/$1/after" | grep '^[<>]')
    [ -z "$found" ] || fail "$1 is not as it was: $found"
    comm -13 <(sort "$WORK/$1/users") <(in_machine "$1" sh -c 'cat /etc/passwd /etc/group' | sort) >"$WORK/new"
    ! grep -v '^isthmus[a-z-]*:' "$WORK/new" || fail "$1: other users than ours"
}

# joined MACHINE: a member, and its virtual addresses are captured.
joined() {
    join "$1"
    in_machine "$1" systemctl is-active --quiet isthmus-vm-agent isthmus-proxy || fail "$1: no units"
    capture "$1"
    eventually 5 in_machine "$1" test -e /run/isthmus/link
    in_machine "$1" ip link show isthmus0 >"$WORK/last" 2>&1 || fail "$1: no link: $(cat "$WORK/last")"
}

machine control bookworm
machine first bookworm
machine second trixie
boot control first second
install_packages control isthmus-federation
site control
# Its own rules and resolver, so that there is something to lose; one has a
# default route and one has none.
ip -n first route add default via 10.77.0.1
for name in first second; do
    in_machine $name nft -f - <<'RULES'
table inet filter {
    chain input { type filter hook input priority 0; tcp dport 22 accept; }
}
RULES
    echo "nameserver 192.0.2.53" >"$WORK/$name/root/etc/resolv.conf"
    apt $name update
    # What any installation leaves, ours or not.
    in_machine $name systemctl daemon-reload
    looks $name >"$WORK/$name/before"
    in_machine $name sh -c 'cat /etc/passwd /etc/group' >"$WORK/$name/users"
done

for name in first second; do
    install_packages $name isthmus-vm-agent
    printf 'service: web\nnamespace: shop\nport: 8080\nprotocol: http\n' >"$WORK/$name/root/etc/isthmus/services.d/web.yaml"
    joined $name
    in_machine $name meshctl leave >"$WORK/last" 2>&1 || fail "$name: leave: $(cat "$WORK/last")"
done
in_machine control meshctl -o json node list >"$WORK/last"
step "two machines have joined and left"

apt first remove isthmus-vm-agent >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
in_machine first systemctl is-active --quiet isthmus-vm-agent && fail "removed and still running"
[ -e "$WORK/first/root/etc/isthmus/services.d/web.yaml" ] || fail "a removal is no purge: services are gone"
in_machine first systemctl is-active --quiet isthmus-proxy || fail "the proxy is another package's"
install_packages first isthmus-vm-agent
in_machine first systemctl is-active --quiet isthmus-vm-agent || fail "installed again and not running"
step "removed, and installed again: it runs"

# One more that is a member until then, and captures.
joined second
for name in first second; do
    apt $name purge --autoremove isthmus-vm-agent isthmus-proxy isthmus-cli >"$WORK/last" 2>&1 || fail "$name: $(cat "$WORK/last")"
    grep -qi 'warning' "$WORK/last" && fail "$name: purge: $(cat "$WORK/last")"
    as_before $name
done
step "purged: files, rules, routes, resolver and units are as before; the users stay: $(cut -d: -f1 "$WORK/new" | sort -u | xargs)"
