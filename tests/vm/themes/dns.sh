# Names of the mesh resolve to virtual addresses, and all others as before:
# with systemd-resolved and without, while parts of it are dead, and afterwards.
# No machine has a default route.
# shellcheck shell=bash

machine control bookworm
machine new resolved13
machine old resolved12 legacy
machine plain trixie
machine masq dnsmasq
add_application control
printf 'service: web\nnamespace: shop\nports: [{ name: http, port: 80, target: 8080, protocol: http }]\n' \
    >"$WORK/control/root/etc/isthmus/services.d/web.yaml"
for name in new old; do
    ln -s ../run/systemd/resolve/stub-resolv.conf "$WORK/$name/root/etc/resolv.conf"
done
# One has a network service that takes every link for its own.
systemctl --quiet --root="$WORK/new/root" enable systemd-networkd
cat >"$WORK/new/root/etc/systemd/network/50-all.network" <<'NETWORK'
[Match]
Type=ether
[Network]
KeepConfiguration=yes
LinkLocalAddressing=no
DNS=10.77.0.1
Domains=~.
NETWORK
echo 'nameserver 10.77.0.1' >"$WORK/plain/root/etc/resolv.conf"
echo 'nameserver 127.0.0.1' >"$WORK/masq/root/etc/resolv.conf"
printf 'no-resolv\nserver=10.77.0.1\n' >"$WORK/masq/root/etc/dnsmasq.d/site.conf"
boot control new old plain masq

resolver control

# calls MACHINE: the service, by IPv4 and by IPv6.
calls() {
    local family
    for family in -4 -6; do
        [ "$(in_machine "$1" curl $family -sS --max-time 5 "http://${2:-web.shop.mesh}/")" = "hello from control" ] || return
    done
}

# What an operator sees of links, routes and resolvers.
resolution() {
    in_machine "$1" bash -s <<'LOOK'
ip -br link | awk '{ print $1 }'; ip route show table all; ip -6 route show table all | grep -v fe80
grep -v '^search' /etc/resolv.conf | sha256sum; ls -l /etc/resolv.conf | sed 's/.* \//\//'
command -v resolvectl >/dev/null && { resolvectl dns; resolvectl domain; }
ls /run/isthmus 2>/dev/null
LOOK
}

install_packages control isthmus-federation isthmus-vm-agent
site control
join control
for name in new old plain masq; do
    install_packages $name isthmus-vm-agent
    join $name
done
in_machine old resolvectl dns eth0 10.77.0.1
in_machine old resolvectl domain eth0 '~.'
for name in new old plain masq; do
    eventually 20 request $name
    resolution $name >"$WORK/$name.before"
    leads_to $name web.shop.mesh '10.77.0.9' || fail "$name: names are ours before anybody asked"
    ! leads_to $name web.shop '*.*' >/dev/null || fail "$name: web.shop is somewhere"
    capture $name
done

for name in new old; do
    eventually 5 leads_to $name web.shop.mesh '2[45]?.*'
    leads_to $name web.shop.mesh 'fd69:7374:686d::f*' ahostsv6 || fail "$name: no address of IPv6"
    calls $name || fail "$name: $(in_machine $name curl -sS --max-time 5 http://web.shop.mesh/ 2>&1)"
    leads_to $name example.com 10.77.0.9 || fail "$name: other names"
    ! leads_to $name nobody.shop.mesh '*.*' >/dev/null || fail "$name: a name that is not there"
    [ "$(in_machine $name grep '^search' /etc/resolv.conf)" = 'search mesh' ] || fail "$name: other domains are searched"
    cmp -s <(sed -n '/^[0-9a-f]\{64\}/p' "$WORK/$name.before") <(resolution $name | sed -n '/^[0-9a-f]\{64\}/p') ||
        fail "$name: resolv.conf was changed"
    step "$name: http://web.shop.mesh/ is called, by both families; other names as before"
done
calls new web.shop || fail "new: $(in_machine new curl -sS --max-time 5 http://web.shop/ 2>&1)"
# By libnss-resolve, for which only names without a dot are searched.
! leads_to old web.shop '*.*' >/dev/null || fail "old: web.shop is searched: say so"
step "http://web.shop/ is called where programs read resolv.conf"
: >"$WORK/asked"
for name in new old; do
    leads_to $name web.shop.mesh '2[45]?.*' || fail "$name: $(leads_to $name web.shop.mesh '2[45]?.*')"
done
! grep 'web.shop.mesh' "$WORK/asked" || fail "the site's resolver was asked for names of the mesh"

for name in new old; do
    in_machine $name systemctl kill --signal=KILL isthmus-vm-agent isthmus-capture
    leads_to $name web.shop.mesh '2[45]?.*' || fail "$name: the agent's death is noticed"
    calls $name || fail "$name: no call while the agent is dead"
    eventually 10 in_machine $name systemctl is-active --quiet isthmus-vm-agent isthmus-capture
done
step "agent and capture are killed: nothing notices"

virtual=$(address new web.shop.mesh)
in_machine new systemctl kill --signal=STOP isthmus-dns
hangs=$(seconds_of eventually 5 leads_to new web.shop.mesh 10.77.0.9)
within 1 "$hangs" "the way of old, with a resolver that hangs"
in_machine new curl -sf --max-time 5 -H 'Host: web.shop' "http://$virtual/" >/dev/null || fail "addresses depend on names"
in_machine new systemctl kill --signal=CONT isthmus-dns
eventually 5 leads_to new web.shop.mesh '2[45]?.*'
in_machine old systemctl mask --runtime isthmus-dns >/dev/null 2>&1
in_machine old systemctl kill --signal=KILL isthmus-dns
killed=$(seconds_of eventually 5 leads_to old web.shop.mesh 10.77.0.9)
within 1 "$killed" "the way of old, without a resolver"
leads_to old example.com 10.77.0.9 || fail "other names hang on our resolver"
in_machine old systemctl unmask --runtime isthmus-dns >/dev/null 2>&1
in_machine old systemctl start isthmus-dns
eventually 5 leads_to old web.shop.mesh '2[45]?.*'
step "our resolver hangs, is killed, is back: names take the way of old after $hangs and $killed s, and ours again"

in_machine new systemctl restart systemd-networkd systemd-resolved
eventually 5 leads_to new web.shop.mesh '2[45]?.*'
reboot old
in_machine old resolvectl dns eth0 10.77.0.1
eventually 20 leads_to old web.shop.mesh '2[45]?.*'
eventually 20 calls old
step "networkd and systemd-resolved were restarted, a machine rebooted: names resolve"

leads_to plain web.shop.mesh 10.77.0.9 || fail "plain: nobody has asked for our names"
sed -i '1i nameserver 127.240.0.53' "$WORK/plain/root/etc/resolv.conf"
leads_to plain web.shop.mesh '2[45]?.*' || fail "plain: $(leads_to plain web.shop.mesh '2[45]?.*')"
calls plain || fail "plain: no call"
leads_to plain example.com 10.77.0.9 || fail "plain: other names"
in_machine plain systemctl stop isthmus-dns
within 1 "$(seconds_of leads_to plain example.com 10.77.0.9)" "other names, without our resolver"
echo 'search mesh' >>"$WORK/plain/root/etc/resolv.conf"
in_machine plain systemctl start isthmus-dns
eventually 5 calls plain web.shop
sed -i '1d; /^search/d' "$WORK/plain/root/etc/resolv.conf"
step "without systemd-resolved: who puts us into resolv.conf has our names, and the others in any case"

leads_to masq web.shop.mesh 10.77.0.9 || fail "masq: nobody has asked for our names"
echo 'server=/mesh/127.240.0.53#4153' >"$WORK/masq/root/etc/dnsmasq.d/mesh.conf"
in_machine masq systemctl restart dnsmasq
eventually 5 leads_to masq web.shop.mesh '2[45]?.*'
calls masq || fail "masq: no call"
leads_to masq example.com 10.77.0.9 || fail "masq: other names"
in_machine masq systemctl kill --signal=STOP isthmus-dns
within 1 "$(seconds_of leads_to masq other.example 10.77.0.9)" "other names, with a resolver that hangs"
in_machine masq systemctl kill --signal=KILL isthmus-dns
eventually 5 calls masq
rm "$WORK/masq/root/etc/dnsmasq.d/mesh.conf"
in_machine masq systemctl restart dnsmasq
leads_to masq web.shop.mesh 10.77.0.9 || fail "masq: the way of old"
step "with dnsmasq: a line of its configuration, and other names in any case"

for name in new old plain masq; do
    in_machine $name systemctl --no-pager --failed --plain --no-legend | grep . && fail "$name: failed units"
    in_machine $name meshctl leave >"$WORK/last" 2>&1 || fail "$name: leave: $(cat "$WORK/last")"
done
as_it_was() {
    local then=$WORK/$1.before
    diff <(grep -v '^\(names\|link\)$' "$then") <(resolution "$1" | grep -v '^names$')
}
in_machine old resolvectl domain eth0 '~.'
for name in new old plain masq; do
    eventually 3 as_it_was $name
done
step "who has left has links, routes and resolvers as before"
