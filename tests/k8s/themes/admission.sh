# The injector before a real API server: pods as they come, and what happens while
# no injector answers.
# shellcheck shell=bash

cluster east
node east
volumes east 1
cluster_dns east
helm east install isthmus k8s/chart --namespace isthmus-system --create-namespace --wait --timeout 120s \
    --set "site=east,trustDomain=east.example,image.registry=isthmus.example,image.tag=1,gateway.service.type=ClusterIP" \
    >"$WORK/last" 2>&1 || fail "helm: $(cat "$WORK/last")"
k east create namespace plain >/dev/null
for level in asked baseline restricted; do
    k east create namespace $level >/dev/null
    k east label namespace $level isthmus.dev/inject=enabled >/dev/null
done
for level in baseline restricted; do
    k east label namespace $level pod-security.kubernetes.io/enforce=$level >/dev/null
done
for level in plain asked baseline restricted; do
    eventually 20 k east -n $level get serviceaccount default
done
step 'the injector runs'

asked_for() {
    k east -n asked run first --image isthmus.example/box:1 --dry-run=server -o json -- busybox true |
        jq -e '.spec.initContainers | map(.name) | index("isthmus-proxy")'
}
eventually 20 asked_for
in_network east python3 tests/k8s/golden.py mesh-inject/tests/golden "$BIN/kubectl" --kubeconfig "$WORK/east/pki/admin.conf" \
    --cache-dir "$WORK/east/kubectl" >"$WORK/golden" || fail "$(cat "$WORK/golden")"
step "$(cat "$WORK/golden")"

# Nobody answers: who has not asked starts, who has waits.
k east -n isthmus-system scale deployment/isthmus-injector --replicas 0 >/dev/null
nobody() {
    [ "$(k east -n isthmus-system get endpointslices -l kubernetes.io/service-name=isthmus-injector -o json |
        jq '[.items[].endpoints // [] | .[]] | length')" = 0 ]
}
eventually 60 nobody
k east -n plain create deployment stranger --image isthmus.example/box:1 -- busybox sleep 1000 >/dev/null
rolled_out east plain deployment/stranger
k east -n asked create deployment waits --image isthmus.example/box:1 -- busybox sleep 1000 >/dev/null
told() {
    k east -n asked get events | grep -q 'FailedCreate.*isthmus'
}
eventually 20 told
[ "$(k east -n asked get pods -o name)" = '' ] || fail 'a pod that asked for the proxy started without one'
step 'no injector: a pod that has not asked starts, one that has waits'
k east -n isthmus-system scale deployment/isthmus-injector --replicas 2 >/dev/null
rolled_out east isthmus-system deployment/isthmus-injector
rolled_out east asked deployment/waits 120
k east -n asked get pods -o json | jq -e '.items[0].spec.initContainers | map(.name) | index("isthmus-proxy")' >"$WORK/last" ||
    fail "without a proxy: $(cat "$WORK/last")"
step 'it is back, and so is the pod, with its proxy'
