# Programs that get their certificates and tokens by the SPIFFE Workload API, with
# the library of the SPIFFE project and with PyPI's: tests/vm/spiffe.
# shellcheck shell=bash

machine control bookworm
# It has a Python.
machine client rpm legacy
install -m 0755 "$SPIFFE_PEER" "$WORK/client/root/usr/local/bin/spiffe-peer"
cp -r "$SPIFFE_PYTHON" "$WORK/client/root/opt/spiffe"
install -m 0644 tests/vm/spiffe/peer.py "$WORK/client/root/opt/peer.py"
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

# asks UNIT USER PROGRAM…: a program of them; what it says is in $WORK/said.
asks() {
    local status=0
    in_machine client systemd-run --quiet --wait --pipe --collect --unit="$1" --uid="$2" \
        --setenv=PYTHONPATH=/opt/spiffe --setenv=PYTHONDONTWRITEBYTECODE=1 \
        "${@:3}" /run/isthmus/workload.sock >"$WORK/said" 2>&1 || status=$?
    return $status
}

for peer in spiffe-peer "/usr/bin/python3 /opt/peer.py"; do
    # shellcheck disable=SC2086
    asks reports nobody $peer || fail "$peer, who is attested: $(cat "$WORK/said")"
    token=$(grep '^token ' "$WORK/said") || fail "$peer: no token: $(cat "$WORK/said")"
    grep -v '^token ' "$WORK/said" >"$WORK/certificates"
    [ "$(wc -l <"$WORK/certificates")" = 2 ] || fail "$peer, once, and once more: $(cat "$WORK/said")"
    [ "$(cut -d' ' -f1 "$WORK/certificates" | sort -u)" = spiffe://west.example/ns/shop/sa/web ] || fail "who it is: $(cat "$WORK/said")"
    [ "$(cut -d' ' -f2 "$WORK/certificates" | sort -u | wc -l)" = 2 ] || fail "the same certificate: $(cat "$WORK/said")"
    [ "$(cut -d' ' -f2 <<<"$token")" = spiffe://west.example/ns/shop/sa/web ] || fail "whom it names: $token"
    step "$peer has had one, and then another: $(cut -d' ' -f1,3 "$WORK/certificates" | xargs); $token"

    for who in "reports daemon" "others nobody" "others root"; do
        status=0
        # shellcheck disable=SC2086
        asks $who $peer || status=$?
        [ "$status" = 3 ] || fail "$peer, $who: ended with $status: $(cat "$WORK/said")"
    done
    grep -q '^refused' "$WORK/said" || fail "$(cat "$WORK/said")"
done
[[ $(journal client isthmus-vm-agent) == *"refused on the Workload API"* ]] || fail "nothing of it in the journal"
step "another user, another unit, and root in another unit were refused"

in_machine control meshctl identity revoke spiffe://west.example/ns/shop/sa/web
status=0
asks reports nobody /usr/bin/python3 -c 'import sys; from spiffe import WorkloadApiClient
WorkloadApiClient("unix:" + sys.argv[1]).fetch_jwt_svid({"another"})' || status=$?
[ "$status" = 1 ] || fail "after the revocation: ended with $status: $(cat "$WORK/said")"
grep -q 'revoked.*PERMISSION_DENIED' "$WORK/said" || fail "after the revocation: $(cat "$WORK/said")"
step "whose identity is revoked gets no token any more"

# What the agent has is handed out to its end.
refused_certificate() {
    asks reports nobody /usr/bin/python3 -c 'import sys; from spiffe import WorkloadApiClient
WorkloadApiClient("unix:" + sys.argv[1]).fetch_x509_svid()' && return 1
    grep 'is revoked' "$WORK/said"
}
eventually 30 refused_certificate
step "and no certificate either"
