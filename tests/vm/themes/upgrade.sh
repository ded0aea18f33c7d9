# From what an earlier commit was to this one and back, under a thousand
# connections that were opened before.
# shellcheck shell=bash

# program_of MACHINE: the hash of what its unit runs.
program_of() {
    in_machine "$1" sh -c 'sha256sum </proc/$(systemctl show isthmus-proxy -p MainPID --value)/exe'
}

# who_takes MACHINE: the hash of what takes a connection that is opened now.
who_takes() {
    in_network "$1" python3 - <<'PY'
import hashlib, re, socket, subprocess
client = socket.create_connection(("127.0.0.1", 4140))
client.sendall(b"GET / HTTP/1.1\r\nHost: life.shop\r\n\r\n")
assert client.recv(12) == b"HTTP/1.1 200"
only = f"sport = :4140 and dport = :{client.getsockname()[1]}"
owner = subprocess.run(["ss", "-Htnp", only], capture_output=True, text=True).stdout
pid = re.search(r"pid=(\d+)", owner)[1]
print(hashlib.sha256(open(f"/proc/{pid}/exe", "rb").read()).hexdigest(), " -")
PY
}

# brought MACHINE VERSION: its packages are of this version and its proxy is a
# successor of the one before, which new connections reach.
brought() {
    local before after
    before=$(program_of "$1")
    apt "$1" install --allow-downgrades "${@:3}" >>"$WORK/$1/apt" 2>&1 || fail "$1: $(tail -30 "$WORK/$1/apt")"
    is_another() {
        after=$(program_of "$1")
        [ "$after" != "$2" ] && [ "$(who_takes "$1")" = "$after" ]
    }
    eventually 30 is_another "$1" "$before"
    [ "$(in_machine "$1" dpkg-query -W -f '${Version}' isthmus-proxy)" = "$2" ] || fail "$1: not $2"
    in_machine "$1" systemctl is-active --quiet isthmus-proxy || fail "$1: no proxy"
    step "$1 runs $2: another program, new connections are its own"
}

agent() {
    echo isthmus-vm-agent="$1" isthmus-proxy="$1" isthmus-cli="$1"
}

# What an operator says to apt who has changed a file that the packages have
# changed, too, and is not there to be asked.
MINE=(-o Dpkg::Options::=--force-confold)

machine control bookworm
machine serves bookworm
machine calls trixie
boot control serves calls
add_load serves
for name in serves calls; do
    # shellcheck disable=SC2046
    install_packages $name $(agent "$OLD")
done
install_packages control isthmus-federation="$OLD" isthmus-proxy="$OLD" isthmus-cli="$OLD"
site control
join serves
join calls
take_load calls
NEW=$(in_machine calls apt-cache policy isthmus-proxy | awk '/Candidate/ { print $2 }')
eventually 20 who_takes calls
step "$OLD runs, $NEW is there"

keep calls all 250 3
lap "before"
# shellcheck disable=SC2046
brought serves "$NEW" $(agent "$NEW")
lap "after the upgrade of the machine that serves"
for unit in isthmus-vm-agent isthmus-dns isthmus-capture isthmus-check.socket; do
    in_machine serves systemctl is-active --quiet $unit || fail "serves: no $unit"
done
in_network serves ss -Htln 'sport = :4141' | grep -q . || fail "serves: not as the new proxy.yaml says"
step "what is new runs, where no configuration was changed"
echo move >&8 && read -r -t 90 _ <&9
# shellcheck disable=SC2046
! apt calls install $(agent "$NEW") >"$WORK/last" 2>&1 || fail "apt does not ask about proxy.yaml"
grep -q 'end of file on stdin at conffile prompt' "$WORK/last" || fail "$(tail -5 "$WORK/last")"
lap "while apt waits to be told about proxy.yaml"
# shellcheck disable=SC2046
brought calls "$NEW" "${MINE[@]}" $(agent "$NEW")
lap "after that of the machine that calls"
lap "and again"
grep -q 'port: echo' "$WORK/calls/root/etc/isthmus/proxy.yaml" || fail "an upgrade has changed a configuration"
# shellcheck disable=SC2046
brought calls "$OLD" "${MINE[@]}" $(agent "$OLD")
lap "after a downgrade"
let_go

for name in serves calls; do
    said=$(journal $name isthmus-proxy)
    [[ $said != *panic* ]] || fail "$name: a panic"
    in_machine $name systemctl --no-pager --failed --plain --no-legend | grep . && fail "$name: failed units"
done
cut=$(journal serves isthmus-proxy | grep -o '"CUT":"[1-9][0-9]*"' || true)
[ -z "$cut" ] || fail "the machine that serves has cut connections: $cut"
step "no connection was cut"

before=$(main_pid control isthmus-gateway)
apt control install isthmus-federation="$NEW" isthmus-proxy="$NEW" isthmus-cli="$NEW" >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
gateway_is_another() { [ "$(main_pid control isthmus-gateway)" != "$before" ]; }
eventually 30 gateway_is_another
in_machine control systemctl is-active --quiet isthmus-federation isthmus-gateway || fail "control: no control plane"
eventually 20 who_takes calls
step "the site runs $NEW: another gateway process, the machines reach each other by it"
