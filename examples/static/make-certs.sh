#!/bin/sh
# For each DOMAIN a root and an issuing CA, and for each ACCOUNT of it an SVID
# (an X.509 certificate with a SPIFFE ID), as PEM files in DIRECTORY.
#
#     make-certs.sh DIRECTORY DOMAIN/ACCOUNT...
#
# Needs openssl 3.
set -eu
umask 077
[ $# -ge 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 64; }
mkdir -p "$1"
cd "$1"
shift

key() { openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

authority() {
    key "$1.root.key"
    openssl req -x509 -new -key "$1.root.key" -subj "/CN=$1 root" -days 3650 -out "$1.root.pem" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
    key "$1.issuing.key"
    printf '%s\n' 'basicConstraints=critical,CA:TRUE,pathlen:0' \
        'keyUsage=critical,keyCertSign,cRLSign' > ext
    openssl req -new -key "$1.issuing.key" -subj "/CN=$1 issuing" |
        openssl x509 -req -CA "$1.root.pem" -CAkey "$1.root.key" -days 365 -extfile ext \
            -out "$1.issuing.pem" 2>/dev/null
}

for workload in "$@"; do
    domain=${workload%%/*} account=${workload#*/}
    [ -e "$domain.issuing.pem" ] || authority "$domain"
    case $account in
        gateway) namespace=isthmus-system ;;
        *) namespace=shop ;;
    esac
    file=$account
    [ "$account" != gateway ] || file=${domain%%.*}-gateway
    key "$file.key"
    printf '%s\n' "subjectAltName=critical,URI:spiffe://$domain/ns/$namespace/sa/$account" \
        'basicConstraints=critical,CA:FALSE' 'keyUsage=critical,digitalSignature' \
        'extendedKeyUsage=serverAuth,clientAuth' > ext
    openssl req -new -key "$file.key" -subj / |
        openssl x509 -req -CA "$domain.issuing.pem" -CAkey "$domain.issuing.key" -days 30 \
            -extfile ext -out leaf.pem 2>/dev/null
    cat leaf.pem "$domain.issuing.pem" > "$file.pem"
done
rm -f ext leaf.pem
