#!/bin/sh
# Starts everything of this example, calls it, and stops it again.
set -eu
cd "$(dirname "$0")"
. ../common.sh

[ -e certs/orders.pem ] || ../make-certs.sh certs west.example/checkout west.example/orders
start apps python3 ../apps.py 8080 8081 8082
start orders "$proxy" --config orders.yaml
start checkout "$proxy" --config checkout.yaml
until_up http://127.0.0.1:4191/ready http://127.0.0.1:4192/ready http://127.0.0.1:8080/

export http_proxy=http://127.0.0.1:4140
show curl -sSf http://orders.shop/hello
unset http_proxy
grpc 4145
tcp 4146
echo 'Not a service: refused.'
show curl -sS -x http://127.0.0.1:4140 --noproxy '' http://127.0.0.1:4191/metrics
echo "--- the access log of checkout's proxy"
cat "$logs/checkout"
