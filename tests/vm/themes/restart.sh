# A proxy is started again, killed, and hangs: nobody is refused.
# shellcheck shell=bash

machine control bookworm
machine serves trixie
machine calls bookworm
boot control serves calls
add_load serves
install_packages control isthmus-federation
install_packages serves isthmus-vm-agent
install_packages calls isthmus-vm-agent
site control
join serves
join calls
take_load calls 'opaque_drain_timeout: 8s'

once() {
    in_network calls curl -sf --max-time 10 -H 'Host: life.shop' -d hello http://127.0.0.1:4140/
}
eventually 20 once
# Its listeners, each of two workers or more.
kept() {
    [ "$(in_machine calls systemctl show isthmus-proxy -p NFileDescriptorStore --value)" -ge 3 ]
}
eventually 10 kept
step "systemd keeps the listening sockets"

keep calls http 100 3
lap "before"
echo move >&8 && read -r -t 90 _ <&9
took=$(seconds_of in_machine calls systemctl restart isthmus-proxy)
lap "after a restart of $took s"
let_go
said=$(journal calls isthmus-proxy MESSAGE="stopped cut=0")
[ -n "$said" ] || fail "connections were cut"
step "no request failed, no connection was refused or cut"

# The only machine that serves: it takes requests for as long as it waits for
# anything, and who has nowhere else to go waits for the process after it.
resumed() {
    local said
    said=$(in_network calls curl -s http://127.0.0.1:4191/metrics | grep '^isthmus_proxy_held_total{result="resumed"}')
    echo "${said##* }"
}
keep calls http1 20 4
lap "before"
for n in 1 2; do
    took=$(seconds_of in_machine serves systemctl restart isthmus-proxy)
    lap "after restart $n of who serves, of $took s"
done
in_network calls python3 - >"$WORK/lasting" 2>&1 <<'PY' &
import socket, time
began, client = time.monotonic(), socket.create_connection(("127.0.0.1", 7000))
client.settimeout(10)
while time.monotonic() < began + 8:
    client.sendall(b"ping")
    assert client.recv(4) == b"ping"
    print("echo", flush=True)
    time.sleep(0.2)
PY
lasting=$!
lasts() { grep -q echo "$WORK/lasting"; }
eventually 10 lasts
took=$(seconds_of in_machine serves systemctl restart isthmus-proxy)
wait $lasting || fail "an opaque connection did not last: $(tail -1 "$WORK/lasting")"
within 30 "$took" "a restart of who serves"
awk "BEGIN { exit !($took > 5) }" || fail "an opaque connection was not waited for: $took s"
lap "after a restart of who serves an opaque connection, of $took s"
let_go
cut_none() { [ "$(journal serves isthmus-proxy MESSAGE="stopped cut=0" | wc -l)" = 3 ]; }
eventually 5 cut_none
step "who serves was started again three times: no request failed, $(resumed) waited"

# An opaque connection has its time, and is told and counted when that is over.
in_network calls python3 - >"$WORK/opaque" 2>&1 <<'PY' &
import socket, time
began, client = time.monotonic(), socket.create_connection(("127.0.0.1", 7000))
client.settimeout(10)
try:
    while True:
        client.sendall(b"ping")
        assert client.recv(4) == b"ping"
        print(f"{time.monotonic() - began:.1f}", flush=True)
        time.sleep(0.2)
except (OSError, AssertionError) as error:
    print("cut", flush=True)
PY
opaque=$!
carries() { grep -q '^[1-9]' "$WORK/opaque"; }
eventually 10 carries
in_machine calls systemctl restart isthmus-proxy
wait $opaque
tail -1 "$WORK/opaque" | grep -q cut || fail "$(tail -1 "$WORK/opaque")"
lived=$(tail -2 "$WORK/opaque" | sed -n 1p)
awk "BEGIN { exit !($lived > 8) }" || fail "an opaque connection was cut after $lived s"
eventually 5 once
said=$(journal calls isthmus-proxy MESSAGE="stopped cut=1")
[ -n "$said" ] || fail "what was cut is not counted"
step "an opaque connection went on for $lived s, and was counted as cut"

# Killed: only what is in flight fails, who comes meanwhile waits.
asked() {
    local status
    while [ ! -e "$WORK/enough" ]; do
        status=0
        once >/dev/null 2>&1 || status=$?
        echo $status
    done
}
asked >"$WORK/statuses" &
asking=$!
sleep 1
replaced calls isthmus-proxy systemctl kill --signal=KILL isthmus-proxy
sleep 1
touch "$WORK/enough"
wait $asking
! grep -qx 7 "$WORK/statuses" || fail "connections were refused while the proxy was killed"
failed=$(grep -cvx 0 "$WORK/statuses" || true)
[ "$failed" -le 1 ] || fail "$failed requests of one client failed: $(sort "$WORK/statuses" | uniq -c)"
step "killed: $failed request in flight failed, none was refused"

# One thread of it hangs: systemd does not hear from the others either.
mkdir -p "$WORK/calls/root/etc/systemd/system/isthmus-proxy.service.d"
printf '[Service]\nWatchdogSec=2\n' >"$WORK/calls/root/etc/systemd/system/isthmus-proxy.service.d/watchdog.conf"
in_machine calls systemctl daemon-reload
replaced calls isthmus-proxy systemctl restart isthmus-proxy
sleep 3
before=$(main_pid calls isthmus-proxy)
sleep 2
[ "$(main_pid calls isthmus-proxy)" = "$before" ] || fail "the watchdog bites who is well"
in_network calls python3 - "$(in_network calls ss -Hltnp 'sport = :4191' | grep -o 'pid=[0-9]*' | sed -n 1p | cut -d= -f2)" <<'PY' &
import ctypes, os, signal, sys
libc, pid = ctypes.CDLL(None, use_errno=True), int(sys.argv[1])
names = {tid: open(f"/proc/{pid}/task/{tid}/comm").read().strip() for tid in os.listdir(f"/proc/{pid}/task")}
worker = int(next(tid for tid, name in names.items() if name == "worker-1"))
SEIZE, INTERRUPT = 0x4206, 0x4207
assert libc.ptrace(SEIZE, worker, 0, 0) == 0, os.strerror(ctypes.get_errno())
assert libc.ptrace(INTERRUPT, worker, 0, 0) == 0
# Until it is killed; the process is not gone before this has heard of it.
signal.alarm(30)
WALL = 0x40000000
while os.WIFSTOPPED(os.waitpid(worker, WALL)[1]):
    pass
PY
bitten() {
    [ "$(main_pid calls isthmus-proxy)" != "$before" ] && in_machine calls systemctl is-active --quiet isthmus-proxy
}
eventually 14 bitten
eventually 5 once
step "a worker that hangs is found by the watchdog, and the proxy started again"
