#!/bin/sh
# A root, an issuing CA and one SVID (X.509 certificate with a SPIFFE ID) per
# workload, in ./certs. Needs openssl 3.
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p certs
cd certs

key() { openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

key root.key
openssl req -x509 -new -key root.key -subj "/CN=west.example root" -days 3650 -out root.pem \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign

key issuing.key
printf '%s\n' 'basicConstraints=critical,CA:TRUE,pathlen:0' 'keyUsage=critical,keyCertSign,cRLSign' > ca.ext
openssl req -new -key issuing.key -subj "/CN=west.example issuing" |
    openssl x509 -req -CA root.pem -CAkey root.key -days 365 -extfile ca.ext -out issuing.pem 2>/dev/null

for account in checkout orders; do
    key "$account.key"
    printf '%s\n' "subjectAltName=critical,URI:spiffe://west.example/ns/shop/sa/$account" \
        'basicConstraints=critical,CA:FALSE' 'keyUsage=critical,digitalSignature' \
        'extendedKeyUsage=serverAuth,clientAuth' > leaf.ext
    openssl req -new -key "$account.key" -subj / |
        openssl x509 -req -CA issuing.pem -CAkey issuing.key -days 30 -extfile leaf.ext \
            -out leaf.pem 2>/dev/null
    cat leaf.pem issuing.pem > "$account.pem"
done
rm -f ca.ext leaf.ext leaf.pem
echo "certs/: root.pem, checkout.pem, orders.pem and their keys"
