"""What main.go does, by PyPI's `spiffe`, which is other people's code too.

    python3 peer.py SOCKET
"""

import sys
import threading

import grpc
from spiffe import JwtSource, JwtSvid, WorkloadApiClient, X509Source
from spiffe.errors import PySpiffeError

PATIENCE = 60
REFUSED = 3
AUDIENCE = "bank"


def tell(source):
    """Says what there is now, and returns the serial."""
    svid = source.get_x509_context().default_svid
    if source.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain) is None:
        sys.exit("its own domain is not among those to believe")
    leaf = svid.leaf
    print(svid.spiffe_id, leaf.serial_number, leaf.not_valid_after_utc.isoformat(), flush=True)
    return leaf.serial_number


def show(socket, client):
    """Says whom a token names, once its keys and the agent have verified it."""
    with JwtSource(socket_path=socket, timeout_in_seconds=PATIENCE) as source:
        token = source.fetch_svid({AUDIENCE}, timeout=PATIENCE).token
        named = JwtSvid.parse_insecure(token, {AUDIENCE}).spiffe_id
        bundle = source.get_bundle_for_trust_domain(named.trust_domain)
        svid = JwtSvid.parse_and_validate(token, bundle, {AUDIENCE})
    if client.validate_jwt_svid(token, AUDIENCE).spiffe_id != svid.spiffe_id:
        sys.exit("the agent says that it is somebody else")
    try:
        client.validate_jwt_svid(token, "post")
        sys.exit("good for somebody else, too")
    except PySpiffeError as error:
        if code_of(error) != grpc.StatusCode.INVALID_ARGUMENT:
            raise
    print("token", svid.spiffe_id, svid.expiry, flush=True)


def code_of(error):
    call = error.__cause__
    return call.code() if isinstance(call, grpc.Call) else None


def refused(client):
    """Whether the agent gives a certificate to nobody of our kind; then it must
    give nothing else either."""
    calls = {
        "a certificate": client.fetch_x509_svid,
        "a token": lambda: client.fetch_jwt_svid({AUDIENCE}),
        "keys": client.fetch_jwt_bundles,
        "a word about a token": lambda: client.validate_jwt_svid("a.b.c", AUDIENCE),
    }
    for what, call in calls.items():
        try:
            call()
        except PySpiffeError as error:
            if code_of(error) == grpc.StatusCode.PERMISSION_DENIED:
                continue
            if what != "a certificate":
                raise
        if what == "a certificate":
            return False
        sys.exit(f"refused, but for {what}")
    return True


def main():
    socket = "unix:" + sys.argv[1]
    client = WorkloadApiClient(socket, default_timeout=PATIENCE)
    if refused(client):
        print("refused")
        sys.exit(REFUSED)
    replaced = threading.Event()
    with X509Source(socket_path=socket, timeout_in_seconds=PATIENCE) as source:
        source.subscribe_for_updates(replaced.set)
        first = tell(source)
        show(socket, client)
        while source.get_x509_context().default_svid.leaf.serial_number == first:
            if not replaced.wait(PATIENCE):
                sys.exit("it was not replaced")
            replaced.clear()
        tell(source)


main()
