# The chart of an earlier commit is upgraded to this one's under load, within the
# cluster and over a link, both ways; then workloads are rolled to the new proxies.
# No request fails.
# shellcheck shell=bash

PREVIOUS=59aa12faabe217ecade34c14197e7f45078c95ac

# load_to NAME DOOR: eight clients in a pod, who know nothing of the mesh.
load_to() {
    local to=$WORK/$1.laps from=$WORK/$1.lapped
    mkfifo "$to" "$from"
    k east -n shop exec -i deployment/caller -c caller -- load keep "$2" 127.0.0.1:1 http 0 8 \
        <"$to" >"$from" 2>"$WORK/load" &
    # shellcheck disable=SC1083,SC2086
    exec {TO[$1]}>"$to" {FROM[$1]}<"$from"
}

lapped() {
    local name
    for name in near life; do
        lap "$1: $name" 8>&"${TO[$name]}" 9<&"${FROM[$name]}"
    done
    none_failed "$1: from the machine"
    step "from the machine, $1: $(wc -l <"$WORK/answers") requests"
}

# from_machine: one after the other, to the pods, until there is $WORK/enough.
from_machine() {
    while [ ! -e "$WORK/enough" ]; do
        near >>"$WORK/answers" 2>>"$WORK/errors" ||
            echo "failed at $(date +%T.%N): $(tail -1 "$WORK/errors")" >>"$WORK/failed"
        sleep 0.02
    done
}

near() {
    in_network serves curl -sS --fail-with-body --max-time 10 -w '\n' -d hello -H 'Host: near.shop' http://127.0.0.1:4140/
}

# running NAMESPACE: the pods that do, with their images of ours.
running() {
    k east -n "$1" get pods -o json | jq -r '.items[] | select(.metadata.deletionTimestamp | not) |
        "\(.metadata.uid) \(.metadata.name) \([.spec | (.initContainers // [])[], .containers[] | .image | select(contains("/isthmus-"))] | unique | join(" "))"'
}

mkdir "$WORK/previous"
git archive $PREVIOUS k8s/chart 2>"$WORK/last" | tar -x -C "$WORK/previous" ||
    fail "commit ${PREVIOUS::7} is not in this clone; a shallow one has not all: git fetch --unshallow"
cluster east
node east
volumes east 1
cluster_dns east
for image in isthmus-proxy isthmus-federation isthmus-k8s; do
    in_node east ctr -n k8s.io images tag isthmus.example/$image:{1,2} >/dev/null
done
CHART=$WORK/previous/k8s/chart install_chart east "$(reached_at east)"
shop east
sed 's/\blife\b/near/' tests/k8s/manifests/life.yaml | k east apply -f - >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
k east -n shop label service near isthmus.dev/export=true >/dev/null
machine control bookworm
machine serves bookworm
boot control serves
add_load serves
install_packages control isthmus-federation
site control
install_packages serves isthmus-vm-agent
join serves
ctl east link token --site west >"$WORK/token" 2>"$WORK/last" || fail "$(cat "$WORK/last")"
in_machine control meshctl link cluster east - <"$WORK/token" >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
in_machine control meshctl service export life.shop >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
rolled_out east shop deployment/near
rolled_out east shop deployment/caller
eventually 20 k east -n shop get service life
eventually 20 near
difference=$({ diff -rq "$WORK/previous/k8s/chart" k8s/chart || true; } | wc -l)
step "a site of machines and a cluster by the chart of ${PREVIOUS::7}; $difference files of today's differ, programs are the same under another tag"

declare -A TO=() FROM=()
load_to near "$(k east -n shop get service near -o jsonpath='{.spec.clusterIP}'):80"
load_to life 127.0.0.1:4140
from_machine &
lapped before

before=$(running isthmus-system)
# Helm leaves kinds alone that are there.
k east apply --server-side -f k8s/chart/crds >"$WORK/last" 2>&1 || fail "kinds: $(cat "$WORK/last")"
helm east upgrade isthmus k8s/chart --namespace isthmus-system --wait --timeout 120s --reset-then-reuse-values \
    --set image.tag=2,logLevel=debug,federation.config.workload_lifetime=12h >"$WORK/last" 2>&1 || fail "helm: $(cat "$WORK/last")"
after=$(running isthmus-system)
grep -v ':2$' <<<"$after" && fail 'not of the new tag'
comm -12 <(sort <<<"${before//:1/:2}") <(sort <<<"$after") | grep . && fail 'not replaced'
# gone NAMESPACE: what was replaced.
gone() {
    k east -n "$1" get pods -o json | jq -e 'all(.items[]; .metadata.deletionTimestamp | not)'
}
eventually 60 gone isthmus-system
step "upgraded: $(wc -l <<<"$after") pods are new"
lapped 'after the upgrade'
k east -n shop rollout restart deployment/near >/dev/null
rolled_out east shop deployment/near 120
eventually 40 gone shop
[ "$(running shop | grep -c ' near-.*:2$')" = 2 ] || fail "proxies: $(running shop)"
lapped 'after a rolling restart'
