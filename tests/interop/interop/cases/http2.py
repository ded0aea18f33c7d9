"""HTTP/2 with prior knowledge: h2spec, nghttp2's tools, curl, httpx and Node,
before Node and nghttpd."""

import os
import re
import tempfile
import xml.etree.ElementTree as xml

from ..case import case, equal, holds
from ..process import Failed, run
from .http1 import BODY, CURL, node_script

# What h2spec counts against us and why that is right; by its own names.
KNOWN = {
    # RFC 9113 section 3.4: such a peer does not speak HTTP/2, and this port
    # speaks HTTP/1 too: it is answered in that, 400, and closed.
    "http2/3.5: Sends invalid connection preface",
}


# What comes behind an answer that was quick is no fault any more: on a machine
# that is busy, each run has others of those. What is wrong is so in every run.
H2SPEC_RUNS = 5


def h2spec_failures(port):
    """How many tests were run, and the names of those that failed."""
    with tempfile.TemporaryDirectory() as directory:
        report = os.path.join(directory, "report.xml")
        run(["h2spec", "-S", "-h", "127.0.0.1", "-p", str(port), "-P", "/page", "-o", "3", "-j", report],
            timeout=300, status=None)
        if not os.path.exists(report):
            raise Failed("h2spec wrote no report")
        found = list(xml.parse(report).iter("testcase"))
    skipped = [one.get("classname") for one in found if one.find("skipped") is not None]
    holds(len(found) >= 140, f"only {len(found)} tests were run")
    holds(not skipped, f"skipped: {skipped}")
    return len(found), {f"{one.get('package')}: {one.get('classname')}" for one in found
                        if one.find("failure") is not None or one.find("error") is not None}


@case("http2/h2spec", ["node-h2"], ["h2spec"])
def h2spec(way):
    """Every section of RFC 9113 and RFC 7541 that h2spec knows, strict ones too."""
    port = way.front("node-h2")
    count, failures = h2spec_failures(port)
    for _ in range(1, H2SPEC_RUNS):
        if failures <= KNOWN:
            break
        failures &= h2spec_failures(port)[1]
    unknown, gone = failures - KNOWN, KNOWN - failures
    holds(not unknown, f"{len(unknown)} of {count}: " + "; ".join(sorted(unknown)))
    holds(not gone, f"these hold now; take them out of KNOWN: {sorted(gone)}")


@case("http2/curl/prior knowledge", ["node-h2", "nghttpd"], ["curl"])
def curl_http2(way):
    done = run([*CURL, "-i", "--http2-prior-knowledge", way.url("nghttpd", "/page")]).stdout
    holds(done.startswith(b"HTTP/2 200") and done.endswith(b"from nghttpd\n"), f"{done[:200]}")
    done = run([*CURL, "--http2-prior-knowledge", "--data-binary", "@-", way.url("node-h2", "/echo")], stdin=BODY)
    equal(done.stdout, BODY, "echo")
    done = run([*CURL, "-I", "--http2-prior-knowledge", way.url("node-h2", "/echo")]).stdout
    holds(done.startswith(b"HTTP/2 200"), f"HEAD: {done[:60]}")


@case("http2/curl/to an application of HTTP/1", ["files", "node"], ["curl"])
def to_http1(way):
    done = run([*CURL, "-i", "--http2-prior-knowledge", way.url("files", "/ping")]).stdout
    holds(done.startswith(b"HTTP/2 200") and done.endswith(b"pong"), f"{done[:200]}")
    done = run([*CURL, "--http2-prior-knowledge", "-T", "-", way.url("node", "/echo")], stdin=BODY)
    equal(done.stdout, BODY, "echo of unknown length")


@case("http2/curl/from a client of HTTP/1", ["node-h2"], ["curl"])
def from_http1(way):
    done = run([*CURL, "-i", "--data-binary", "@-", way.url("node-h2", "/echo")], stdin=BODY)
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    holds(b"x-version: 2.0" in head, f"{head}")
    equal(body, BODY, "echo")


@case("http2/nghttp", ["nghttpd", "node-h2"], ["nghttp"])
def nghttp(way):
    """Streams at once, an upload, and the trailer of nghttpd."""
    said = run(["nghttp", "-v", "-m", "8", way.url("nghttpd", "/page")]).stdout.decode()
    equal(said.count("from nghttpd"), 8, "answers")
    holds("x-end: 1" in said, "no trailer was seen")
    with tempfile.NamedTemporaryFile() as body:
        body.write(BODY)
        body.flush()
        echoed = run(["nghttp", "-d", body.name, "--trailer", "x-sent: yes", way.url("node-h2", "/echo")]).stdout
        equal(echoed, BODY, "echo")
        said = run(["nghttp", "-v", "-d", body.name, "--trailer", "x-sent: yes", way.url("node-h2", "/trailers")])
    holds(f"x-bytes: {len(BODY)}".encode() in said.stdout, "no trailer of Node was seen")
    holds(b"x-got: yes" in said.stdout, "the trailer of the request was lost")


@case("http2/h2load", ["nghttpd", "files"], ["h2load"])
def h2load(way):
    """Many connections and streams, and HTTP/1 pipelined by four."""
    for name, path, more in (("nghttpd", "/page", ["-m", "16"]), ("files", "/ping", ["-m", "16"]),
                             ("files", "/ping", ["--h1", "-m", "4"])):
        said = run(["h2load", "-n", "2000", "-c", "8", *more, way.url(name, path)]).stdout.decode()
        holds("2000 succeeded, 0 failed, 0 errored, 0 timeout" in said, said[-600:])
        holds(re.search(r"status codes: 2000 2xx", said), said[-600:])


@case("http2/httpx", ["node-h2"])
def httpx_client(way):
    import httpx
    with httpx.Client(http1=False, http2=True, timeout=30) as client:
        for number in range(20):
            answer = client.post(way.url("node-h2", f"/echo?{number}"), content=BODY)
            equal((answer.http_version, answer.status_code, answer.content), ("HTTP/2", 200, BODY), "echo")
        with client.stream("GET", way.url("node-h2", "/slow")) as stream:
            equal("".join(stream.iter_text()), "line\n" * 10, "a stream")


@case("http2/node client", ["node-h2"], ["node"])
def node_client(way):
    node_script(way.url("node-h2"), "http2")
