# HAProxy of a machine with systemd, moved to our proxy and back: by its unit, over
# reboots, and by the removal of our package.
# shellcheck shell=bash

machine host haproxy
add_application host
cat >"$WORK/host/root/etc/haproxy/haproxy.cfg" <<'CFG'
global
    stats socket /run/haproxy/admin.sock mode 660 level admin
    user haproxy
    group haproxy
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
frontend fe_web
    bind :80
    default_backend apps
backend apps
    server web 127.0.0.1:8080
CFG
boot host
install_packages host isthmus-vm-agent

# asks: whether the machine answers at port 80.
asks() {
    [ "$(in_network host curl -sf --max-time 5 http://10.77.0.1/)" = "hello from host" ]
}

# load: until there is $WORK/enough.
load() {
    while [ ! -e "$WORK/enough" ]; do
        asks 2>/dev/null || echo "failed at $(date +%T.%N)" >>"$WORK/failed"
        sleep 0.02
    done
}

# moves COMMAND…
moves() {
    in_machine host meshctl migrate "$@" --plans /root >"$WORK/last" 2>&1 || fail "migrate $*: $(cat "$WORK/last")"
}

# is PHASE SERVES
is() {
    local said
    said=$(in_machine host meshctl migrate status --plans /root -o json |
        python3 -c 'import json, sys; host = json.load(sys.stdin)["hosts"][0]; print(host["phase"], host["serves"])')
    [ "$said" = "$1 $2" ] || { echo "$said"; return 1; }
}

eventually 10 asks
in_machine host systemctl enable --now isthmus-migrate >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
in_machine host meshctl migrate plan --from haproxy /etc/haproxy/haproxy.cfg -o /root/host >"$WORK/last" 2>&1 ||
    fail "plan: $(cat "$WORK/last")"
grep -q 'control: /run/haproxy/admin.sock' "$WORK/host/root/root/host/host.yaml" || fail "no control: $(cat "$WORK/host/root/root/host/host.yaml")"
load &
loading=$!
moves shadow host --share 100% --for 3s
moves cutover host --watch 2s
is moved isthmus || fail "$(cat "$WORK/last")"
in_machine host systemctl is-active --quiet haproxy isthmus-front@host || fail "not both run"
in_machine host systemctl kill --signal=KILL isthmus-migrate
eventually 10 is moved isthmus
moves rollback host
is back legacy || fail "$(cat "$WORK/last")"
moves cutover host --watch 1s --without-shadow
moves finish host
is finished isthmus || fail "$(cat "$WORK/last")"
! in_machine host systemctl is-active --quiet haproxy || fail "HAProxy runs"
! in_machine host systemctl is-enabled --quiet haproxy || fail "HAProxy is started at boot"
touch "$WORK/enough"
wait $loading
none_failed "the move"
step "compared, cut over, rolled back, cut over and finished under load: nothing failed"

reboot host
eventually 20 asks
eventually 10 is finished isthmus
in_machine host systemctl is-active --quiet isthmus-front@host || fail "our proxy does not run"
step "after a reboot ours serves"

moves rollback host
is back legacy || fail "$(cat "$WORK/last")"
in_machine host systemctl is-enabled --quiet haproxy || fail "HAProxy is not started at boot"
reboot host
eventually 20 asks
eventually 10 is back legacy
step "rolled back, and after another reboot HAProxy serves"

moves cutover host --watch 1s --without-shadow
apt host remove isthmus-vm-agent >"$WORK/last" 2>&1 || fail "$(tail -5 "$WORK/last")"
asks || fail "nobody serves once our package is removed"
in_machine host nft list tables | grep isthmus && fail "our table is left"
in_machine host pgrep -f isthmus/migrate && fail "our proxy still runs"
step "apt remove: HAProxy serves, nothing of ours is left"
