# A cluster joins: its pods talk mTLS to each other, to a service on a booted
# machine and back, by the names that a cluster has.
# shellcheck shell=bash

cluster east
node east
volumes east 1
cluster_dns east
install_chart east "$(reached_at east)"
ctl east status >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
step 'helm has installed the control plane'

shop east
k east apply -f tests/k8s/manifests/shop.yaml >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
rolled_out east shop deployment/orders
rolled_out east shop deployment/client
k east -n shop get pods -o json | jq -e '[.items[].spec.initContainers[].name] | index("isthmus-proxy")' >"$WORK/last" ||
    fail "no proxy: $(cat "$WORK/last")"
step 'a namespace is labelled, and unmodified Deployments run with their proxies'

for name in orders orders.shop orders.shop.svc.cluster.local; do
    eventually 20 asks east $name
done
client=$(saw east deployment/client)
[ "$client" = 'outbound orders.shop by direct: spiffe://east.example/ns/shop/sa/orders' ] || fail "the client: $client"
step "pods reach each other by name; the client has seen: $client"
seen=$(for pod in $(pods east orders); do saw east "$pod"; done | sort -u)
[ "$seen" = 'inbound orders.shop by direct: spiffe://east.example/ns/shop/sa/client' ] || fail "the application: $seen"
step "the application's proxies have seen: $seen"

# Of both families.
k east -n shop patch service orders -p '{"spec":{"ipFamilyPolicy":"RequireDualStack"}}' >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
second=$(k east -n shop get service orders -o jsonpath='{.spec.clusterIPs[1]}')
over_mesh() {
    asks east "[$second]" && [ "$(saw east deployment/client)" = "$client" ] && [ "$(requests_of_client)" -gt "$before" ]
}
requests_of_client() {
    k east -n shop logs deployment/client -c isthmus-proxy | grep -c '"peer"'
}
before=$(requests_of_client)
eventually 20 over_mesh
step "and by $second, over mTLS, too"

# Mistakes are told on the object that has them; meanwhile everybody is answered.
# told KIND NAME REASON WORDS
told() {
    k east get events -A -o json | jq -e --arg kind "$1" --arg name "$2" --arg reason "$3" --arg words "$4" '.items | any(
        .involvedObject.kind == $kind and .involvedObject.name == $name and .reason == $reason and (.message | contains($words)))'
}
# shellcheck disable=SC2016
k east -n shop exec deployment/client -c client -- busybox sh -c '
    while [ ! -e /dev/shm/enough ]; do
        answer=$(busybox timeout 5 busybox wget -q -O- http://orders 2>&1) || answer="failed: $answer"
        echo "$answer"
        busybox sleep 0.05
    done' >"$WORK/answers" 2>/dev/null &
asking=$!
export_of() {
    k east -n shop annotate --overwrite service orders "isthmus.dev/export=$1" >/dev/null
}
export_of 'West Site'
k east -n shop annotate service orders isthmus.dev/opaque-ports=mysql >/dev/null
eventually 10 told Service orders InvalidField 'metadata.annotations[isthmus.dev/opaque-ports]: "mysql" is no port'
eventually 10 told Service orders InvalidField 'metadata.annotations[isthmus.dev/export]: "West Site" is no site'
before=$(wc -l <"$WORK/answers")
# A slice by hand, of a pod that is elsewhere; its name comes before those of the cluster's own.
k east -n shop get pods -l app=orders -o json | jq '{ apiVersion: "discovery.k8s.io/v1", kind: "EndpointSlice",
    metadata: { name: "a-mistake", labels: { "kubernetes.io/service-name": "orders" } },
    addressType: "IPv4", ports: [{ name: "http", port: 8080 }],
    endpoints: [.items[] | { addresses: ["10.244.1.250"], targetRef: { kind: "Pod", name: .metadata.name, namespace: "shop", uid: .metadata.uid } }] }' |
    k east -n shop create -f - >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
eventually 10 told EndpointSlice a-mistake InvalidField 'endpoints[0].addresses: 10.244.1.250 is not where pod orders-'
# Nobody's webhook is asked about these.
k east create namespace typo >/dev/null
k east label namespace typo isthmus.dev/inject=true >/dev/null
eventually 10 told Namespace typo InvalidField 'metadata.labels[isthmus.dev/inject]: "true" is neither enabled nor disabled'
k east -n default run typo --image isthmus.example/box:1 --labels isthmus.dev/inject=yes --command -- busybox sleep 1000 >/dev/null
eventually 10 told Pod typo InvalidField 'metadata.labels[isthmus.dev/inject]: "yes" is neither enabled nor disabled'
# Of the mesh by its own word, where nobody may be.
k east -n kube-system run odd --image isthmus.example/box:1 --annotations isthmus.dev/injected=1 --command -- busybox sleep 1000 >/dev/null
eventually 10 told Pod odd Refused 'namespace kube-system'
sleep 2
[ $(($(wc -l <"$WORK/answers") - before)) -ge 10 ] || fail "a slice by hand keeps callers waiting: $(tail -3 "$WORK/answers")"
k east -n shop delete endpointslice a-mistake >/dev/null
export_of west
k east -n shop annotate service orders isthmus.dev/opaque-ports- >/dev/null
k east -n shop exec deployment/client -c client -- busybox touch /dev/shm/enough
wait $asking || fail "no client any more: $(tail -1 "$WORK/answers")"
answers=$(sort "$WORK/answers" | uniq -c | sed 's/^ *//')
[[ $answers != *failed* && $(wc -l <<<"$answers") = 2 ]] || fail "orders, meanwhile: $answers"
step "Events name what makes no sense; meanwhile orders has answered: ${answers//$'\n'/, }"

machine control bookworm
machine web1 bookworm
add_application web1
boot control web1
install_packages control isthmus-federation
site control
install_packages web1 isthmus-vm-agent
join web1
eventually 20 backs web1
ctl east link token --site west >"$WORK/token" 2>"$WORK/last" || fail "$(cat "$WORK/last")"
in_machine control meshctl link cluster east - <"$WORK/token" >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
k east -n shop create service clusterip web --tcp 8080 >/dev/null
in_machine control meshctl service export web.shop >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
eventually 20 told Service web NotImported 'web.shop is not imported from west: this Service is not ours'
k east -n shop delete service web >/dev/null
step 'a site of machines is linked to it; a Service in the way of an import is told so'

eventually 20 asks east web:8080
client=$(saw east deployment/client)
[ "$client" = 'outbound web.shop by via gateway: spiffe://west.example/ns/shop/sa/web' ] || fail "the client: $client"
step "a pod reaches a machine by the name web: $(asks east web:8080); it has seen: $client"
back() {
    in_network web1 curl -sf --max-time 5 -H 'Host: orders.shop' http://127.0.0.1:4140/
}
eventually 20 back
by_machine() {
    for pod in $(pods east orders); do saw east "$pod"; done |
        grep -x 'inbound orders.shop by direct: spiffe://west.example/ns/shop/sa/web'
}
eventually 20 by_machine
step "and a machine reaches a pod: $(back); it has seen: $(by_machine)"

# web READY REASON: the object that shows it, once it is so.
web_is() {
    local said
    said=$(k east -n shop get workloads -l isthmus.dev/service=web -o json | jq -r '.items[] |
        .spec.site + " " + .spec.host + " " + .spec.identity + " " + (.status.conditions[] | select(.type == "Ready") | .status + " " + .reason)')
    [ "$said" = "west web1 spiffe://west.example/ns/shop/sa/web $1 $2" ] || { echo "$said"; return 1; }
}
eventually 20 web_is True Healthy
in_machine web1 systemctl stop web
eventually 30 web_is False Unhealthy
in_machine web1 systemctl start web
eventually 30 web_is True Healthy
step "the machine's application is an object of the cluster: $(k east -n shop get workloads --no-headers | tr -s ' ')"

# Who is not of the mesh.
k east create namespace plain >/dev/null
k east -n plain run stranger --image isthmus.example/box:1 --command -- busybox sleep 1000 >/dev/null
eventually 30 k east -n plain exec stranger -- busybox true
stranger() {
    k east -n plain exec stranger -- busybox timeout 5 busybox wget -q -O- "http://$1"
}
stranger web.shop:8080 >"$WORK/last" 2>&1 && fail "plaintext to another site: $(cat "$WORK/last")"
stranger orders.shop >"$WORK/last" 2>&1 && fail "plaintext to a pod of the mesh: $(cat "$WORK/last")"
grep -q '403\|refused\|reset' "$WORK/last" || fail "a refusal: $(cat "$WORK/last")"
step "a client that is not of the mesh is refused: $(tail -2 "$WORK/last" | sed -n 1p)"

# What links and controllers made goes with its cause.
in_machine control meshctl service unexport web.shop >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
no_import() {
    ! k east -n shop get service web
}
eventually 20 no_import
no_workload() {
    [ -z "$(k east -n shop get workloads -o name)" ]
}
eventually 20 no_workload
step 'an import that has ended is no Service any more'
