# A cluster joins: its pods talk mTLS to each other, to a service on a booted
# machine and back, by the names that a cluster has.
# shellcheck shell=bash

# install CLUSTER NUMBER: the chart, as the README has it.
install() {
    helm "$1" install isthmus k8s/chart --namespace isthmus-system --create-namespace --wait --timeout 120s \
        --set "site=$1,trustDomain=$1.example,image.registry=isthmus.example,image.tag=1" \
        --set "gateway.service.type=NodePort,gateway.service.nodePort=30443,gateway.addresses={10.77.0.$2:30443}" \
        >"$WORK/last" 2>&1 || fail "$1: helm: $(cat "$WORK/last")"
}

# ctl CLUSTER ARGUMENT…: meshctl in the control plane's own pod.
ctl() {
    k "$1" -n isthmus-system exec isthmus-0 -c federation -i -- meshctl "${@:2}"
}

# said CLUSTER POD FIELD: of the last line of the access log of a pod's proxy.
said() {
    k "$1" -n shop logs "$2" -c isthmus-proxy | grep '"reason"\|"status"' | tail -1 | jq -r "$3"
}

cluster east
node east
volumes east 1
cluster_dns east
install east 101
step 'helm has installed the control plane'
ctl east status >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"

k east create namespace shop >/dev/null
k east label namespace shop isthmus.dev/inject=enabled >/dev/null
k east apply -f tests/k8s/manifests/shop.yaml >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
rolled_out east shop deployment/orders
rolled_out east shop deployment/client
step 'a namespace is labelled, and an unmodified Deployment runs with its proxy'

asks() {
    k "$1" -n shop exec deployment/client -c client -- busybox timeout 5 busybox wget -q -O- "http://$2"
}
eventually 30 asks east orders
for name in orders orders.shop orders.shop.svc.cluster.local; do
    asks east $name >"$WORK/last" 2>&1 || fail "$name: $(cat "$WORK/last")"
done
step "pods reach each other by name: $(asks east orders)"
