# Programs that get their certificates by the SPIFFE Workload API, with the
# library of the SPIFFE project: tests/vm/spiffe.
# shellcheck shell=bash

machine control bookworm
machine client bookworm legacy
install -m 0755 "$SPIFFE_PEER" "$WORK/client/root/usr/local/bin/spiffe-peer"
boot control client

install_packages control isthmus-federation
site control
# So that a certificate is replaced while this looks on.
in_machine control sh -c 'echo "workload_lifetime: 20s" >>/etc/isthmus/federation.yaml'
in_machine control systemctl restart isthmus-federation
eventually 20 in_machine control meshctl check
install_packages client isthmus-vm-agent
in_machine client sh -c 'echo "workload_api: [{ unit: reports.service, user: nobody }]" >>/etc/isthmus/agent.yaml'
in_machine client systemctl restart isthmus-vm-agent
join client
step "a machine has joined; a program of it may have certificates"

# asks UNIT USER: a program of them; what it says is in $WORK/said.
asks() {
    local status=0
    in_machine client systemd-run --quiet --wait --pipe --collect --unit="$1" --uid="$2" \
        spiffe-peer /run/isthmus/workload.sock >"$WORK/said" 2>&1 || status=$?
    return $status
}

asks reports nobody || fail "who is attested: $(cat "$WORK/said")"
[ "$(wc -l <"$WORK/said")" = 2 ] || fail "once, and once more: $(cat "$WORK/said")"
[ "$(cut -d' ' -f1 "$WORK/said" | sort -u)" = spiffe://west.example/ns/shop/sa/web ] || fail "who it is: $(cat "$WORK/said")"
[ "$(cut -d' ' -f2 "$WORK/said" | sort -u | wc -l)" = 2 ] || fail "the same certificate: $(cat "$WORK/said")"
step "it has had one, and then another: $(cut -d' ' -f1,3 "$WORK/said" | xargs)"

for who in "reports daemon" "others nobody" "others root"; do
    status=0
    # shellcheck disable=SC2086
    asks $who || status=$?
    [ "$status" = 3 ] || fail "$who: ended with $status: $(cat "$WORK/said")"
done
grep -q '^refused' "$WORK/said" || fail "$(cat "$WORK/said")"
[[ $(journal client isthmus-vm-agent) == *"refused on the Workload API"* ]] || fail "nothing of it in the journal"
step "another user, another unit, and root in another unit were refused"
