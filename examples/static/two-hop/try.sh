#!/bin/sh
# Starts everything of this example, calls it, and stops it again.
# Needs openssl 3, curl and python3; EDGE_PROXY names the binary if it is not
# in the PATH or under target/.
set -eu
cd "$(dirname "$0")"

for candidate in "${EDGE_PROXY:-}" ../../../target/release/edge-proxy ../../../target/debug/edge-proxy \
    "$(command -v edge-proxy || true)"; do
    [ -n "$candidate" ] && [ -x "$candidate" ] && proxy=$candidate && break
done
[ -n "${proxy:-}" ] || { echo "no edge-proxy: run 'cargo build -p edge-proxy', or set EDGE_PROXY" >&2; exit 1; }

logs=$(mktemp -d)
pids=
stop() {
    kill $pids 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$logs"
}
trap stop EXIT INT TERM

[ -e certs/checkout.pem ] || ./make-certs.sh
python3 apps.py & pids="$pids $!"
"$proxy" --config orders.yaml > "$logs/orders" & pids="$pids $!"
"$proxy" --config checkout.yaml > "$logs/checkout" & pids="$pids $!"

tries=0
until curl -sf http://127.0.0.1:4191/ready > /dev/null && curl -sf http://127.0.0.1:4192/ready > /dev/null &&
    curl -s http://127.0.0.1:8080/ > /dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { echo "the proxies did not get ready" >&2; exit 1; }
    sleep 0.1
done

echo '$ http_proxy=127.0.0.1:4140 curl http://orders.shop/hello'
http_proxy=127.0.0.1:4140 curl -sSf http://orders.shop/hello
echo 'ping, to the listener for the port redis: 127.0.0.1:4146'
python3 -c '
import socket
client = socket.create_connection(("127.0.0.1", 4146), 5)
client.sendall(b"ping\n")
client.shutdown(socket.SHUT_WR)
print(client.makefile().read(), end="")'
echo '$ curl -x 127.0.0.1:4140 http://127.0.0.1:4191/metrics  (refused: not a service)'
curl -sS -x 127.0.0.1:4140 --noproxy '' http://127.0.0.1:4191/metrics
echo '--- the access log of checkout'"'"'s proxy'
cat "$logs/checkout"
