# The keys of a cluster, as kubeadm lays them out: a CA for everyone, one for the
# aggregator, and the keys of ServiceAccount tokens.
# shellcheck shell=bash

tls() {
    openssl "$@" 2>"$WORK/last" || fail "openssl $1: $(cat "$WORK/last")"
}

# authority DIR NAME
authority() {
    tls req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=$2" \
        -addext keyUsage=critical,keyCertSign,cRLSign -keyout "$1/$2.key" -out "$1/$2.crt"
}

# issue DIR CA NAME SUBJECT [SAN…]
issue() {
    local san=${*:5}
    tls req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "$4" \
        -CA "$1/$2.crt" -CAkey "$1/$2.key" -addext basicConstraints=critical,CA:FALSE \
        -addext extendedKeyUsage=serverAuth,clientAuth ${san:+-addext "subjectAltName=${san// /,}"} \
        -keyout "$1/$3.key" -out "$1/$3.crt"
}

# kubeconfig DIR NAME SERVER: whoever has NAME's certificate. The context is called
# after the cluster, whose keys are in CLUSTER/pki.
kubeconfig() {
    local cluster=${1%/pki}
    cluster=${cluster##*/}
    cat >"$1/$2.conf" <<YAML
apiVersion: v1
kind: Config
clusters: [{ name: $cluster, cluster: { server: "$3", certificate-authority: $1/ca.crt } }]
users: [{ name: $2-$cluster, user: { client-certificate: $1/$2.crt, client-key: $1/$2.key } }]
contexts: [{ name: $cluster, context: { cluster: $cluster, user: $2-$cluster } }]
current-context: $cluster
YAML
}

# cluster_pki DIR ADDRESS…: of its API server.
cluster_pki() {
    local dir=$1 name
    shift
    mkdir -p "$dir"
    authority "$dir" ca
    authority "$dir" front-proxy-ca
    issue "$dir" front-proxy-ca front-proxy-client /CN=front-proxy-client
    tls genrsa -out "$dir/sa.key" 2048
    tls rsa -in "$dir/sa.key" -pubout -out "$dir/sa.pub"
    issue "$dir" ca apiserver /CN=kube-apiserver DNS:localhost DNS:kubernetes DNS:kubernetes.default \
        DNS:kubernetes.default.svc DNS:kubernetes.default.svc.cluster.local "${@/#/IP:}"
    issue "$dir" ca admin /O=system:masters/CN=admin
    issue "$dir" ca apiserver-kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
    for name in kube-controller-manager kube-scheduler kube-proxy; do
        issue "$dir" ca $name /CN=system:$name
    done
}
