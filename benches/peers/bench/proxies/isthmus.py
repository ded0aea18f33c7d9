"""Isthmus: one worker, identities and snapshot from files, metrics on, no
access log. Across sites its gateways have one worker each.

    orders.shop    10.99.0.1   this site: two hops, mTLS
    payments.prod  10.99.0.2   the other site: four hops, by a link over TLS or QUIC
    plain.shop     10.99.0.3   an endpoint without a proxy: one hop, plaintext
"""

import json
import os

from .. import certs as identities, lossy
from ..rows import HTTP2, TCP
from ..world import (CAPTURE_PORT, CLIENT, EAST, EAST_LAN, EAST_WAN, INBOUND_PORT, OTHER_SITE, PLAIN,
                     SAME_SITE, SERVER, SERVER_EAST_IP, SERVER_IP, WEST, WEST_LAN, WEST_WAN)
from . import DESTINATION, EAST_GATEWAY, SOURCE, WEST_GATEWAY, Contender, Spec

GATEWAY_PORT = 8443
ADMIN_PORT = 4191
# The port of the services that a row dials; see world.py.
PORTS = {"http1": ("http", "http", 80), HTTP2: ("http2", "grpc", 80), TCP: ("tcp", "tcp", 80)}


def contenders(label, binary):
    """Across sites the way is what is compared: the same site, and both links."""
    binary = os.path.abspath(binary)

    def carries(*hops):
        return lambda row: row.hops in hops

    return [
        Contender(label, lambda *args: specs(binary, *args), near, carries(1, 2), True),
        Contender(f"{label}/same-site", lambda *args: two_hops(binary, *args), near,
                  lambda row: row.hops == 4 and not row.lossy, True),
        Contender(f"{label}/tls", lambda *args: four_hops(binary, *args, "tls"), far, carries(4), True),
        Contender(f"{label}/quic", lambda *args: four_hops(binary, *args, "quic"), far, carries(4), True),
    ]


def near(row):
    return PLAIN if row.hops == 1 else SAME_SITE


def far(_row):
    return OTHER_SITE


def specs(binary, row, directory, certs):
    return one_hop(binary, row, directory, certs) if row.hops == 1 else two_hops(binary, row, directory, certs)


def one_hop(binary, row, directory, certs):
    endpoint = {"target": f"{SERVER_IP}:{row.backend_port}", "plaintext": True}
    site = site_file("west", identities.WEST, [service("plain.shop", PLAIN, row, endpoint)])
    return [node(binary, SOURCE, CLIENT, "checkout", site, directory, certs)]


def two_hops(binary, row, directory, certs):
    endpoint = {"identity": identities.ORDERS, "proxy": f"{SERVER_IP}:{INBOUND_PORT}",
                "target": f"127.0.0.1:{row.backend_port}"}
    allow = [{"namespace": "shop", "account": "checkout"}]
    site = site_file("west", identities.WEST, [service("orders.shop", SAME_SITE, row, endpoint, allow=allow)])
    return [node(binary, DESTINATION, SERVER, "orders", site, directory, certs, f"{SERVER_IP}:{INBOUND_PORT}"),
            node(binary, SOURCE, CLIENT, "checkout", site, directory, certs)]


def four_hops(binary, row, directory, certs, transport):
    inbound = f"{SERVER_EAST_IP}:{INBOUND_PORT}"
    there = {"identity": identities.PAYMENTS, "site": "east"}
    here = {"identity": identities.PAYMENTS, "proxy": inbound, "target": f"127.0.0.1:{row.backend_port}"}
    allow = [{"trust_domain": identities.WEST, "namespace": "shop", "account": "checkout"}]
    wide_area = (lossy.WEST_IP, lossy.EAST_IP) if row.lossy else (WEST_WAN, EAST_WAN)
    west = site_file(
        "west", identities.WEST,
        [service("payments.prod", OTHER_SITE, row, there, imported_from=["east"])],
        transport, {"site": "east", "trust_domain": identities.EAST, "dial": True}, wide_area)
    east = site_file(
        "east", identities.EAST,
        [service("payments.prod", OTHER_SITE, row, here, allow=allow, exported_to=["west"])],
        transport, {"site": "west", "trust_domain": identities.WEST}, wide_area)
    return [
        node(binary, DESTINATION, SERVER, "payments", east, directory, certs, inbound),
        gateway(binary, EAST_GATEWAY, EAST, "east-gateway", east, directory, certs, transport),
        gateway(binary, WEST_GATEWAY, WEST, "west-gateway", west, directory, certs, transport),
        node(binary, SOURCE, CLIENT, "checkout", west, directory, certs),
    ]


def service(name, virtual, row, endpoint, **more):
    port, protocol, number = PORTS[row.mode]
    return {"name": name, "virtual_address": virtual, **more,
            "ports": [{"name": port, "port": number, "protocol": protocol}],
            "endpoints": [{"port": port, **endpoint}]}


def site_file(site, domain, services, transport="", link=None, wide_area=(WEST_WAN, EAST_WAN)):
    """Over TLS nobody offers QUIC: the machine's tunnel to its gateway is what
    the link between the sites is."""
    def one(name, lan, wan):
        # Machines dial their gateway on its LAN, the other site on its WAN.
        address = f"{lan if name == site else wan}:{GATEWAY_PORT}"
        return {"id": "gw-1", "site": name, "quic": [address] if transport == "quic" else [], "tls": [address]}

    alone = {"site": site, "trust_domain": domain, "services": services}
    if link is None:
        return alone
    return {**alone, "links": [{**link, "transport": transport}],
            "gateways": [one("west", WEST_LAN, wide_area[0]), one("east", EAST_LAN, wide_area[1])]}


def node(binary, role, host, leaf, site, directory, certs, inbound="off"):
    capture = f"0.0.0.0:{CAPTURE_PORT}" if role == SOURCE else "off"
    return process(binary, role, host, leaf, site, directory, certs, {
        "role": "node", "http_listener": "off", "transparent": capture, "inbound": inbound})


def gateway(binary, role, host, leaf, site, directory, certs, transport):
    door = f"0.0.0.0:{GATEWAY_PORT}"
    return process(binary, role, host, leaf, site, directory, certs, {
        "role": "gateway", "gateway": {
            "id": "gw-1", "quic": door if transport == "quic" else "off", "tls": door}})


def process(binary, role, host, leaf, site, directory, certs, config):
    name = f"isthmus-{role}".replace(" ", "-")
    # JSON is YAML.
    write(directory, f"{name}.site.yaml", site)
    path = write(directory, f"{name}.yaml", {
        **config,
        "identity": {"files": {
            "certificate": f"{certs}/{leaf}.pem", "key": f"{certs}/{leaf}.key",
            "bundles": {domain: f"{certs}/{domain}.root.pem" for domain in (identities.WEST, identities.EAST)}}},
        "snapshot": {"file": f"{name}.site.yaml"},
        "state": f"{directory}/{name}.state",
        "access_log": "off",
        "admin": f"127.0.0.1:{ADMIN_PORT}",
        "workers": 1,
    })
    return Spec(role, host, [binary, "--config", path])


def write(directory, name, content):
    path = os.path.join(directory, name)
    with open(path, "w") as file:
        json.dump(content, file, indent=1)
    return path
