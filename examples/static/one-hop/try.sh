#!/bin/sh
# Starts the application and its proxy, calls it, and stops everything again.
set -eu
cd "$(dirname "$0")"
. ../common.sh

start apps python3 ../apps.py 8080 8081 8082
start proxy "$proxy" --config proxy.yaml
until_up http://127.0.0.1:4191/ready http://127.0.0.1:8080/

export http_proxy=http://127.0.0.1:4140
show curl -sSf http://hello.demo/hello
show curl -sSf http://hello.demo/v2/hello
unset http_proxy
show curl -sSf http://127.0.0.1:4144/hello
show curl -sS -o /dev/null -w '%{http_code}\n' -H 'x-fail: yes' http://127.0.0.1:4144/hello
echo '--- the access log'
cat "$logs/proxy"
