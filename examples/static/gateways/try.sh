#!/bin/sh
# Starts two sites with a gateway each, calls from one into the other, with the
# gateways' tunnel over QUIC and then over TLS, and stops everything again.
set -eu
cd "$(dirname "$0")"
. ../common.sh

[ -e certs/orders.pem ] || ../make-certs.sh certs west.example/checkout west.example/gateway \
    east.example/orders east.example/gateway

for transport in ${*:-quic tls}; do
    echo "=== the link over $transport"
    ISTHMUS_PROXY_SET_SITE="links[0].transport=$transport"
    export ISTHMUS_PROXY_SET_SITE
    start apps python3 ../apps.py 8080 8081 8082
    for process in orders east-gateway west-gateway checkout; do
        start $process "$proxy" --config $process.yaml
    done
    until_up http://127.0.0.1:8080/ http://127.0.0.1:4191/ready http://127.0.0.1:4192/ready \
        http://127.0.0.1:4193/ready http://127.0.0.1:4194/ready

    # The first request waits for the tunnel between the gateways.
    http_proxy=http://127.0.0.1:4140 show curl -sSf --retry 5 --retry-all-errors http://orders.shop/hello
    grpc 4145
    tcp 4146
    echo "--- the west gateway's log of the link"
    cat "$logs/west-gateway.err" | grep -i "link\|tunnel\|session" | tail -3 || true
    kill $pids
    wait $pids 2>/dev/null || true
    pids=
done
