"""Envoy as a client in front of us, and as a server behind us."""

from contextlib import contextmanager

from ..case import case, equal, holds
from ..process import run
from ..servers import envoy_proxy
from .http1 import BODY, CURL

# Where Envoy listens for the case that runs.
PORT = 7001


@contextmanager
def envoy_before(way, service, protocol):
    """Envoy that takes HTTP/1 and HTTP/2, and speaks `protocol` to us."""
    name = f"envoy-client-{service}-{protocol}"
    process = envoy_proxy(name, way.directory, PORT, way.front(service), protocol, "AUTO").wait_for(PORT)
    try:
        yield f"http://127.0.0.1:{PORT}"
    finally:
        process.stop()


def both_versions(url):
    for version in ("--http1.1", "--http2-prior-knowledge"):
        for number in range(5):
            done = run([*CURL, "-i", version, "--data-binary", "@-", f"{url}/echo?{number}"], stdin=BODY).stdout
            head, _, body = done.partition(b"\r\n\r\n")
            holds(b" 200" in head.split(b"\r\n")[0], f"{version}: {head}")
            equal(body, BODY, f"{version}: echo")
        slow = run([*CURL, version, f"{url}/slow"]).stdout
        equal(slow, b"line\n" * 10, f"{version}: a stream")


@case("envoy/before us, HTTP/1", ["node"])
def before_http1(way):
    with envoy_before(way, "node", "http1") as url:
        both_versions(url)


@case("envoy/before us, HTTP/2", ["node-h2"])
def before_http2(way):
    with envoy_before(way, "node-h2", "http2") as url:
        both_versions(url)


@case("envoy/behind us, HTTP/1", ["envoy"])
def behind_http1(way):
    both_versions(way.url("envoy", ""))


@case("envoy/behind us, HTTP/2", ["envoy-h2"])
def behind_http2(way):
    both_versions(way.url("envoy-h2", ""))
