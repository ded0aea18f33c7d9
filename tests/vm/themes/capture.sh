# The kernel sends traffic to the proxy, and an operator's SSH connection never
# notices: trial, crash, a wrong rule, reboot.
# shellcheck shell=bash

machine control bookworm
machine new trixie
machine old bookworm legacy
for name in new old; do
    mkdir -p "$WORK/$name/root/root/.ssh"
    [ -e "$WORK/key" ] || ssh-keygen -q -t ed25519 -N '' -f "$WORK/key"
    install -m 0600 "$WORK/key.pub" "$WORK/$name/root/root/.ssh/authorized_keys"
    chmod 0700 "$WORK/$name/root/root/.ssh"
done
boot control new old
mkdir "$WORK/control/root/srv/www"
echo elsewhere >"$WORK/control/root/srv/www/index.html"
in_machine control busybox httpd -p 10.77.0.1:8000 -h /srv/www
install_packages control isthmus-federation
site control
for name in new old; do
    install_packages $name isthmus-vm-agent
    join $name
done

address() {
    ip -n "$1" -4 -o addr show dev eth0 | awk '{ sub("/.*", "", $4); print $4 }'
}

over_ssh() {
    local name=$1
    shift
    in_network control ssh -q -i "$WORK/key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
        -o ServerAliveInterval=5 "root@$(address "$name")" "$@"
}

# echoing NAME: one SSH connection, which says something ten times a second and
# hears it again.
echoing() {
    (
        exec 8>&- 9>&-
        (while sleep 0.1; do echo tick; done) | over_ssh "$1" cat >"$WORK/$1.ssh" 2>&1
        echo ended >>"$WORK/$1.ssh"
    ) &
    eventually 10 echoes "$1"
}

echoes() {
    local before
    before=$(wc -l <"$WORK/$1.ssh")
    sleep 0.6
    ! grep -qx ended "$WORK/$1.ssh" && [ "$(wc -l <"$WORK/$1.ssh")" -gt "$before" ]
}

still() {
    echoes "$1" || fail "$1: the SSH connection is cut: $2"
}

# unit_asks NAME: from a unit of which the rules speak, a second after it began.
unit_asks() {
    in_machine "$1" systemd-run --quiet --wait --pipe --collect --unit=shop \
        sh -c 'sleep 1; curl -sf --max-time 5 http://10.77.0.1:8000/'
}

passed() {
    journal "$1" isthmus-proxy | grep -c elsewhere
}

# by_proxy NAME: whether the proxy has carried what the unit asked.
by_proxy() {
    local before said
    before=$(passed "$1") || true
    said=$(unit_asks "$1") || return
    [ "$said" = elsewhere ] || fail "$1: the unit hears: $said"
    sleep 0.5
    [ "$(passed "$1")" -gt "$before" ]
}

direct() {
    ! by_proxy "$1"
}

rules() {
    in_machine "$1" nft -s list ruleset
}

write_rules() {
    printf '%s\n' "$2" >"$WORK/$1/root/etc/isthmus/capture.yaml"
}

for name in new old; do
    in_machine $name nft -f - <<'RULES'
table inet filter { chain input { type filter hook input priority 0; tcp dport 22 accept; }; }
RULES
    rules $name >"$WORK/$name.rules"
    echoing $name
    write_rules $name 'outbound: [{ unit: shop.service }]'
    direct $name || fail "$name: captured before anybody asked"
    over_ssh $name meshctl vm capture enable --confirm-within 60s >"$WORK/last" 2>&1 || fail "$name: $(cat "$WORK/last")"
    grep -q 'confirm' "$WORK/last" || fail "no word of confirming: $(cat "$WORK/last")"
    still $name enable
    by_proxy $name || fail "$name: the unit is not captured"
    by_proxy $name || fail "$name: the unit started again is not captured"
    over_ssh $name meshctl vm capture confirm >"$WORK/last" 2>&1 || fail "$name: $(cat "$WORK/last")"
    still $name confirm
    step "$name: a unit is captured, and when it starts again"
done

for name in new old; do
    in_machine $name systemctl kill --signal=KILL isthmus-vm-agent isthmus-capture
    by_proxy $name || fail "$name: the agent's death is noticed"
    in_machine $name systemctl mask --runtime --now isthmus-proxy >/dev/null 2>&1
    gone=$SECONDS
    until [ "$(unit_asks $name)" = elsewhere ]; do
        [ $((SECONDS - gone)) -le 8 ] || fail "$name: without a proxy nothing goes direct"
    done
    still $name "crash of agent and proxy"
    in_machine $name systemctl unmask --runtime isthmus-proxy >/dev/null 2>&1
    in_machine $name systemctl start isthmus-proxy
    eventually 10 by_proxy $name
    step "$name: agent and proxy crash; direct meanwhile, captured again"
done

write_rules new 'outbound: [{ to: [0.0.0.0/0, "::/0"] }]
inbound: [{ port: 80 }]'
over_ssh new meshctl vm capture enable --confirm-within 5s >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
still new "a wrong rule"
over_ssh new true || fail "no new SSH connection under a wrong rule"
old_rules() {
    ! rules new | grep -q 'tcp dport 80 ' && in_machine new meshctl vm capture status | grep -q 'In force'
}
eventually 8 old_rules
still new "reverted"
write_rules new 'outbound: [{ unit: 22 }]'
! over_ssh new meshctl vm capture enable >"$WORK/last" 2>&1 || fail "nonsense is taken"
grep -q 'capture.yaml' "$WORK/last" || fail "nonsense without its place: $(cat "$WORK/last")"
step "a wrong rule reverts by itself, and SSH goes on"

reboot new
eventually 20 over_ssh new true
echoing new
eventually 10 by_proxy new
still new "after a reboot"
step "after a reboot what was confirmed is in force, whatever the file says"

in_machine new systemctl reload nftables >/dev/null 2>&1 || in_machine new nft flush ruleset
eventually 5 by_proxy new
step "somebody flushes all rules: ours come back"

in_machine old meshctl leave >"$WORK/last" 2>&1 || fail "leave: $(cat "$WORK/last")"
rules old | diff "$WORK/old.rules" - >"$WORK/last" || fail "rules differ after leaving: $(cat "$WORK/last")"
still old leave
in_machine new meshctl vm capture status >/dev/null
apt new remove isthmus-vm-agent >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
! rules new | grep -q isthmus || fail "rules are left: $(rules new)"
still new "removal of the package"
step "left and removed: rules are as before, SSH goes on"
