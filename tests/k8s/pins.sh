# Where setup puts what it builds, and what run looks for. Another pin, another place.
# shellcheck shell=bash disable=SC2034
BIN=${XDG_CACHE_HOME:-$HOME/.cache}/isthmus-k8s/$(cat "${BASH_SOURCE%/*}"/peers/*/{go.mod,go.sum,*.go} 2> /dev/null | sha256sum | cut -c1-12)/bin
PEERS=(etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl helm coredns)
export BIN
