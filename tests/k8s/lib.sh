# What themes of the cluster ring are written with, beside tests/vm/lib.sh, whose
# steps and network they share: clusters, nodes, and waiting for what is expected.
# shellcheck shell=bash
#
# WORK is a directory of this theme, BIN has the programs, IMAGES archives that
# every node has; all are given by `run`.
#
# A cluster is a network namespace of its name at the bridge of the machines,
# 10.77.0.101, .111 and so on; further nodes of it come after its own address. Every
# cluster has the same addresses inside, for none may depend on another's.

. tests/vm/lib.sh
. tests/k8s/pki.sh

CLUSTERS=()
# Name of each node, and of its cluster.
declare -A NODES=()
PODS=10.244 PODS6=fd00:244 SERVICES=10.96.0.0/16,fd00:96::/112 DNS=10.96.0.10

# --- the control plane

# cluster NAME: etcd, API server, controllers and scheduler, ready.
cluster() {
    cluster_alone "$1"
    start_controllers "$1"
    eventually 30 k "$1" -n default get serviceaccount default
}

# cluster_alone NAME: etcd and API server, ready.
cluster_alone() {
    local name=$1 dir=$WORK/$1 number=$((101 + 10 * ${#CLUSTERS[@]}))
    CLUSTERS+=("$name")
    mkdir -p "$dir"
    echo $number >"$dir/number"
    connect "$name" $number
    ip -n "$name" addr add "fd77::$number/64" dev eth0 nodad
    cluster_pki "$dir/pki" "10.77.0.$number" "fd77::$number" 127.0.0.1 10.96.0.1 fd00:96::1
    local user
    for user in admin kube-controller-manager kube-scheduler kube-proxy; do
        kubeconfig "$dir/pki" $user "https://10.77.0.$number:6443"
    done
    start_etcd "$name"
    start_apiserver "$name"
    eventually 60 k "$name" get --raw /readyz
}

# process DIR NAME COMMAND…: a program, whose pid is in DIR/NAME.pid.
process() {
    local dir=$1 name=$2
    shift 2
    "$@" </dev/null >>"$dir/$name.log" 2>&1 &
    echo $! >"$dir/$name.pid"
}

# stop_process MACHINE NAME [SIGNAL]: and waits for its end.
stop_process() {
    local pid
    pid=$(cat "$WORK/$1/$2.pid")
    kill "-${3:-TERM}" "$pid"
    wait "$pid" 2>/dev/null || true
}

start_etcd() {
    local dir=$WORK/$1
    process "$dir" etcd ip netns exec "$1" "$BIN/etcd" --name "$1" --data-dir "$dir/etcd" --unsafe-no-fsync --log-level warn \
        --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
        --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
        --initial-cluster "$1=http://127.0.0.1:2380"
}

start_apiserver() {
    local dir=$WORK/$1 pki=$WORK/$1/pki
    process "$dir" kube-apiserver ip netns exec "$1" "$BIN/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 \
        --advertise-address="10.77.0.$(cat "$dir/number")" --secure-port=6443 \
        --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
        --kubelet-client-certificate="$pki/apiserver-kubelet-client.crt" \
        --kubelet-client-key="$pki/apiserver-kubelet-client.key" --kubelet-preferred-address-types=InternalIP \
        --requestheader-client-ca-file="$pki/front-proxy-ca.crt" --requestheader-allowed-names=front-proxy-client \
        --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
        --requestheader-extra-headers-prefix=X-Remote-Extra- \
        --proxy-client-cert-file="$pki/front-proxy-client.crt" --proxy-client-key-file="$pki/front-proxy-client.key" \
        --service-account-issuer=https://kubernetes.default.svc.cluster.local --service-account-key-file="$pki/sa.pub" \
        --service-account-signing-key-file="$pki/sa.key" --service-cluster-ip-range="$SERVICES" \
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true --profiling=false
}

start_controllers() {
    local dir=$WORK/$1 pki=$WORK/$1/pki name
    process "$dir" kube-controller-manager ip netns exec "$1" "$BIN/kube-controller-manager" --leader-elect=false \
        --kubeconfig="$pki/kube-controller-manager.conf" --bind-address=127.0.0.1 --use-service-account-credentials=true \
        --root-ca-file="$pki/ca.crt" --service-account-private-key-file="$pki/sa.key" \
        --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key"
    process "$dir" kube-scheduler ip netns exec "$1" "$BIN/kube-scheduler" --leader-elect=false \
        --kubeconfig="$pki/kube-scheduler.conf" --bind-address=127.0.0.1
}

# k CLUSTER ARGUMENT…: kubectl as the cluster's administrator.
k() {
    local name=$1
    shift
    in_network "$name" "$BIN/kubectl" --kubeconfig "$WORK/$name/pki/admin.conf" --cache-dir "$WORK/$name/kubectl" "$@"
}

# helm CLUSTER ARGUMENT…
helm() {
    local name=$1
    shift
    in_network "$name" env HOME="$WORK/$name" "$BIN/helm" --kubeconfig "$WORK/$name/pki/admin.conf" "$@"
}

# --- nodes

# node CLUSTER [NAME]: a machine with containerd and kubelet, Ready: the control
# plane's own, or one of another name with an address of its own.
node() {
    local cluster=$1 name=${2:-$1} dir=$WORK/${2:-$1} number index image range
    index=$(($(cat "$WORK/$cluster/nodes" 2>/dev/null || echo 0) + 1))
    number=$(($(cat "$WORK/$cluster/number") + index - 1))
    [ "$name" != "$cluster" ] || number=$(cat "$WORK/$cluster/number")
    echo "$index" >"$WORK/$cluster/nodes"
    NODES[$name]=$cluster
    mkdir -p "$dir/var"/{lib/{kubelet,containerd,cni},log,tmp}
    if [ "$name" != "$cluster" ]; then
        connect "$name" "$number"
        ip -n "$name" addr add "fd77::$number/64" dev eth0 nodad
    fi
    in_network "$name" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    # What a node itself sends to a Service needs a way before kube-proxy gives it another.
    for range in ${SERVICES//,/ }; do
        ip -n "$name" route add "$range" dev eth0
    done
    echo "$index $number" >"$dir/node"
    routes "$cluster"
    make_machine "$name"
    configure_node "$name"
    start_containerd "$name"
    for image in "$IMAGES"/*.tar; do
        import_image "$name" "$image"
    done
    start_kubelet "$name"
    start_kube_proxy "$name"
    eventually 60 ready "$name"
}

ready() {
    [ "$(k "${NODES[$1]}" get node "$1" -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}')" = True ]
}

# routes CLUSTER: to the pods of its other nodes.
routes() {
    local from to index number
    for from in "${!NODES[@]}"; do
        [ "${NODES[$from]}" = "$1" ] || continue
        for to in "${!NODES[@]}"; do
            [ "$to" != "$from" ] || continue
            [ "${NODES[$to]}" = "$1" ] || continue
            read -r index number <"$WORK/$to/node"
            ip -n "$from" route replace "$PODS.$index.0/24" via "10.77.0.$number"
            ip -n "$from" route replace "$PODS6:$index::/64" via "fd77::$number"
        done
    done
}

# A node's own mounts: what it writes it writes below $WORK, and what kubelet wants
# of the kernel it is told to be so already.
make_machine() {
    local dir=$WORK/$1
    nsenter --net="/run/netns/$1" unshare --mount --uts bash -euo pipefail -c '
        hostname "$0"
        ln -sfn /run "$1/var/run"
        mount --bind "$1/var" /var
        mount -t tmpfs none /run
        mkdir /run/netns /run/cni
        while read -r sysctl value; do
            echo "$value" >"/run/${sysctl//\//.}"
            mount --bind "/run/${sysctl//\//.}" "/proc/sys/$sysctl"
        done <<<"vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000"
        mount --make-rshared /
        touch "$1/made"
        exec sleep infinity' "$1" "$dir" </dev/null >"$dir/machine.log" 2>&1 &
    echo $! >"$dir/machine.pid"
    eventually 5 test -e "$dir/made"
    # cgroups of v1 take their processors from those above only when told to.
    local at cgroup file
    for at in /sys/fs/cgroup/*/; do
        cgroup=$at$CGROUP-$1
        mkdir -p "$cgroup"
        [ ! -e "$cgroup/cpuset.cpus" ] || for file in cpuset.cpus cpuset.mems; do
            cat "$at$file" >"$cgroup/$file"
        done
    done
}

# in_node NAME COMMAND…
in_node() {
    nsenter --target "$(cat "$WORK/$1/machine.pid")" --mount --uts --net -- "${@:2}"
}

configure_node() {
    local name=$1 dir=$WORK/$1 cluster=${NODES[$1]} index number pki
    read -r index number <"$dir/node"
    pki=$WORK/$cluster/pki
    issue "$pki" ca "node-$name" "/O=system:nodes/CN=system:node:$name"
    kubeconfig "$pki" "node-$name" "https://10.77.0.$(cat "$WORK/$cluster/number"):6443"
    : >"$dir/resolv.conf"
    in_node "$name" tee /run/cni/10-ptp.conflist >/dev/null <<JSON
{ "cniVersion": "1.0.0", "name": "pods", "plugins": [
  { "type": "ptp", "ipMasq": true, "ipam": { "type": "host-local",
    "ranges": [[{ "subnet": "$PODS.$index.0/24" }], [{ "subnet": "$PODS6:$index::/64" }]],
    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] } },
  { "type": "portmap", "capabilities": { "portMappings": true } } ] }
JSON
    cat >"$dir/containerd.toml" <<TOML
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "isthmus.example/pause:1"
# Where nobody has CAP_SYS_RESOURCE.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/run/cni"
TOML
    cat >"$dir/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: { anonymous: { enabled: false }, webhook: { enabled: true }, x509: { clientCAFile: $pki/ca.crt } }
authorization: { mode: Webhook }
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP-$name
clusterDNS: [$DNS]
clusterDomain: cluster.local
resolvConf: $dir/resolv.conf
failSwapOn: false
protectKernelDefaults: true
# Nothing can be pulled again.
imageGCHighThresholdPercent: 100
evictionHard: { memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1% }
YAML
    cat >"$dir/kube-proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: $name
clientConnection: { kubeconfig: $pki/kube-proxy.conf }
detectLocalMode: ClusterCIDR
clusterCIDR: $PODS.0.0/16,$PODS6::/32
# The kernel's, not this namespace's.
conntrack: { maxPerCore: 0, min: 0 }
YAML
}

node_process() {
    process "$WORK/$1" "$2" nsenter --target "$(cat "$WORK/$1/machine.pid")" --mount --uts --net -- "${@:3}"
}

start_containerd() {
    node_process "$1" containerd containerd --config "$WORK/$1/containerd.toml"
    eventually 10 in_node "$1" ctr version
}

start_kubelet() {
    local number
    read -r _ number <"$WORK/$1/node"
    node_process "$1" kubelet "$BIN/kubelet" --config "$WORK/$1/kubelet.yaml" \
        --kubeconfig "$WORK/${NODES[$1]}/pki/node-$1.conf" --hostname-override "$1" --node-ip "10.77.0.$number,fd77::$number"
}

start_kube_proxy() {
    node_process "$1" kube-proxy "$BIN/kube-proxy" --config "$WORK/$1/kube-proxy.yaml"
}

# import_image NODE ARCHIVE
import_image() {
    in_node "$1" ctr -n k8s.io images import "$2" >"$WORK/last" 2>&1 || fail "$1: $2: $(cat "$WORK/last")"
}

# cluster_dns CLUSTER: CoreDNS at the address that kubelet tells pods.
cluster_dns() {
    k "$1" apply -f tests/k8s/manifests/coredns.yaml >"$WORK/last" 2>&1 || fail "$1: $(cat "$WORK/last")"
    rolled_out "$1" kube-system deployment/coredns
}

# rolled_out CLUSTER NAMESPACE WORKLOAD [SECONDS]
rolled_out() {
    k "$1" -n "$2" rollout status "$3" --timeout "${4:-60}s" >"$WORK/last" 2>&1 ||
        fail "$1: $3: $(cat "$WORK/last")"
}

# volumes NODE COUNT: for whoever claims one of the default class. Kubelet gives
# them to a pod's fsGroup.
volumes() {
    local name=$1 number
    for number in $(seq "$2"); do
        in_node "$name" mkdir -p "/var/lib/volumes/$number"
        cat <<YAML
---
apiVersion: v1
kind: PersistentVolume
metadata: { name: $name-$number }
spec:
  storageClassName: standard
  capacity: { storage: 1Gi }
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  local: { path: /var/lib/volumes/$number }
  nodeAffinity:
    required: { nodeSelectorTerms: [{ matchExpressions: [{ key: kubernetes.io/hostname, operator: In, values: [$name] }] }] }
YAML
    done | cat tests/k8s/manifests/storage.yaml - | k "${NODES[$name]}" apply -f - >"$WORK/last" 2>&1 ||
        fail "$name: $(cat "$WORK/last")"
}

# --- sites and applications

# install_chart CLUSTER [VALUE…]: as the README has it, its gateway at port 30443 of
# each node.
install_chart() {
    helm "$1" install isthmus "${CHART:-k8s/chart}" --namespace isthmus-system --create-namespace --wait --timeout 120s \
        --set "site=$1,trustDomain=$1.example,image.registry=isthmus.example,image.tag=1" \
        --set gateway.service.type=NodePort,gateway.service.nodePort=30443 "${@:2}" \
        >"$WORK/$1/helm" 2>&1 || fail "$1: helm: $(cat "$WORK/$1/helm")"
}

# reached_at CLUSTER: that others reach its gateway there.
reached_at() {
    echo "--set=gateway.addresses={10.77.0.$(cat "$WORK/$1/number"):30443}"
}

# ctl CLUSTER ARGUMENT…: meshctl in the control plane's own pod.
ctl() {
    k "$1" -n isthmus-system exec isthmus-0 -c federation -i -- meshctl "${@:2}"
}

# shop CLUSTER: a namespace whose pods are injected.
shop() {
    k "$1" create namespace shop >/dev/null
    k "$1" label namespace shop isthmus.dev/inject=enabled >/dev/null
}

# asks CLUSTER HOST: the application client, which knows nothing of the mesh.
asks() {
    k "$1" -n shop exec deployment/client -c client -- busybox timeout 5 busybox wget -q -O- "http://$2"
}

# saw CLUSTER POD: the newest request at a pod's proxy that had a verified other end.
saw() {
    k "$1" -n shop logs "$2" -c isthmus-proxy | newest_request
}

newest_request() {
    grep '"peer"' | tail -1 | jq -r '.direction + " " + .service + " by " + .via + ": " + .peer'
}

# pods CLUSTER APPLICATION
pods() {
    k "$1" -n shop get pods -l "app=$2" -o name
}

# --- what went wrong

# unready CLUSTER: namespace and name of pods that should be ready.
unready() {
    k "$1" --request-timeout 5s get pods -A -o json | jq -r '.items[] | select(.status.phase != "Succeeded") |
        select(any(.status.conditions[]?; .type == "Ready" and .status == "True") | not) | "\(.metadata.namespace) \(.metadata.name)"'
}

evidence() {
    journals
    local name log namespace pod
    for name in "${CLUSTERS[@]}"; do
        echo "--- objects of $name"
        {
            k "$name" --request-timeout 5s get pods -A -o wide | head -60
            k "$name" --request-timeout 5s get events -A --sort-by=.lastTimestamp | tail -25
            unready "$name" | head -12 | while read -r namespace pod; do
                echo "--- $pod"
                k "$name" --request-timeout 5s -n "$namespace" logs "$pod" --all-containers --prefix --tail 8
            done
        } 2>&1 || true
    done
    for log in "$WORK"/*/*.log; do
        echo "--- $log"
        grep -E '^[EF]|level=(error|fatal)' "$log" | tail -4 | cut -c1-400 || true
    done
}
