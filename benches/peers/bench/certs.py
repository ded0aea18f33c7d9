"""Two trust domains: root, issuing CA, and one P-256 certificate per
workload and gateway. The same certificates serve every proxy; they carry a
SPIFFE ID for us and Envoy, and a DNS name for HAProxy and nginx."""

import os
import subprocess

WEST, EAST = "west.example", "east.example"
# The name by which HAProxy and nginx verify the destination.
SERVER_NAME = "orders.shop"

LEAVES = [
    # file, trust domain, namespace, account, DNS name
    ("checkout", WEST, "shop", "checkout", "checkout.shop"),
    ("orders", WEST, "shop", "orders", SERVER_NAME),
    ("payments", EAST, "prod", "payments", "payments.prod"),
    ("west-gateway", WEST, "isthmus-system", "gateway", "gateway.west"),
    ("east-gateway", EAST, "isthmus-system", "gateway", "gateway.east"),
]


def spiffe(domain, namespace, account):
    return f"spiffe://{domain}/ns/{namespace}/sa/{account}"


CHECKOUT = spiffe(WEST, "shop", "checkout")
ORDERS = spiffe(WEST, "shop", "orders")
PAYMENTS = spiffe(EAST, "prod", "payments")


def make(directory):
    """Writes <domain>.root.pem, and <leaf>.pem (with the issuing CA), .key and
    .both.pem (HAProxy wants them in one file)."""
    os.makedirs(directory, mode=0o700)
    os.umask(0o077)
    for domain in (WEST, EAST):
        authority(directory, domain)
    for name, domain, namespace, account, dns in LEAVES:
        leaf(directory, name, domain, spiffe(domain, namespace, account), dns)


def authority(directory, domain):
    key(directory, f"{domain}.root.key")
    openssl(directory, "req", "-x509", "-new", "-key", f"{domain}.root.key", "-subj",
            f"/CN={domain} root", "-days", "30", "-out", f"{domain}.root.pem",
            "-addext", "basicConstraints=critical,CA:TRUE",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    sign(directory, f"{domain}.issuing", f"{domain}.root", f"/CN={domain} issuing",
         ["basicConstraints=critical,CA:TRUE,pathlen:0", "keyUsage=critical,keyCertSign,cRLSign"])


def leaf(directory, name, domain, spiffe_id, dns):
    sign(directory, name, f"{domain}.issuing", "/",
         [f"subjectAltName=critical,URI:{spiffe_id},DNS:{dns}", "basicConstraints=critical,CA:FALSE",
          "keyUsage=critical,digitalSignature", "extendedKeyUsage=serverAuth,clientAuth"])
    path = os.path.join(directory, name)
    chain = read(path + ".pem") + read(os.path.join(directory, f"{domain}.issuing.pem"))
    write(path + ".pem", chain)
    write(path + ".both.pem", chain + read(path + ".key"))


def sign(directory, name, issuer, subject, extensions):
    key(directory, f"{name}.key")
    write(os.path.join(directory, f"{name}.ext"), "\n".join(extensions))
    openssl(directory, "req", "-new", "-key", f"{name}.key", "-subj", subject, "-out", f"{name}.csr")
    openssl(directory, "x509", "-req", "-in", f"{name}.csr", "-CA", f"{issuer}.pem", "-CAkey",
            f"{issuer}.key", "-days", "7", "-extfile", f"{name}.ext", "-out", f"{name}.pem")


def key(directory, name):
    openssl(directory, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", name)


def openssl(directory, *args):
    done = subprocess.run(["openssl", *args], cwd=directory, text=True, capture_output=True, timeout=30)
    if done.returncode != 0:
        raise SystemExit(f"openssl {args[0]}: {done.stderr.strip()}")


def read(path):
    with open(path) as file:
        return file.read()


def write(path, text):
    with open(path, "w") as file:
        file.write(text)
