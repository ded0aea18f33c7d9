# A large cluster that changes all the time: 2000 Services, 20 000 endpoints, 50
# changes a second, the API server restarted in the middle. What a gateway knows at
# the end is what the API server says, and what it took is told.
# shellcheck shell=bash
#
#   ISTHMUS_CHURN_SECONDS   of changes; 60

seconds=${ISTHMUS_CHURN_SECONDS:-60}
cluster_alone east
dir=$WORK/east
churn() {
    in_network east env RUST_BACKTRACE=0 KUBECONFIG="$dir/pki/admin.conf" "$CHURN" "$@"
}
# Nothing runs these pods, so nothing may tidy them up: no controllers, no scheduler.
churn fill >"$WORK/last" 2>&1 || fail "$(tail -3 "$WORK/last")"
step "the API server has $(cat "$WORK/last")"

site=$dir/site
mkdir "$site"
in_network east "$PROGRAMS/meshctl" --run "$site/run" site init east --trust-domain east.example \
    --state "$site/federation" --config "$site/etc" --listen 127.0.0.1:8446 --admin 127.0.0.1:8448 \
    --gateway-listen 127.0.0.1:8443 --gateway-address 127.0.0.1:8443 --gateway-admin 127.0.0.1:8447 \
    --gateway-state "$site/gateway" >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
echo 'cluster: {}' >>"$site/etc/federation.yaml"
ours() {
    process "$dir" "$1" ip netns exec east env KUBECONFIG="$dir/pki/admin.conf" POD_NAMESPACE=isthmus-system "$PROGRAMS/${@:2:1}" "${@:3}"
}
k east create namespace isthmus-system >/dev/null
ours federation federation --config "$site/etc/federation.yaml"
eventually 20 test -S "$site/run/federation.sock"
ours gateway edge-proxy --config "$site/etc/gateway.yaml"
ours controller isthmus-k8s controller --run "$site/run" --admin 127.0.0.1:8449
# PROGRAM: its processor time so far in milliseconds, and the most memory in MiB.
cpu() {
    cat /proc/"$(cat "$dir/$1.pid")"/task/*/schedstat | awk '{ s += $1 } END { print int(s / 1000000) }'
}
memory() {
    awk '/VmHWM/ { printf "%d", $2 / 1024 }' "/proc/$(cat "$dir/$1.pid")/status"
}
churn verify "$site/gateway/snapshot.bin" --within 90 >"$WORK/last" 2>&1 || fail "$(tail -3 "$WORK/last")"
step "a gateway knows $(cat "$WORK/last")"

metrics() {
    in_network east curl -sf --max-time 5 http://127.0.0.1:8449/metrics
}
declare -A before
for name in controller federation gateway; do before[$name]=$(cpu $name); done
churn run --seconds "$seconds" >"$WORK/churn" 2>&1 &
changes=$!
sleep $((seconds / 2))
stop_process east kube-apiserver KILL
start_apiserver east
wait $changes || fail "changes: $(tail -3 "$WORK/churn")"
step "$(cat "$WORK/churn")"
for name in controller federation gateway; do
    step "$name: $((($(cpu $name) - ${before[$name]}) / seconds / 10)) % of a core, at most $(memory $name) MiB"
done
churn verify "$site/gateway/snapshot.bin" >"$WORK/last" 2>&1 || fail "$(tail -3 "$WORK/last")"
step "a gateway knows $(cat "$WORK/last")"
metrics >"$WORK/metrics" || fail 'no figures of the controller'
lag=$(awk '/^isthmus_controller_lag_seconds_bucket/ { split($1, le, "\""); print le[2], $2 }
    /^isthmus_controller_lag_seconds_count/ { print "count", $2 }' "$WORK/metrics" |
    awk '$1 == "count" { n = $2; next } { b[++i] = $1; c[i] = $2; if ($1 == "+Inf") n = $2 }
        END { for (q = 1; q <= 2; q++) { want = n * (q == 1 ? 0.5 : 0.99)
            for (j = 1; j <= i; j++) if (c[j] >= want) { printf "%s%s s", q == 1 ? "half within " : ", 99 % within ", b[j]; break } } }')
[ -n "$lag" ] || fail 'no lag in the figures of the controller'
step "until federation has a change on disk: $lag"
for name in controller gateway federation; do stop_process east $name; done
