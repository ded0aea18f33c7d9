"""HAProxy: one thread, shared connection pools, metrics on, no log.

`haproxy` speaks HTTP/2 to the other proxy, `haproxy-h1` HTTP/1.1.
`haproxy-safe` is `haproxy` with the default `http-reuse safe`: a client's first
request never takes a connection that somebody else used.
"""

import os

from ..certs import SERVER_NAME
from ..rows import ADDED, HTTP2, TCP
from ..world import CAPTURE_PORT, CLIENT, INBOUND_PORT, SERVER, SERVER_IP
from . import DESTINATION, SOURCE, Contender, Spec, same_site

NEEDS = ("haproxy", "apt-get install haproxy")

# -db keeps it in the foreground, without a master.
COMMON = """
global
    nbthread 1
    maxconn 9000
defaults
    mode {mode}
    timeout connect 5s
    timeout client 10m
    timeout server 10m
    # What an idle pooled connection of any client left is used by the next.
    {reuse}
frontend metrics
    mode http
    bind 127.0.0.1:8404
    http-request use-service prometheus-exporter if {{ path /metrics }}
frontend in
    bind {bind}
    default_backend out
backend out
    server it {server}
"""


def contenders():
    return [
        Contender("haproxy", lambda *args: specs(*args, "h2"), same_site, needs=NEEDS),
        Contender("haproxy-h1", lambda *args: specs(*args, "http/1.1"), same_site, needs=NEEDS,
                  # Between proxies only: elsewhere it is the other one.
                  carries=lambda row: row.hops == 2 and row.mode not in (HTTP2, TCP)),
        # Two hops inside a site: what crossing sites is measured against.
        Contender("haproxy/same-site", lambda *args: specs(*args, "h2"), same_site, needs=NEEDS,
                  carries=lambda row: row.name in ADDED),
        Contender("haproxy-safe", lambda *args: specs(*args, "h2", "safe"), same_site, needs=NEEDS,
                  carries=lambda row: row.hops == 2 and row.mode != TCP),
    ]


def specs(row, directory, certs, between, reuse="always"):
    backend_proto = " proto h2" if row.mode == HTTP2 else ""
    if row.hops == 1:
        config = write(row, directory, "one-hop", f"0.0.0.0:{CAPTURE_PORT}",
                       f"{SERVER_IP}:{row.backend_port}{backend_proto}", reuse)
        return [spec(SOURCE, CLIENT, config)]
    root = f"{certs}/west.example.root.pem"
    alpn = "" if row.mode == TCP else f" alpn {between}"
    source = write(
        row, directory, SOURCE, f"0.0.0.0:{CAPTURE_PORT}",
        f"{SERVER_IP}:{INBOUND_PORT} ssl{alpn} verify required ca-file {root}"
        f" crt {certs}/checkout.both.pem sni str({SERVER_NAME}) verifyhost {SERVER_NAME}", reuse)
    destination = write(
        row, directory, DESTINATION,
        f"{SERVER_IP}:{INBOUND_PORT} ssl crt {certs}/orders.both.pem ca-file {root} verify required{alpn}",
        f"127.0.0.1:{row.backend_port}{backend_proto}", reuse)
    return [spec(DESTINATION, SERVER, destination), spec(SOURCE, CLIENT, source)]


def write(row, directory, name, bind, server, reuse):
    path = os.path.join(directory, f"haproxy-{name}.cfg")
    tcp = row.mode == TCP
    with open(path, "w") as file:
        file.write(COMMON.format(mode="tcp" if tcp else "http", bind=bind, server=server,
                                 reuse="" if tcp else f"http-reuse {reuse}"))
    return path


def spec(role, host, config):
    return Spec(role, host, ["haproxy", "-db", "-f", config])
