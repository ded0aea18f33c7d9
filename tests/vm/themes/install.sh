# From a bare machine to the first request: what a user types, timed.
# shellcheck shell=bash

machine control trixie
machine web trixie
machine client bookworm
add_application web
boot control web client
step "three machines have booted"

install_packages control isthmus-federation
in_machine control systemctl is-enabled --quiet isthmus-federation isthmus-gateway || fail "control: not enabled"
for unit in isthmus-federation isthmus-gateway; do
    shown=$(in_machine control systemctl show $unit -p ActiveState -p ConditionResult | sort | xargs)
    [ "$shown" = "ActiveState=inactive ConditionResult=no" ] || fail "$unit without a configuration: $shown"
done
site control
step "one host is a site of its own"

for name in web client; do
    apt $name update
    took=$(seconds_of apt $name install isthmus-vm-agent)
    running=$(in_machine $name systemctl is-active isthmus-vm-agent isthmus-proxy | xargs)
    [ "$running" = "active active" ] || fail "$name: $running"
    within 10 "$took" "$name: install to running"
    step "$name: apt install to running units: $took s"
done

join web
eventually 20 backs web
# What a user types, and the first answer over mTLS.
first_request() {
    join client
    until request client; do sleep 0.02; done
}
took=$(seconds_of first_request)
grep -q 'hello from web' "$WORK/last" || fail "$(cat "$WORK/last")"
within 5 "$took" "join to the first request"
step "meshctl join to the first answer: $took s"

for name in control web client; do
    in_machine $name systemctl --no-pager --failed --plain --no-legend | grep . && fail "$name: failed units"
done
# Its SSH is Debian's.
in_machine client ss -Hlnt 'not sport = :22' | grep -v ' 127\.\| \[::1\]' >"$WORK/last" && fail "ports are open to others: $(cat "$WORK/last")"
step "no unit has failed, nothing of the client listens to others"

reboot client
eventually 10 request client
step "after a reboot: $(request client)"
