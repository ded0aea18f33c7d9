# The ring itself: a real node runs our images, a Service leads to each replica, pods
# find it by name, and two clusters know nothing of each other but an address.
# shellcheck shell=bash

cluster east
node east
cluster_dns east
step "a node of $(k east get node east -o jsonpath='{.status.nodeInfo.kubeletVersion}') is ready"
k east apply -f tests/k8s/manifests/web.yaml >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
rolled_out east shop deployment/web
eventually 20 k east -n shop exec client -- busybox true
step 'two replicas and their client run in a restricted namespace'

# by_name CLUSTER NAME [TIMES]: from a pod.
by_name() {
    k "$1" -n shop exec client -- busybox sh -ec \
        'for _ in $(busybox seq "$1"); do busybox timeout 5 busybox wget -q -O- "http://$0"; done' "$2" "${3:-1}"
}

# replicas CLUSTER FIELD: of those that stay.
replicas() {
    k "$1" -n shop get pods -l app=web -o json |
        jq -r ".items[] | select(.metadata.deletionTimestamp | not) | $2" | sort -u
}

# every_replica CLUSTER NAME: has answered by it, and nobody else.
every_replica() {
    by_name "$1" "$2" 30 | sort -u | diff - <(replicas "$1" .metadata.name)
}

for name in web web.shop web.shop.svc.cluster.local; do
    eventually 20 every_replica east $name
done
step 'a Service reaches each of them, by every form of its name'

# As it reaches webhooks.
service=$(k east -n shop get service web -o jsonpath='{.spec.clusterIP}')
in_network east busybox timeout 5 busybox wget -q -O- "http://$service" >"$WORK/last" || fail 'the control plane reaches no Service'
helm east list -A >"$WORK/last" 2>&1 || fail "helm: $(cat "$WORK/last")"

k east -n shop exec client -- busybox nslookup nothing.shop.svc.cluster.local >"$WORK/last" 2>&1 &&
    fail "a name that nobody has: $(cat "$WORK/last")"
grep -q NXDOMAIN "$WORK/last" || fail "a name that nobody has: $(cat "$WORK/last")"

k east -n shop run root --image isthmus.example/box:1 --privileged >"$WORK/last" 2>&1 &&
    fail 'a restricted namespace has taken a privileged pod'
grep -q 'violates PodSecurity "restricted' "$WORK/last" || fail "refused otherwise: $(cat "$WORK/last")"

# Our own programs, from scratch.
k east -n shop create deployment proxy --image isthmus.example/isthmus-proxy:1 --replicas 2 --dry-run=client -o json |
    jq '.spec.template.spec |= (
            .securityContext = { runAsNonRoot: true, seccompProfile: { type: "RuntimeDefault" } } |
            .containers[0] |= (. + {
                env: [{ name: "ISTHMUS_PROXY_SET", value: "admin=0.0.0.0:4191" }],
                readinessProbe: { httpGet: { path: "/live", port: 4191 }, periodSeconds: 1 },
                securityContext: { allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: { drop: ["ALL"] } } }))' |
    k east apply -f - >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
k east -n shop expose deployment proxy --port 80 --target-port 4191 >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
rolled_out east shop deployment/proxy
eventually 20 by_name east proxy/live
k east -n shop logs deployment/proxy >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
step 'the proxy runs from its own image, as its own user'

# A claim, of a user that may write there.
volumes east 1
k east apply -f tests/k8s/manifests/claim.yaml >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
eventually 20 k east exec keeper -- busybox test -s /data/kept
step 'a claim has a volume'

# A second node, over the bridge of the machines.
node east east2
k east cordon east >/dev/null
k east -n shop rollout restart deployment/web >/dev/null
rolled_out east shop deployment/web
eventually 20 every_replica east web
[ "$(replicas east .spec.nodeName)" = east2 ] || fail 'pods have not moved to the second node'
eventually 20 by_name east "[$(replicas east '.status.podIPs[1].ip' | sed -n 1p)]:8080"
step 'a client on one node reaches pods on another, over IPv4 and IPv6'

# The API server dies; nothing that runs hears of it.
stop_process east kube-apiserver KILL
start_apiserver east
eventually 60 every_replica east web
step 'the API server has started again'

# Another cluster, with the same addresses inside.
cluster west
node west
cluster_dns west
k west apply -f tests/k8s/manifests/web.yaml >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
rolled_out west shop deployment/web
eventually 20 every_replica west web
eventually 20 every_replica east web
step 'two clusters stand beside each other'
for name in 10.77.0.101:30080 10.77.0.102:30080 10.77.0.101:8080/kept; do
    eventually 20 by_name west $name
done
by_name west "$(replicas east .status.podIP | sed -n 1p):8080" >"$WORK/last" 2>&1 && fail 'and its pods'
step 'one reaches ports of nodes of the other, and nothing else'
