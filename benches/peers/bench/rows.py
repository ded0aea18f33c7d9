"""What is measured: the rows of the comparison, and the goals."""

from dataclasses import dataclass, field

HTTP1, HTTP2, TCP = "http1", "http2", "tcp"


@dataclass(frozen=True)
class Goal:
    """Ours is at most `ratio` times the best of `peers` in the same run."""

    ratio: float
    peers: tuple


@dataclass(frozen=True)
class Row:
    name: str
    title: str
    mode: str  # what the proxies are told: HTTP1, HTTP2, TCP
    hops: int  # proxies on the path: 1, 2, or 4 across sites
    load: str  # a key of load.LOADS
    connections: int = 1
    streams: int = 1  # at once, on each connection
    unit: str = "CPU µs/request"
    congestion: str = ""  # "": what --congestion says
    rate: int = 0  # requests/s, for paced load
    lossy: bool = False  # the sites are apart as lossy.py says
    percentile: str = ""  # "p50", "p99": this latency is the figure, not CPU
    excess: tuple = ()  # (connections, streams) that ask for twice what can be answered
    repetitions: int = 0  # at most, if not 0
    goals: tuple = field(default=())
    # Absolute goals, by figure.
    limits: tuple = field(default=())

    @property
    def backend_port(self):
        """Of the application that answers."""
        if self.load == "iperf3":
            return IPERF_PORT
        return HTTP2_PORT if self.mode == HTTP2 else HTTP1_PORT


# Backends; see load.py.
HTTP1_PORT, HTTP2_PORT, IPERF_PORT = 8080, 8081, 8082

HAPROXY, ENVOY = ("haproxy", "haproxy-h1"), ("envoy", "envoy-h1")


def h1(name, title, hops, connections, *goals):
    return Row(name, title, HTTP1, hops, "wrk", connections, goals=goals)


def loss(name, how, load, *goals):
    title = f"across sites, 40 ms round trip, 1 % of packets lost, 64 requests at once, {how}"
    return Row(name, title, HTTP1, 4, load, 64, unit="ms (p99)", lossy=True, percentile="p99",
               repetitions=2, goals=goals)


def overload(name, how, hops, peak, excess):
    """Clients of HTTP/2 have streams; what answers is nginx, over HTTP/1.1."""
    title = f"twice the load that saturates: {how}, {excess[0]}×{excess[1]} at once, against {peak[0]}×{peak[1]}"
    # 0.85 of the peak's good answers for the same CPU.
    return Row(name, title, HTTP1, hops, "overload", *peak, unit="× the peak's CPU per good answer",
               excess=excess, limits=(("value", 1 / 0.85),))


ROWS = [
    h1("h1-one-hop-32", "HTTP/1.1, one hop, plaintext, 32 connections", 1, 32, Goal(1.0, HAPROXY)),
    h1("h1-one-hop-256", "HTTP/1.1, one hop, plaintext, 256 connections", 1, 256, Goal(1.0, HAPROXY)),
    h1("h1-two-hop-32", "HTTP/1.1, two hops over mTLS, 32 connections", 2, 32,
       Goal(0.85, ("haproxy",)), Goal(0.45, ENVOY)),
    h1("h1-two-hop-256", "HTTP/1.1, two hops over mTLS, 256 connections", 2, 256,
       Goal(0.6, ("haproxy",)), Goal(0.45, ENVOY)),
    h1("h1-two-hop-1", "HTTP/1.1, two hops over mTLS, 1 connection", 2, 1, Goal(0.85, HAPROXY)),
    Row("h2-one-hop", "HTTP/2, one hop, plaintext, 8×16 streams", HTTP2, 1, "h2load", 8, 16,
        goals=(Goal(1.0, HAPROXY),)),
    Row("h2-two-hop", "HTTP/2, two hops over mTLS, 8×16 streams", HTTP2, 2, "h2load", 8, 16,
        goals=(Goal(0.6, HAPROXY + ENVOY),)),
    Row("connect-tcp", "new TCP connection + one request + close, opaque, two hops mTLS, 16 at once",
        TCP, 2, "wrk-close", 16, unit="CPU µs/connection", goals=(Goal(0.15, ENVOY),)),
    Row("connect-http", "the same, as HTTP/1.1: everybody may pool what is behind",
        HTTP1, 2, "wrk-close", 16, unit="CPU µs/connection", goals=(Goal(0.6, HAPROXY + ENVOY),)),
    Row("bulk-cubic", "bulk TCP, two hops over mTLS, one stream, cubic", TCP, 2, "iperf3",
        unit="CPU s/GiB", congestion="cubic", goals=(Goal(0.75, ENVOY),)),
    Row("bulk-bbr", "bulk TCP, two hops over mTLS, one stream, BBR", TCP, 2, "iperf3",
        unit="CPU s/GiB", congestion="bbr", goals=(Goal(0.75, ENVOY),)),
    Row("memory", "resident memory with 1000 idle client connections, source's proxy", HTTP1, 2, "idle",
        1000, unit="MiB", limits=(("start", 9.0), ("idle", 13.0))),
    Row("latency", "HTTP/1.1, two hops over mTLS, 32 connections, 2000 requests/s", HTTP1, 2, "paced",
        32, unit="ms (p50)", rate=2000, percentile="p50"),
    overload("overload-h1", "HTTP/1.1, one hop", 1, (64, 1), (256, 1)),
    overload("overload-h1-many", "HTTP/1.1, one hop", 1, (64, 1), (2000, 1)),
    overload("overload-h2", "HTTP/2, one hop", 1, (128, 4), (128, 200)),
    overload("overload-h1-two-hop", "HTTP/1.1, two hops over mTLS", 2, (64, 1), (256, 1)),
    overload("overload-h2-two-hop", "HTTP/2, two hops over mTLS", 2, (128, 4), (128, 200)),
    h1("cross-h1-32", "across sites, HTTP/1.1, 32 connections", 4, 32),
    h1("cross-h1-1", "across sites, HTTP/1.1, 1 connection", 4, 1),
    Row("cross-h2", "across sites, HTTP/2, 8×16 streams", HTTP2, 4, "h2load", 8, 16),
    Row("cross-bulk", "across sites, bulk TCP, one stream", TCP, 4, "iperf3", unit="CPU s/GiB"),
    loss("loss-new", "a connection each", "requests", Goal(1.0, ("plain",))),
    loss("loss-kept", "on 64 connections that stay", "requests-kept"),
]

# Across sites: CPU that the gateways may add to our two hops over TLS/TCP, in
# times of HAProxy's two hops (HTTP/2 between them); twice that over QUIC.
ADDED = {"cross-h1-32": 25 / 23, "cross-h1-1": 90 / 156, "cross-h2": 15 / 45}

# Across sites: CPU per GiB of all four, in times of our own two hops, by link.
BULK = {"tls": 2.5, "quic": 6.0}

# What --quick takes: the rows that say most in the shortest time.
QUICK = ["h1-one-hop-32", "h1-two-hop-32", "h2-two-hop"]


def select(names):
    """The rows that are named; a name may be the start of several."""
    chosen = []
    for name in names:
        found = [row for row in ROWS if row.name == name] or [
            row for row in ROWS if row.name.startswith(name)]
        if not found:
            raise SystemExit(f"no row {name}; there are: {', '.join(row.name for row in ROWS)}")
        chosen += [row for row in found if row not in chosen]
    return chosen
