# Who a machine is, and that others find it: after another address, a full and a
# read-only disk, a copied disk, a token twice, a restored control plane, and
# three days asleep. Their clocks are those of libfaketime, and jump.
# shellcheck shell=bash

FAKETIME=/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1
for name in control web1 client late copy; do
    machine $name trixie
    for unit in isthmus-federation isthmus-gateway isthmus-vm-agent isthmus-proxy; do
        drop_in=$WORK/$name/root/etc/systemd/system/$unit.service.d
        mkdir -p "$drop_in"
        # CLOCK_MONOTONIC stands still in a machine that sleeps.
        cat >"$drop_in/clock.conf" <<UNIT
[Service]
Environment=LD_PRELOAD=$FAKETIME FAKETIME_TIMESTAMP_FILE=/etc/faketimerc FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1
UNIT
    done
    echo +0 >"$WORK/$name/root/etc/faketimerc"
done
add_application web1
# What is on the disk of web1's agent and proxy, small enough to be full.
printf 'tmpfs /var/lib/isthmus tmpfs size=4m,mode=0755 0 0\n' >>"$WORK/web1/root/etc/fstab"
boot control web1 client late copy
install_packages control isthmus-federation
site control
for name in web1 client late copy; do
    install_packages $name isthmus-vm-agent
done
join client
once=$(token)
in_machine web1 meshctl join - <<<"$once" >"$WORK/joined" 2>&1 || fail "web1: $(cat "$WORK/joined")"
eventually 20 request client
node_of() { in_machine control meshctl -o json node list | python3 -c '
import json, sys
print(*(node["id"] for node in json.load(sys.stdin)["nodes"] if node["hostname"] == sys.argv[1]))' "$1"; }
web1=$(node_of web1)
[ -n "$web1" ] || fail "no node of web1: $(in_machine control meshctl -o json node list)"
step "the machines have joined; web1 is node $web1"

if in_machine late meshctl join - <<<"$once" >"$WORK/joined" 2>&1; then fail "a token was used twice"; fi
grep -q 'token_used_up\|used up' "$WORK/joined" || fail "a token twice: $(cat "$WORK/joined")"
[ "$(node_of late)" = "" ] || fail "late is a node"
step "a token lets in once: $(grep -m 1 "used up" "$WORK/joined")"

# token_of_new_address: a machine comes in by it, and leaves.
token_of_new_address() {
    token | in_machine late meshctl join - >"$WORK/joined" 2>&1 && in_machine late meshctl leave >"$WORK/joined" 2>&1
}

# serves SECONDS WHAT…: web1 answers, and is the node that it was.
serves() {
    eventually "$1" request client
    eventually "$1" backs web1
    [ "$(node_of web1)" = "$web1" ] || fail "${*:2}: web1 is node $(node_of web1)"
}

# moved MACHINE ADDRESS SECONDS: it has another address; how long until requests
# are answered again is in $took.
moved() {
    ip -n "$1" addr flush dev eth0
    ip -n "$1" addr add "$2/24" dev eth0
    took=$SECONDS
    eventually "$3" request client
    took=$((SECONDS - took))
    # What was under way to the old address has failed, or waits until it does.
    sleep 10
    rm -f "$WORK/failed"
}

requests client &
traffic=$!
moved web1 10.77.0.99 30
serves 10 "another address"
sleep 3
none_failed "after another address"
within 10 "$took" "to be found at another address"
step "web1 has another address: it is found within $took s, and is who it was"

# of_disk WHAT: programs that start now read, and need not write.
of_disk() {
    replaced web1 isthmus-proxy systemctl reload isthmus-proxy
    in_machine web1 systemctl restart isthmus-vm-agent || fail "$*: the agent does not start"
    serves 20 "$*"
    none_failed "$*"
    step "$*: agent and proxy start, nothing failed"
}
in_machine web1 sh -c 'head -c 8M /dev/zero >/var/lib/isthmus/filler' 2>/dev/null && fail "the disk has room"
of_disk "a full disk"
in_machine web1 rm /var/lib/isthmus/filler
# Nobody may have a file open for that, so web1 is away for a moment.
in_machine web1 systemctl stop isthmus-vm-agent isthmus-proxy isthmus-capture
in_machine web1 mount -o remount,ro /var/lib/isthmus
in_machine web1 systemctl start isthmus-vm-agent isthmus-proxy || fail "a read-only disk: no start"
serves 20 "a read-only disk"
sleep 1
rm -f "$WORK/failed"
of_disk "a read-only disk"
in_machine web1 systemctl stop isthmus-vm-agent isthmus-proxy
in_machine web1 mount -o remount,rw /var/lib/isthmus
in_machine web1 systemctl start isthmus-vm-agent isthmus-proxy
serves 20 "a disk that is writable again"
sleep 1
rm -f "$WORK/failed"
of_disk "a disk that is writable again"

# A disk that is copied, to a machine that has an id of its own, and whole.
in_machine web1 tar -C /var/lib/isthmus -c . >"$WORK/disk"
in_machine copy systemctl stop isthmus-vm-agent isthmus-proxy
in_machine copy tar -C /var/lib/isthmus --numeric-owner -x <"$WORK/disk"
cp "$WORK/web1/root/etc/isthmus/"*.yaml "$WORK/copy/root/etc/isthmus/"
for user in isthmus-agent isthmus-proxy; do
    [ "$(in_machine web1 id -u $user)" = "$(in_machine copy id -u $user)" ] || fail "$user has another number"
done
in_machine copy systemctl start isthmus-vm-agent
refuses() { journal copy isthmus-vm-agent | grep -q "was the image cloned"; }
eventually 10 refuses
in_machine control meshctl -o json node list | grep -q duplicated && fail "a copy that refuses is no duplicate"
step "a copy on a machine with another id is not that machine"

cp "$WORK/web1/root/etc/machine-id" "$WORK/copy/root/etc/machine-id"
in_machine copy systemctl restart isthmus-vm-agent
exists_twice() { in_machine control meshctl -o json node list | grep -q '"duplicated"'; }
eventually 20 exists_twice
sleep 1
none_failed "a copied machine"
said=$(in_machine control meshctl status 2>&1 || true)
[[ $said == *"exists twice"* ]] || fail "nobody is told: $said"
in_machine copy systemctl stop isthmus-vm-agent
in_machine control meshctl node resolve "$web1" >"$WORK/last" || fail "resolve: $(cat "$WORK/last")"
in_machine web1 systemctl restart isthmus-vm-agent
serves 20 "resolved"
none_failed "a copied machine, resolved"
step "a whole copy is noticed, and resolved; no request failed"

# The control plane comes back from a file.
open=$(token)
in_machine control meshctl site backup /root/west.backup >"$WORK/last" || fail "backup: $(cat "$WORK/last")"
join late
late=$(node_of late)
in_machine control systemctl stop isthmus-federation
sleep 1
none_failed "without federation"
in_machine control mv /var/lib/isthmus/federation /root/lost
in_machine control install -d -m 0700 -o isthmus-federation -g isthmus-federation /var/lib/isthmus/federation
in_machine control meshctl site restore /root/west.backup >"$WORK/restored" || fail "restore: $(cat "$WORK/restored")"
in_machine control systemctl start isthmus-federation
eventually 20 in_machine control meshctl check
serves 20 "a restored control plane"
# Who joined after the backup is told so, and a token of before lets nobody in.
token_is_void() { ! in_machine late meshctl join - <<<"$open" >"$WORK/joined" 2>&1 && grep -q token_revoked "$WORK/joined"; }
eventually 30 token_is_void
[ "$(node_of late)" = "" ] || fail "who joined after the backup is known"
none_failed "restoring the control plane"
step "the control plane was restored: machines are known, no request failed"

# The gateway moves: its new address is told before the old one goes.
in_machine control sed -i 's/^\( *- \)10.77.0.1:8443$/&\n\110.77.0.101:8443/' /etc/isthmus/federation.yaml
in_machine control systemctl restart isthmus-federation
serves 20 "two addresses of the gateway"
# Who is away while it is told does not learn it.
all_hear() {
    [ "$(in_machine control meshctl -o json node list | python3 -c '
import json, sys
print(sorted(node["hostname"] for node in json.load(sys.stdin)["nodes"] if node["state"] == "connected"))')" = "['client', 'web1']" ]
}
eventually 30 all_hear
none_failed "telling another address of the gateway"
# A network that comes back within 30 s shall find its tunnels (ADR 10).
moved control 10.77.0.101 45
in_machine control sed -i '/^ *- 10.77.0.1:8443$/d' /etc/isthmus/federation.yaml
in_machine control systemctl restart isthmus-federation
serves 20 "another gateway"
sleep 3
none_failed "after another address of the gateway"
eventually 20 token_of_new_address
step "the gateway has another address: found within $took s, in tokens too"

touch "$WORK/enough"
wait "$traffic"

# Everything sleeps for three days: certificates of workloads live for one.
asleep() {
    local name
    for name in control web1 client; do
        in_machine $name systemctl kill --signal="$1" --kill-whom=all 'isthmus-*' 2>/dev/null || true
    done
}
# issued MACHINE: how often its proxy has got a certificate.
issued() { journal "$1" isthmus-proxy | grep -c "identity issued" || true; }
before=$(($(issued web1) + $(issued client)))
renewed() { [ $(($(issued web1) + $(issued client))) -ge $((before + 2)) ]; }
asleep STOP
for name in control web1 client; do
    echo +3d >"$WORK/$name/root/etc/faketimerc"
done
asleep CONT
eventually 30 renewed
serves 30 "three days asleep"
in_machine control meshctl -o json status | grep -q '"state": "duplicated"' && fail "somebody exists twice"
step "three days later: web1 serves, and is who it was"
