#!/usr/bin/env python3
"""TLS of HAProxy, nginx and Envoy, and what was carried over of it: the same handshakes
must be taken or refused, with the same certificates, versions and protocols, and what
goes on to applications over TLS must arrive or not.

    tests/migrate/tls.py [haproxy|nginx|envoy…]

MESHCTL, EDGE_PROXY, HAPROXY, NGINX and ENVOY name programs; needs openssl.
"""

import itertools
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile

import world
from ours import NGINX_MODULE, ours
from cases import PROGRAMS

DOOR = "10.20.0.1:8443"
NAMES = ["a.example", "x.a.example", "b.example", "A.EXAMPLE", "none.example", None]
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
# Certificates of servers, and their names.
SERVERS = {"a": "DNS:a.example,DNS:*.a.example", "b": "DNS:b.example", "d": "DNS:d.example"}
CLIENTS = [None, "good", "revoked", "other"]
# Applications: the certificate that each shows.
APPLICATIONS = {"10.20.1.11:8443": "a", "10.20.1.12:8443": "b", "10.20.1.13:8443": "stranger"}


# --- certificates


def openssl(directory, *args):
    subprocess.run(["openssl", *args], cwd=directory, check=True, capture_output=True)


def certificates(directory):
    """ca and stranger-ca, certificates of both, and a revocation list of the first."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for ca in ("ca", "stranger-ca"):
        openssl(directory, "req", "-x509", *key, "-subj", "/CN=" + ca, "-days", "30", "-keyout", ca + ".key", "-out", ca + ".crt",
                "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    open(os.path.join(directory, "index.txt"), "w").close()
    with open(os.path.join(directory, "serial"), "w") as file:
        file.write("1000\n")
    with open(os.path.join(directory, "ca.cnf"), "w") as file:
        file.write("[ca]\ndefault_ca = own\n[own]\ndatabase = index.txt\nserial = serial\ndefault_md = sha256\n"
                   "certificate = ca.crt\nprivate_key = ca.key\ndefault_crl_days = 30\ncrlnumber = serial\ncrl_extensions = crl\n"
                   "[crl]\nauthorityKeyIdentifier = keyid:always\n")
    made = [(name, "ca", names) for name, names in SERVERS.items()]
    made += [("stranger", "stranger-ca", "DNS:a.example")]
    made += [("good", "ca", "DNS:web.example"), ("revoked", "ca", "DNS:web.example"), ("other", "stranger-ca", "DNS:web.example")]
    for name, ca, names in made:
        openssl(directory, "req", *key, "-subj", "/CN=" + name, "-keyout", name + ".key", "-out", name + ".csr")
        with open(os.path.join(directory, "extensions"), "w") as file:
            file.write("subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n" % names)
        openssl(directory, "x509", "-req", "-in", name + ".csr", "-CA", ca + ".crt", "-CAkey", ca + ".key", "-CAcreateserial",
                "-days", "30", "-extfile", "extensions", "-out", name + ".crt")
        with open(os.path.join(directory, name + ".pem"), "w") as pem:
            for part in (name + ".crt", name + ".key"):
                with open(os.path.join(directory, part)) as file:
                    pem.write(file.read())
    openssl(directory, "ca", "-config", "ca.cnf", "-revoke", "revoked.crt")
    openssl(directory, "ca", "-config", "ca.cnf", "-gencrl", "-out", "ca.crl")
    os.mkdir(os.path.join(directory, "all"))
    for name in ("a", "b", "d"):
        shutil.copy(os.path.join(directory, name + ".pem"), os.path.join(directory, "all"))


# --- configurations


def haproxy(bind, server=""):
    return """
defaults
  mode http
  timeout connect 2s
  timeout client 5s
  timeout server 5s
frontend in
  bind %s ssl %s
  use_backend b2 if { path_beg /two }
  use_backend b3 if { path_beg /three }
  default_backend b1
backend b1
  server s 10.20.1.11:%s
backend b2
  server s 10.20.1.12:%s
backend b3
  server s 10.20.1.13:%s
""" % (DOOR, bind, *(server or "8080" for _ in range(3)))


def nginx(servers, location="proxy_pass http://10.20.1.1%d:8080;"):
    """Each of the servers is what stands in it."""
    locations = "".join(
        "location %s { %s }\n" % (path, location.replace("%d", str(n))) for n, path in ((1, "/"), (2, "/two"), (3, "/three"))
    )
    blocks = "".join("server { listen %s ssl%s; %s\n%s}\n" % (DOOR, " http2" if "h2;" in own else "", own.replace("h2;", ""), locations) for own in servers)
    return "pid nginx.pid;\nevents {}\nhttp {\naccess_log off;\nssl_protocols TLSv1.2 TLSv1.3;\n%s}\n" % blocks


def envoy(chains, upstream=None):
    """Chains are (names, context)."""
    def manager(n):
        routes = [{"match": {"prefix": path}, "route": {"cluster": cluster}} for path, cluster in (("/two", "b2"), ("/three", "b3"), ("/", "b1"))]
        return {
            "name": "http",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "in%d" % n,
                "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
                "http_filters": [{"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
            },
        }
    def chain(n, names, context):
        context = {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", **context}
        socket = {"name": "envoy.transport_sockets.tls", "typed_config": context}
        match = {"filter_chain_match": {"server_names": names}} if names else {}
        return {**match, "filters": [manager(n)], "transport_socket": socket}
    def cluster(n):
        host, port = "10.20.1.1%d" % n, 8443 if upstream else 8080
        endpoint = {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}
        cluster = {"name": "b%d" % n, "type": "STATIC", "load_assignment": {"cluster_name": "b%d" % n, "endpoints": [{"lb_endpoints": [endpoint]}]}}
        if upstream:
            context = {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", **upstream}
            cluster["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": context}
        return cluster
    host, port = DOOR.split(":")
    listener = {
        "name": "in",
        "address": {"socket_address": {"address": host, "port_value": int(port)}},
        "listener_filters": [{"name": "tls", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}}],
        "filter_chains": [chain(n, *one) for n, one in enumerate(chains)],
    }
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster(n) for n in (1, 2, 3)]}}, indent=2)


def shown(*names, **more):
    """Envoy's context with these certificates."""
    file = lambda name: {"filename": name}
    chains = [{"certificate_chain": file(n + ".crt"), "private_key": file(n + ".key")} for n in names]
    validation = more.pop("validation", None)
    common = {"tls_certificates": chains, **more.pop("common", {})}
    if validation is not None:
        common["validation_context"] = {"trusted_ca": file("ca.crt"), **validation}
    return {"common_tls_context": common, **more}


A, B, D = ("ssl_certificate %s.crt; ssl_certificate_key %s.key; " % (n, n) for n in "abd")
CLIENT = "ssl_client_certificate ca.crt; ssl_verify_client "
TO_TLS = "proxy_pass https://10.20.1.1%d:8443; "
VERIFIED = TO_TLS + "proxy_ssl_verify on; proxy_ssl_trusted_certificate ca.crt; proxy_ssl_name a.example; proxy_ssl_server_name on;"

CONFIGURATIONS = {
    "haproxy": {
        "one": haproxy("crt d.pem"),
        "several": haproxy("crt d.pem crt a.pem crt b.pem"),
        "directory": haproxy("crt all"),
        "strict": haproxy("crt all strict-sni"),
        "clients": haproxy("crt a.pem ca-file ca.crt verify required"),
        "revoked": haproxy("crt a.pem ca-file ca.crt crl-file ca.crl verify required"),
        "optional": haproxy("crt a.pem ca-file ca.crt verify optional"),
        "1.3": haproxy("crt a.pem ssl-min-ver TLSv1.3"),
        "1.2": haproxy("crt a.pem ssl-max-ver TLSv1.2"),
        "alpn": haproxy("crt a.pem alpn h2,http/1.1"),
        "alpn1": haproxy("crt a.pem alpn http/1.1"),
        "on": haproxy("crt a.pem", "8443 ssl verify none"),
        "verified": haproxy("crt a.pem", "8443 ssl verify required ca-file ca.crt sni str(a.example) verifyhost a.example"),
        "shown": haproxy("crt a.pem", "8443 ssl verify none crt good.pem"),
    },
    "nginx": {
        "one": nginx([D]),
        "several": nginx([D + "server_name d.example;", A + "server_name a.example *.a.example;", B + "server_name b.example;"]),
        "rejects": nginx(["ssl_reject_handshake on;", A + "server_name a.example *.a.example;", B + "server_name b.example;"]),
        "clients": nginx([A + CLIENT + "on;"]),
        "revoked": nginx([A + CLIENT + "on; ssl_crl ca.crl;"]),
        "optional": nginx([A + CLIENT + "optional;"]),
        "some": nginx([D + "server_name d.example;", A + CLIENT + "on; server_name a.example;"]),
        "1.3": nginx([A + "ssl_protocols TLSv1.3;"]),
        "1.2": nginx([A + "ssl_protocols TLSv1.2;"]),
        "alpn": nginx([A + "h2;"]),
        "on": nginx([A], TO_TLS),
        "verified": nginx([A], VERIFIED),
        "shown": nginx([A], TO_TLS + "proxy_ssl_certificate good.crt; proxy_ssl_certificate_key good.key;"),
    },
    "envoy": {
        "one": envoy([((), shown("d"))]),
        "several": envoy([(["a.example", "*.a.example"], shown("a")), (["b.example"], shown("b")), ((), shown("d"))]),
        "rejects": envoy([(["a.example"], shown("a")), (["b.example"], shown("b"))]),
        "clients": envoy([((), shown("a", validation={}, require_client_certificate=True))]),
        "revoked": envoy([((), shown("a", validation={"crl": {"filename": "ca.crl"}}, require_client_certificate=True))]),
        "optional": envoy([((), shown("a", validation={}))]),
        "names": envoy([((), shown("a", validation={"match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "web.example"}}]}, require_client_certificate=True))]),
        "others": envoy([((), shown("a", validation={"match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "job.example"}}]}, require_client_certificate=True))]),
        "1.3": envoy([((), shown("a", common={"tls_params": {"tls_minimum_protocol_version": "TLSv1_3"}}))]),
        "1.2": envoy([((), shown("a", common={"tls_params": {"tls_maximum_protocol_version": "TLSv1_2"}}))]),
        "alpn": envoy([((), shown("a", common={"alpn_protocols": ["h2", "http/1.1"]}))]),
        "on": envoy([((), shown("a"))], {}),
        "verified": envoy([((), shown("a"))], {"sni": "a.example", **shown(validation={"match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "a.example"}}]})}),
        "shown": envoy([((), shown("a"))], shown("good")),
    },
}
# Files of certificates, which are named without their directory above.
FILES = re.compile(r"\b[a-z]+[.](?:pem|crt|key|crl)\b|(?<=crt )all\b")
PROTOCOLS = [None, ["http/1.1"], ["h2", "http/1.1"], ["h2"], ["spdy/3"]]


# --- handshakes


def handshakes(name):
    """What clients try: name, certificate, version, protocols, path."""
    plain = ("a.example", None, "1.3", None, "/")
    if name in ("on", "verified", "shown"):
        return [("a.example", None, "1.3", None, path) for path in ("/", "/two", "/three")]
    if name in ("clients", "revoked", "optional", "some", "names", "others"):
        asked = itertools.product(["a.example", "d.example", None], CLIENTS, VERSIONS)
        return [(sni, client, version, None, "/") for sni, client, version in asked]
    if name.startswith("alpn"):
        return [("a.example", None, version, protocols, "/") for version in VERSIONS for protocols in PROTOCOLS]
    if name in VERSIONS:
        return [("a.example", None, version, None, "/") for version in VERSIONS]
    return [plain] + [(sni, None, version, None, "/") for sni in NAMES for version in VERSIONS]


def handshake(directory, tried):
    """`refused`, or what was shown, the version, the protocol, and what came of a request."""
    name, client, version, protocols, path = tried
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = VERSIONS[version]
    if client:
        context.load_cert_chain(os.path.join(directory, client + ".pem"))
    if protocols:
        context.set_alpn_protocols(protocols)
    host, port = DOOR.split(":")
    try:
        with world.socket.create_connection((host, int(port)), 5) as plain:
            with context.wrap_socket(plain, server_hostname=name) as stream:
                shown = ssl.DER_cert_to_PEM_cert(stream.getpeercert(binary_form=True))
                protocol = stream.selected_alpn_protocol()
                # With HTTP/2 the first bytes of the other side are enough.
                asked = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
                if protocol != "h2":
                    asked = ("GET %s HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n" % path).encode()
                stream.sendall(asked)
                got = stream.recv(65536)
    except (ssl.SSLError, ConnectionError, TimeoutError):
        return {"outcome": "refused"}
    if not got:
        return {"outcome": "refused"}
    status = "h2" if protocol == "h2" else got.split(b" ")[1].decode()
    if status in ("502", "503"):
        status = "no application"
    told = re.search(rb"(?i)\r\nx-client: ([^\r]*)", got)
    # nginx refuses in HTTP who shows no certificate that it takes.
    if status == "400":
        return {"outcome": "refused"}
    return {"outcome": status, "shown": whose(directory, shown), "version": version, "protocol": protocol, "client": told and told[1].decode()}


def whose(directory, pem):
    for name in SERVERS:
        with open(os.path.join(directory, name + ".crt")) as file:
            if file.read().split() == pem.split():
                return name
    return "?"


class Application(world.socketserver.BaseRequestHandler):
    """Answers, with who has come."""

    def handle(self):
        stream, client = self.request, "-"
        try:
            if self.server.context:
                stream = self.server.context.wrap_socket(stream, server_side=True)
                shown = stream.getpeercert()
                client = dict(part[0] for part in shown["subject"])["commonName"] if shown else "none"
            while b"\r\n\r\n" not in stream.recv(65536):
                pass
            stream.sendall(b"HTTP/1.1 200 OK\r\nx-client: %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % client.encode())
        except OSError:
            pass


def serve(address, context):
    host, port = address.split(":")
    server = world.Server((host, int(port)), Application)
    server.context = context
    world.threading.Thread(target=server.serve_forever, daemon=True).start()


def applications(directory):
    for address, name in APPLICATIONS.items():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(os.path.join(directory, name + ".pem"))
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(os.path.join(directory, "ca.crt"))
        serve(address, context)
        serve(address.replace("8443", "8080"), None)


# --- all of them


def real(kind, path, directory):
    command = {
        "haproxy": [PROGRAMS["haproxy"], "-db", "-f", path],
        "nginx": [PROGRAMS["nginx"], "-p", directory + "/", "-c", path, "-e", "error.log", "-g", "user root; daemon off; master_process off;"],
        "envoy": [PROGRAMS["envoy"], "-c", path, "--concurrency", "1", "-l", "warning", "--base-id", "79"],
    }[kind]
    log = open(os.path.join(directory, "real.log"), "w")
    return subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)


def outcomes(process, directory, tried):
    try:
        if not world.until_open(DOOR, process):
            return None
        return [handshake(directory, one) for one in tried]
    finally:
        process.terminate()
        process.wait(20)


def log(directory, name):
    with open(os.path.join(directory, name)) as file:
        return file.read()[-1500:]


def compared(kind, name, text, directory):
    """Handshakes that went the same way; ends where others are not told of."""
    path = os.path.join(directory, "proxy.cfg" if kind != "envoy" else "proxy.json")
    with open(path, "w") as file:
        file.write(FILES.sub(lambda name: os.path.join(directory, name[0]), text))
    tried = handshakes(name)
    theirs = outcomes(real(kind, path, directory), directory, tried)
    if theirs is None:
        return ["%s %s: the real one does not start: %s" % (kind, name, log(directory, "real.log"))], 0, 0
    out = os.path.join(directory, "plan")
    plan = [PROGRAMS["meshctl"], "migrate", "plan", "--from", kind, path, "--out", out, "--tls-until", "2999-01-01"]
    planned = subprocess.run(plan, cwd=directory, capture_output=True, text=True)
    if planned.returncode:
        return ["%s %s: not planned: %s" % (kind, name, planned.stderr.strip())], 0, 0
    with open(os.path.join(out, "report.json")) as file:
        report = json.load(file)
    told = [s for file in report["files"] for s in file["statements"] if s["verdict"] != "exact"]
    told = " ".join(s.get("how") or s.get("meaning") or s.get("question") for s in told)
    own = outcomes(ours(out), directory, tried)
    if own is None:
        return ["%s %s: ours does not start: %s" % (kind, name, log(out, "ours.log"))], 0, 0
    wrong, excused = [], 0
    for one, their, our in zip(tried, theirs, own):
        if their == our:
            continue
        if any(word in told for word in EXCUSES.get((kind, name), ())):
            excused += 1
            continue
        wrong.append("%s %s: %s: %s, ours %s" % (kind, name, one, their, our))
    if wrong:
        wrong.append("   told: " + told)
    shutil.rmtree(out)
    return wrong, len(tried) - len(wrong) - excused, excused


# What the report says where handshakes may go another way.
EXCUSES = {
    # Who need not show one shows one that nobody has issued.
    ("haproxy", "optional"): ["those with one not asked"],
    ("nginx", "optional"): ["needed or not asked for"],
    ("nginx", "some"): ["one of ours asks all alike"],
    ("envoy", "optional"): ["comes in, too"],
    ("envoy", "alpn"): ["wants others only"],
    ("haproxy", "alpn"): ["wants other protocols (ALPN)"],
    ("haproxy", "alpn1"): ["wants other protocols (ALPN)"],
}


def main():
    world.alone()
    os.umask(0o077)
    wrong = []
    with tempfile.TemporaryDirectory() as directory:
        certificates(directory)
        applications(directory)
        for kind in sys.argv[1:] or CONFIGURATIONS:
            same = told = 0
            for name, text in CONFIGURATIONS[kind].items():
                found, alike, excused = compared(kind, name, text, directory)
                wrong += found
                same, told = same + alike, told + excused
            print("%s: TLS of %d configurations, %d handshakes the same, %d told to differ" % (kind, len(CONFIGURATIONS[kind]), same, told))
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
