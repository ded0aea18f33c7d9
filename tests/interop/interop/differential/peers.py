"""Envoy and HAProxy as reverse proxies of one origin, as people run them."""

import os

from bench.proxies import envoy

from ..process import Process, write

HAPROXY = """
global
    nbthread 1
    maxconn 1000
    tune.maxrewrite 1024
defaults
    mode http
    timeout connect 5s
    timeout client 20s
    timeout server 20s
    timeout http-request 20s
frontend in
    bind 127.0.0.1:{port}
    default_backend out
backend out
    server it 127.0.0.1:{target}
"""


def start_haproxy(directory, port, target):
    path = os.path.join(directory, "haproxy.cfg")
    with open(path, "w") as file:
        file.write(HAPROXY.format(port=port, target=target))
    return Process("haproxy", ["haproxy", "-db", "-f", path], directory).wait_for(port)


def start_envoy(directory, port, target):
    """Told to take what it knows of HTTP/1: 1.0, trailers, Expect, WebSocket."""
    manager = envoy.connection_manager("http1")
    manager["typed_config"].update({
        "http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": "origin.test",
                                  "enable_trailers": True},
        "proxy_100_continue": True, "server_header_transformation": "PASS_THROUGH",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        # How long it waits to close after a refusal; a second would only make the test slow.
        "delayed_close_timeout": "0.02s",
    })
    listener = {"name": "in", "address": envoy.address("127.0.0.1", port), "filter_chains": [{"filters": [manager]}]}
    cluster = envoy.cluster("127.0.0.1", target, "http1")
    cluster["typed_extension_protocol_options"] = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": f"{envoy.TYPES}.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http_protocol_options": {"enable_trailers": True}}}}
    config = envoy.bootstrap(listener, cluster)
    del config["admin"]
    path = write(directory, "envoy-differential.json", config)
    return Process("envoy", [envoy.binary(), "-c", path, "--concurrency", "1", "--disable-hot-restart",
                             "--log-level", "error"], directory).wait_for(port)
