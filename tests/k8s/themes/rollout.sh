# Under load, by the proxy of an unmodified client: a rolling update, more and fewer
# replicas, a pod that is deleted, a node that is drained. No request fails; Jobs end.
# shellcheck shell=bash

cluster east
node east
node east east2
volumes east 1
cluster_dns east
install_chart east
shop east
k east apply -f tests/k8s/manifests/life.yaml >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
rolled_out east shop deployment/life
rolled_out east shop deployment/caller
step 'two replicas and who calls them run'

rm -f "$WORK/laps" "$WORK/lapped"
mkfifo "$WORK/laps" "$WORK/lapped"
k east -n shop exec -i deployment/caller -c caller -- load keep 127.0.0.1:4140 127.0.0.1:1 http 0 8 \
    <"$WORK/laps" >"$WORK/lapped" 2>"$WORK/load" &
LOADING=$!
exec 8>"$WORK/laps" 9<"$WORK/lapped"
lap 'before'

# done_with WHAT COMMAND…: under load, and for some time after it.
done_with() {
    "${@:2}" >"$WORK/last" 2>&1 || fail "$1: $(cat "$WORK/last")"
    k east -n shop rollout status deployment/life --timeout 90s >"$WORK/last" 2>&1 || fail "$1: $(cat "$WORK/last")"
    sleep 7
    lap "$1"
}
done_with 'a rolling update' k east -n shop rollout restart deployment/life
done_with 'from two replicas to four' k east -n shop scale deployment/life --replicas 4
done_with 'and to one' k east -n shop scale deployment/life --replicas 1
done_with 'to two again' k east -n shop scale deployment/life --replicas 2
# Those that scaling down has ended may be listed for a while yet.
victim=$(k east -n shop get pods -l app=life -o json |
    jq -r '[.items[] | select(.metadata.deletionTimestamp == null and .status.phase == "Running")][0].metadata.name')
done_with 'a pod is deleted' k east -n shop delete pod "$victim"
done_with 'a node is drained' k east drain east2 --ignore-daemonsets --delete-emptydir-data --timeout 90s
let_go
step 'no request has failed'

k east -n shop create job once --image isthmus.example/box:1 -- busybox wget -q -O- http://life >"$WORK/last" 2>&1 ||
    fail "$(cat "$WORK/last")"
k east -n shop wait job/once --for condition=complete --timeout 60s >"$WORK/last" 2>&1 || fail "the Job: $(cat "$WORK/last")"
step 'a Job has called by name, and ended'
