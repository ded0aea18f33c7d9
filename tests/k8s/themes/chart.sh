# The chart: installed into a restricted namespace, tested, upgraded, taken away and
# installed again, as the same site.
# shellcheck shell=bash

CHART=k8s/chart
# Images are there already, and nobody balances load.
SET=(--set "site=east,trustDomain=east.example,image.registry=isthmus.example,image.tag=1,gateway.service.type=NodePort")
HERE=isthmus-system

# succeeds WHAT COMMAND…
succeeds() {
    "${@:2}" >"$WORK/last" 2>&1 || fail "$1: $(tail -30 "$WORK/last")"
}

# refused WORDS VALUES…: a mistake is named before anything is there.
refused() {
    helm east template isthmus $CHART -n $HERE --kube-version 1.33.0 "${SET[@]}" "${@:2}" >"$WORK/last" 2>&1 &&
        fail "taken: ${*:2}"
    grep -qF -- "$1" "$WORK/last" || fail "not about $1: $(cat "$WORK/last")"
}

# every_pod FILTER: of the templates of all pods that the chart makes with all it has.
every_pod() {
    helm east template isthmus $CHART -n $HERE --kube-version 1.33.0 "${SET[@]}" --set networkPolicies.enabled=true \
        --set 'nodeProxy.enabled=true,nodeProxy.allowFrom={10.244.0.0/16}' >"$WORK/rendered.yaml"
    k east create --dry-run=client -o json -f "$WORK/rendered.yaml" |
        jq -rs "[.. | objects | select(has(\"containers\")) | $1] | unique[]"
}

# rooted: the fingerprint of the root that is kept.
rooted() {
    k east -n $HERE get secret isthmus-root -o jsonpath='{.data.root\.crt}' | base64 -d | openssl x509 -noout -pubkey |
        openssl pkey -pubin -outform DER | sha256sum | cut -d' ' -f1
}

# is_site ROOT: under that root, and its gateway talks to it.
is_site() {
    ctl east status -o json >"$WORK/status.json" || return
    jq -e --arg root "SHA256:$1" '.site == "east" and .root_fingerprint == $root and
        (.proxies | any(.gateway == "gw-1" and .acked != ""))' "$WORK/status.json" ||
        { cat "$WORK/status.json"; return 1; }
}

ca_bundle() {
    k east get mutatingwebhookconfiguration isthmus-injector -o jsonpath='{.webhooks[*].clientConfig.caBundle}'
}

no_pod() {
    ! k east -n $HERE get pod "$1"
}

# objects: everything that the cluster has, but what happened, and which nodes live.
objects() {
    local kinds
    kinds=$(k east api-resources --verbs=list -o name | grep -v '^events\|^componentstatuses' | paste -sd,)
    k east get "$kinds" -A -o json 2>"$WORK/warnings" |
        jq -r '.items[] | select(.metadata.namespace != "kube-node-lease") | "\(.kind | ascii_downcase)/\(.metadata.namespace // "")/\(.metadata.name)"' | sort -u
}

# only_left OBJECT…: beside what was there before.
only_left() {
    objects | comm -13 "$WORK/before" - >"$WORK/after"
    diff "$WORK/after" <(printf '%s\n' "$@")
}

uninstall() {
    succeeds uninstall helm east uninstall isthmus -n $HERE --wait --timeout 120s
}

cluster east
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
[ "$(sed -n 's/^\(version\|appVersion\): //p' $CHART/Chart.yaml | sort -u)" = "$version" ] || fail "the chart is not of version $version"
succeeds lint helm east lint --strict $CHART --kube-version 1.33.0 "${SET[@]}"
succeeds 'lint without values' helm east lint $CHART --kube-version 1.33.0
refused '--set site=east' --set site=
refused "at '/gateway/service/type'" --set gateway.service.type=Ingress
refused "at '/gateway/addresses/0'" --set 'gateway.addresses={gw.east.example}'
refused "additional properties 'typo' not allowed" --set typo=1
refused 'nodeProxy.allowFrom is needed' --set nodeProxy.enabled=true
refused 'begins neither with isthmus- nor' --set 'nodeProxy.enabled=true,nodeProxy.namespace=isthmus-node,nodeProxy.allowFrom={::/0}'
refused 'isthmus runs in namespace isthmus-system' -n mesh
for field in .resources.requests.memory .resources.limits.memory .resources.requests.cpu; do
    [ -z "$(every_pod ".containers[], (.initContainers // [])[] | select($field | not) | .name")" ] ||
        fail "a container without $field"
done
[ "$(every_pod '.automountServiceAccountToken')" = false ] || fail 'a pod is given the API server unasked'
step 'lint takes it; mistakes are named; every container has requests and a limit'

# before USER: what meshctl finds out by kubectl, as that one.
before() {
    in_network east env PATH="$BIN:$PATH" KUBECONFIG="$WORK/east/pki/$1.conf" "$PROGRAMS/meshctl" check --pre --context east
}
before admin >"$WORK/last" 2>&1 && fail 'content without a node and a StorageClass'
grep -q 'no node that runs Linux' "$WORK/last" || fail "$(cat "$WORK/last")"
node east
volumes east 2
cluster_dns east
succeeds 'check --pre' before admin
before kube-proxy >"$WORK/last" 2>&1 && fail 'content with whoever asks'
grep -q 'you may not create namespaces' "$WORK/last" || fail "$(cat "$WORK/last")"
step "meshctl check --pre: $(before admin | paste -sd' ')"

k east create namespace $HERE >/dev/null
k east label namespace $HERE pod-security.kubernetes.io/{enforce,warn}=restricted >/dev/null
shop east
objects >"$WORK/before"

succeeds install helm east install isthmus $CHART -n $HERE --wait --timeout 120s "${SET[@]}"
grep -q 'kubectl label namespace' "$WORK/last" || fail "no next step: $(cat "$WORK/last")"
root=$(rooted)
step "a restricted namespace takes it, with root ${root:0:8}"

succeeds 'helm test' helm east test isthmus -n $HERE --logs
for answer in http://isthmus:8448/ready http://isthmus:8449/ready tcp://isthmus-gateway:8443; do
    grep -q "^ok .*$answer" "$WORK/last" || fail "$answer: $(cat "$WORK/last")"
done
eventually 20 is_site "$root"
step 'helm test is content, and the gateway is seen by meshctl'

# containers NAMESPACE: of a pod that is made there.
containers() {
    k east -n "$1" run it --image isthmus.example/box:1 --dry-run=server -o json |
        jq -r '[.spec | (.initContainers // [])[], .containers[] | .name] | join(" ")'
}
[ "$(containers shop)" = 'isthmus-redirect isthmus-proxy it' ] || fail "in a namespace that asks: $(containers shop)"
[ "$(containers default)" = it ] || fail "in one that does not: $(containers default)"

# Another value. What injectors have written stays as it is.
bundle=$(ca_bundle)
[ -n "$bundle" ] || fail 'no caBundle'
claim=$(k east -n $HERE get pvc -o jsonpath='{.items[*].metadata.uid}')
succeeds upgrade helm east upgrade isthmus $CHART -n $HERE --reuse-values --wait --timeout 120s \
    --set 'gateway.addresses={gw.east.example:443},logLevel=warn,networkPolicies.enabled=true'
eventually 20 is_site "$root"
[ "$(ctl east status -o json | jq -r '.gateways[0].tls_addresses | join(" ")')" = "isthmus-gateway.$HERE.svc:8443 gw.east.example:443" ] ||
    fail 'the gateway has no other address'
[ "$(ca_bundle)" = "$bundle" ] || fail 'an upgrade has changed the caBundle'
[ "$(k east -n $HERE get pvc -o jsonpath='{.items[*].metadata.uid}')" = "$claim" ] || fail 'another claim'
step 'upgraded with another value, it is the same site'

# Nobody has asked for what it may not, nor has been refused what it needs.
eventually 20 k east -n shop get configmap isthmus-trust
k east -n shop create service clusterip wrong --tcp 80 >/dev/null
k east -n shop annotate service wrong isthmus.dev/export='East Site' >/dev/null
told() {
    k east -n shop get events -o json |
        jq -e '.items | any(.reason == "InvalidField" and (.message | contains("metadata.annotations[isthmus.dev/export]")))'
}
eventually 20 told
k east -n shop delete service wrong >/dev/null
for workload in statefulset/isthmus deployment/isthmus-gateway deployment/isthmus-injector; do
    k east -n $HERE logs $workload --all-containers >>"$WORK/logs" 2>/dev/null || true
done
grep -i 'forbidden' "$WORK/logs" && fail 'a right is missing'

# A proxy of each node, for those who know nothing but http_proxy.
succeeds 'a proxy of each node' helm east upgrade isthmus $CHART -n $HERE --reuse-values --wait --timeout 120s \
    --set 'nodeProxy.enabled=true,nodeProxy.allowFrom={10.244.0.0/16}'
succeeds shop k east apply -f tests/k8s/manifests/shop.yaml
rolled_out east shop deployment/orders 120
succeeds plain k east run plain --image isthmus.example/box:1 --command -- busybox sleep 1000
by_node() {
    k east exec plain -- busybox env http_proxy=http://10.77.0.101:4140 busybox timeout 5 busybox wget -q -O- http://orders.shop
}
eventually 40 by_node
grep -q '^orders of orders-' "$WORK/last" || fail "somebody else: $(cat "$WORK/last")"
step "through the proxy of its node a plain pod reaches the mesh: $(cat "$WORK/last")"
succeeds 'taken away' k east delete --wait -f tests/k8s/manifests/shop.yaml
succeeds 'taken away' k east delete pod plain --now

# Imports, as the controller writes them, and a Service that only looks like one.
k east -n $HERE scale statefulset/isthmus --replicas 0 >/dev/null
eventually 40 no_pod isthmus-0
for name in imported mine; do
    k east -n shop create service clusterip $name --tcp 80 >/dev/null
    k east -n shop label service $name app.kubernetes.io/managed-by=isthmus >/dev/null
done
k east -n shop annotate service imported isthmus.dev/imported-from=west >/dev/null
workload='{"apiVersion":"isthmus.dev/v1alpha1","kind":"Workload","metadata":{"name":"web-west-aa","labels":{"app.kubernetes.io/managed-by":"isthmus"}},
    "spec":{"service":"web","site":"west","identity":"spiffe://west.example/ns/shop/sa/web","ports":["http"]}}'
k east -n shop create -f - <<<"$workload" >"$WORK/last" 2>&1 || fail "a workload: $(cat "$WORK/last")"
uninstall
k east -n shop delete service mine >"$WORK/last" 2>&1 || fail "a Service of somebody else is gone: $(cat "$WORK/last")"
eventually 30 only_left apiservice//v1alpha1.isthmus.dev customresourcedefinition//workloads.isthmus.dev "persistentvolumeclaim/$HERE/state-isthmus-0" "secret/$HERE/isthmus-root"
step 'uninstalled, it leaves the root and the state of the site, the kind Workload, and nothing else'

succeeds 'install again' helm east install isthmus $CHART -n $HERE --wait --timeout 120s "${SET[@]}"
[ "$(rooted)" = "$root" ] || fail 'another root'
eventually 20 is_site "$root"
[ "$(k east -n $HERE get pvc -o jsonpath='{.items[*].metadata.uid}')" = "$claim" ] || fail 'another claim'
step 'installed again, it is the site of before'
uninstall
k east -n $HERE delete pvc state-isthmus-0 >/dev/null
succeeds 'install without state' helm east install isthmus $CHART -n $HERE --wait --timeout 120s "${SET[@]}"
eventually 20 is_site "$root"
step 'without its state, it is a new site under the same root'

# Without Helm.
uninstall
succeeds 'rendered again' env HELM="$BIN/helm" k8s/render
diff -u k8s/chart/install.yaml "$WORK/last" >"$WORK/difference" || fail "k8s/render > k8s/chart/install.yaml: $(cat "$WORK/difference")"
written() {
    "$PROGRAMS/meshctl" install --site east --trust-domain east.example --image-registry isthmus.example --image-tag 1 \
        --gateway-service node-port "$@"
}
for address in '' gw.east.example:443; do
    helm east template isthmus $CHART -n $HERE --kube-version 1.33.0 --skip-tests --include-crds "${SET[@]}" \
        --set createNamespace=true,sweep=false ${address:+--set "gateway.addresses={$address}"} | grep -v '^#' >"$WORK/chart"
    # shellcheck disable=SC2086
    written ${address:+--gateway $address} | grep -v '^#' | diff "$WORK/chart" - >"$WORK/difference" ||
        fail "meshctl install is not the chart: $(cat "$WORK/difference")"
done
for words in '' '--gateway gw.east.example:443'; do
    # shellcheck disable=SC2086
    written $words | k east apply -f - >"$WORK/last" 2>&1 || fail "kubectl apply: $(cat "$WORK/last")"
    for workload in statefulset/isthmus deployment/isthmus-gateway deployment/isthmus-injector; do
        rolled_out east $HERE $workload 120
    done
    eventually 20 is_site "$root"
done
step 'meshctl install is the chart, and kubectl applies it, twice'
