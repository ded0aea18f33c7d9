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
    k east -n asked get events | grep 'FailedCreate.*isthmus'
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

# What each annotation may not say, and what is said of it.
refused() {
    local annotation value words
    while IFS='|' read -r annotation value words; do
        k east -n asked run wrong --image isthmus.example/box:1 --annotations "isthmus.dev/$annotation=$value" --dry-run=server \
            >"$WORK/last" 2>&1 && fail "taken: $annotation: $value"
        grep -qF "denied the request: metadata.annotations[\"isthmus.dev/$annotation\"]: \"$value\": $words" "$WORK/last" ||
            fail "$annotation: $(cat "$WORK/last")"
    done <<'WRONG'
skip-outbound-ports|mysql|"mysql" is no port; write ports from 1 to 65535
skip-inbound-ports|9-8|"9-8" ends before it begins; write the lower port first
skip-outbound-cidrs|10.0.0.0/40|"10.0.0.0/40": the prefix must be 0 to 32; write blocks
opaque-ports|70000|"70000" is no port; write ports from 1 to 65535
redirect|no|write enabled or disabled
proxy-cpu-request|one|no quantity; write a number with a suffix
proxy-cpu-limit|-1|no quantity; write a number with a suffix
proxy-memory-request|64MB|no quantity; write a number with a suffix
proxy-memory-limit|much|no quantity; write a number with a suffix
proxy-log-level|verbose|no log level; write off, error
proxy-image||no image; write e.g.
native-sidecar|yes|write "true" or "false"
weight|50%|no share of traffic; write a number from 0 to 1000
WRONG
}
refused
# deployment NAME [ANNOTATION]: of one pod.
deployment() {
    cat <<YAML | k east -n asked apply -f - >"$WORK/last" 2>&1 || fail "$1: $(cat "$WORK/last")"
apiVersion: apps/v1
kind: Deployment
metadata: { name: $1 }
spec:
  selector: { matchLabels: { app: $1 } }
  template:
    metadata: { labels: { app: $1 }, annotations: { ${2:-} } }
    spec: { containers: [{ name: $1, image: "isthmus.example/box:1", command: [busybox, sleep, "1000"] }] }
YAML
}
deployment wrong 'isthmus.dev/weight: "50%"'
deployment right
not_created() {
    k east -n asked get events -o json | jq -e '.items | any(.reason == "FailedCreate" and .involvedObject.kind == "ReplicaSet"
        and (.message | contains("metadata.annotations[\"isthmus.dev/weight\"]: \"50%\": no share of traffic")))'
}
eventually 20 not_created
rolled_out east asked deployment/right
deployment wrong 'isthmus.dev/weight: "50"'
rolled_out east asked deployment/wrong
step 'what an annotation may not say is named to whoever applies the pod, and as an Event of its ReplicaSet; others start'

# The certificate and its CA at two thirds of their lives: the same keys, signed
# longer ago. Nobody who asks for a pod notices what follows.
secret() {
    k east -n isthmus-system get secret isthmus-injector-tls -o json | jq -r --arg key "$1" '.data[$key] // "" | @base64d'
}
# set_secret KEY FILE…
set_secret() {
    local patch='{}'
    while [ $# -gt 0 ]; do
        patch=$(jq --arg key "$1" --arg value "$(base64 -w0 "$2")" '.data[$key] = $value' <<<"$patch")
        shift 2
    done
    k east -n isthmus-system patch secret isthmus-injector-tls --type merge -p "$patch" >/dev/null
}
# bundles: each caBundle of the webhook, once.
bundles() {
    k east get mutatingwebhookconfiguration isthmus-injector -o json | jq -r '[.webhooks[].clientConfig.caBundle] | unique[] | @base64d'
}
# trusted FILE…: those, and nobody else.
trusted() {
    diff <(bundles | grep .) <(cat "$@" | grep .)
}
# aged NAME DAYS LEFT: $WORK/NAME.crt, begun so long ago, from its certificate and key there.
aged() {
    tls req -new -key "$WORK/$1.key" -subj "/$(openssl x509 -in "$WORK/$1.crt" -noout -subject | sed 's/^subject=//; s/ = /=/')" -out "$WORK/$1.csr"
    tls ca -batch -notext -preserveDN -config "$WORK/ca.cnf" -extensions "of_$1" -cert "$WORK/ca.crt" -keyfile "$WORK/ca.key" \
        -in "$WORK/$1.csr" -out "$WORK/aged-$1.crt" -startdate "$(date -u -d "-$2 days" +%Y%m%d%H%M%SZ)" \
        -enddate "$(date -u -d "$3 days" +%Y%m%d%H%M%SZ)" "${@:4}"
}
# serve CERTIFICATE: what every replica shows, to those who have the webhook's bundle.
serve() {
    local address wanted count=0
    wanted=$(openssl x509 -noout -fingerprint <<<"$1")
    bundles >"$WORK/bundle"
    for address in $(k east -n isthmus-system get pods -l app.kubernetes.io/component=injector -o jsonpath='{.items[*].status.podIP}'); do
        in_network east openssl s_client -connect "$address:8443" -CAfile "$WORK/bundle" -verify_return_error \
            -verify_hostname isthmus-injector.isthmus-system.svc </dev/null 2>"$WORK/served" |
            openssl x509 -noout -fingerprint 2>&1 | grep -qxF "$wanted" || { cat "$WORK/served"; return 1; }
        count=$((count + 1))
    done
    [ $count = 2 ]
}
admitted() {
    while [ ! -e "$WORK/enough" ]; do
        if asked_for >"$WORK/admission" 2>&1; then echo . >>"$WORK/admitted"; else cat "$WORK/admission" >>"$WORK/failed"; fi
    done
}
is_new() {
    [ -n "$(secret "$1")" ] && [ "$(secret "$1")" != "$2" ]
}
for name in ca:ca leaf:tls; do
    secret "${name#*:}.crt" >"$WORK/${name%:*}.crt"
    secret "${name#*:}.key" >"$WORK/${name%:*}.key"
done
: >"$WORK/ca.index"
cat >"$WORK/ca.cnf" <<CNF
[ca]
default_ca = aged
[aged]
database = $WORK/ca.index
new_certs_dir = $WORK
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
[any]
commonName = supplied
[of_ca]
subjectKeyIdentifier = none
basicConstraints = critical,CA:TRUE,pathlen:0
keyUsage = critical,keyCertSign,cRLSign
[of_leaf]
basicConstraints = critical,CA:FALSE
extendedKeyUsage = serverAuth
subjectAltName = DNS:isthmus-injector.isthmus-system.svc,DNS:isthmus-injector.isthmus-system.svc.cluster.local
CNF
aged ca 300 60 -selfsign
aged leaf 25 5
admitted &
set_secret ca.crt "$WORK/aged-ca.crt" tls.crt "$WORK/aged-leaf.crt"
eventually 30 is_new next-ca.since ''
secret next-ca.crt >"$WORK/next.crt"
eventually 20 trusted "$WORK/aged-ca.crt" "$WORK/next.crt"
eventually 20 is_new tls.crt "$(cat "$WORK/aged-leaf.crt")"
leaf=$(secret tls.crt)
eventually 30 serve "$leaf"
step 'a certificate that is due is replaced, and a CA that is due has its successor beside it in caBundle'
# What else takes two minutes, and an hour.
echo $(($(secret next-ca.since) - 120)) >"$WORK/since"
set_secret next-ca.since "$WORK/since"
eventually 30 is_new tls.crt "$leaf"
[ "$(secret ca.crt)" = "$(cat "$WORK/next.crt")" ] || fail 'another CA than was announced'
eventually 20 trusted "$WORK/next.crt" "$WORK/aged-ca.crt"
eventually 30 serve "$(secret tls.crt)"
step 'the successor signs, and both are trusted'
echo 1 >"$WORK/until"
set_secret last-ca.until "$WORK/until"
eventually 30 trusted "$WORK/next.crt"
eventually 10 serve "$(secret tls.crt)"
: >"$WORK/enough"
wait $!
none_failed 'a rotation'
[ "$(wc -l <"$WORK/admitted")" -gt 50 ] || fail "only $(wc -l <"$WORK/admitted") were asked for"
step "the first one is gone; $(wc -l <"$WORK/admitted") pods were asked for meanwhile, and each got its proxy"

# What the chart cannot know to be wrong leaves what was right.
injectors() {
    k east -n isthmus-system get pods -l app.kubernetes.io/component=injector -o name
}
before=$(injectors)
# configured VALUE…: kubelets look at once where a pod has changed.
configured() {
    helm east upgrade isthmus k8s/chart --namespace isthmus-system --reuse-values --wait --timeout 60s "$@" >"$WORK/last" 2>&1 || return
    k east -n isthmus-system annotate --overwrite pod -l app.kubernetes.io/component=injector "looked=$SECONDS" >/dev/null
}
# are_refused NUMBER: whether all injectors refuse what they were configured with.
are_refused() {
    local pod
    for pod in $before; do
        k east get --raw "/api/v1/namespaces/isthmus-system/pods/${pod#pod/}:8448/proxy/metrics" | grep -x "isthmus_injector_settings_refused $1" ||
            return
    done
}
configured --set injector.config.native_sidecars=never && fail 'a setting that is none'
grep -q "invalid propertyName 'native_sidecars'" "$WORK/last" || fail "$(cat "$WORK/last")"
configured --set injector.config.log_level=verbose || fail "$(cat "$WORK/last")"
eventually 30 are_refused 1
for pod in $before; do
    k east -n isthmus-system logs "$pod" >"$WORK/log"
    grep -q 'the settings stay as they were.*log_level: no log level; write off' "$WORK/log" ||
        grep -q 'log_level: no log level; write off.*the settings stay as they were' "$WORK/log" ||
        fail "$pod: $(tail -3 "$WORK/log")"
done
asked_for >"$WORK/last" 2>&1 || fail "without settings: $(cat "$WORK/last")"
step 'settings that make no sense are told in log and metrics; those of before hold'

# The older order: no native sidecars.
configured --set injector.config.log_level=info,injector.config.native_sidecar=never || fail "$(cat "$WORK/last")"
eventually 30 are_refused 0
[ "$(injectors)" = "$before" ] || fail 'other settings have cost injectors'
sed 's/namespace: shop/namespace: asked/' tests/k8s/manifests/shop.yaml | k east apply -f - >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
rolled_out east asked deployment/orders
# Its first word is to the mesh.
k east -n asked run early --image isthmus.example/box:1 --command -- \
    busybox sh -c 'busybox wget -q -O- http://orders || echo failed; exec busybox sleep 1000' >/dev/null
k east -n asked wait pod/early --for condition=ready --timeout 60s >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
containers() {
    k east -n asked get pod "$1" -o json | jq -r '.spec | [[.initContainers // [] | .[].name], [.containers[].name]] | map(join(" ")) | join(" | ")'
}
[ "$(containers early)" = 'isthmus-redirect | isthmus-proxy early' ] || fail "the order: $(containers early)"
early() {
    k east -n asked logs early | grep '^orders of orders-'
}
eventually 10 early
by_early() {
    k east -n asked logs early -c isthmus-proxy | newest_request | grep -x 'outbound orders.asked by direct: spiffe://east.example/ns/asked/sa/orders'
}
to_orders() {
    k east -n asked logs -l app=orders -c isthmus-proxy --tail -1 | newest_request | grep -x 'inbound orders.asked by direct: spiffe://east.example/ns/asked/sa/default'
}
eventually 10 by_early
eventually 10 to_orders
step "without native sidecars the proxy is the first container, and ready before the next: $(early)"
k east -n asked run once --restart Never --image isthmus.example/box:1 --dry-run=server -- busybox true >"$WORK/last" 2>&1
grep -q 'Warning: isthmus: no proxy: it runs to completion' "$WORK/last" || fail "no warning: $(cat "$WORK/last")"
k east -n asked create job once --image isthmus.example/box:1 -- busybox true >/dev/null
k east -n asked wait job/once --for condition=complete --timeout 60s >"$WORK/last" 2>&1 || fail "the Job: $(cat "$WORK/last")"
once=$(k east -n asked get pods -l job-name=once -o jsonpath='{.items[0].metadata.name}')
[ "$(containers "$once")" = ' | once' ] || fail "the Job: $(containers "$once")"
k east -n asked get pod "$once" -o json | jq -r '.metadata.annotations["isthmus.dev/skip-reason"]' >"$WORK/last"
grep -q 'runs to completion' "$WORK/last" || fail "$(cat "$WORK/last")"
step 'a Job, which it would keep from ending, runs without one, and says why'
