"""HTTP/1.0 and 1.1: curl, wrk, httpx and Node, before nginx and Node."""

import hashlib
import json
import os
import re
import tempfile
import urllib.request

from ..case import case, equal, holds
from ..process import run
from ..servers import LARGE, PORTS

CURL = ["curl", "-sS", "--max-time", "30"]
BODY = bytes(range(256)) * 1000


def curl(*arguments, **more):
    return run([*CURL, *arguments], **more).stdout


def directly(path):
    """What nginx answers without us."""
    with urllib.request.urlopen(f"http://127.0.0.1:{PORTS['nginx']}{path}", timeout=30) as answer:
        return answer.read()


def fields(head):
    """The fields of the last head that curl shows, by lower-case name."""
    lines = head.decode().replace("\r\n", "\n").strip().split("\n\n")[-1].split("\n")
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}


@case("http1/curl/1.0 and 1.1", ["files"], ["curl"])
def versions(way):
    for version in ("--http1.0", "--http1.1"):
        answer = curl(version, "-i", way.url("files", "/small.txt"))
        holds(re.match(rb"HTTP/1\.[01] 200 ", answer), f"{version}: {answer[:40]}")
        equal(answer.partition(b"\r\n\r\n")[2], directly("/small.txt"), version)


@case("http1/curl/by name", ["files"], ["curl"])
def by_name(way):
    """As a proxy's client, by Host, and through CONNECT."""
    ping = b"pong"
    equal(curl("-x", f"127.0.0.1:{way.named}", "http://files.shop/ping"), ping, "absolute-form")
    equal(curl("-H", "Host: files.shop", f"http://127.0.0.1:{way.named}/ping"), ping, "Host")
    equal(curl("-p", "-x", f"127.0.0.1:{way.named}", "http://files.shop/ping"), ping, "CONNECT")


@case("http1/curl/connections are kept", ["files"], ["curl"])
def keep_alive(way):
    urls = [way.url("files", "/small.txt")] * 20
    said = run([*CURL, "-v", *urls]).stderr.decode(errors="replace")
    equal(said.count("Re-using existing connection"), 19, "connections used again")
    said = run([*CURL, "-v", "--http1.0", "-H", "Connection: keep-alive", *urls[:3]]).stderr.decode(errors="replace")
    equal(said.count("Re-using existing connection"), 2, "connections of HTTP/1.0 used again")


@case("http1/curl/HEAD", ["files"], ["curl"])
def head(way):
    found = fields(curl("-I", way.url("files", "/large.bin")))
    equal(found.get("content-length"), str(LARGE), "Content-Length of HEAD")


@case("http1/curl/ranges", ["files"], ["curl"])
def ranges(way):
    whole = directly("/small.txt")
    answer = curl("-i", "-r", "10-19", way.url("files", "/small.txt"))
    holds(answer.startswith(b"HTTP/1.1 206 "), f"status: {answer[:40]}")
    equal(answer.partition(b"\r\n\r\n")[2], whole[10:20], "bytes 10-19")
    several = curl("-i", "-r", "0-1,5-6", way.url("files", "/small.txt"))
    holds(b"multipart/byteranges" in several and whole[5:7] in several, "two ranges")
    beyond = curl("-o", "/dev/null", "-w", "%{http_code}", "-r", "99999999-", way.url("files", "/small.txt"))
    equal(beyond, b"416", "a range beyond the end")


@case("http1/curl/conditional", ["files"], ["curl"])
def conditional(way):
    url = way.url("files", "/small.txt")
    etag = fields(curl("-I", url))["etag"]
    answer = curl("-i", "-H", f"If-None-Match: {etag}", url)
    holds(answer.startswith(b"HTTP/1.1 304 ") and answer.endswith(b"\r\n\r\n"), f"not a 304: {answer[:200]}")


@case("http1/curl/large bodies", ["files", "node"], ["curl"])
def large(way):
    digest = hashlib.sha256(directly("/large.bin"))
    with tempfile.TemporaryDirectory() as directory:
        there, back = os.path.join(directory, "there"), os.path.join(directory, "back")
        curl("-o", there, way.url("files", "/large.bin"))
        equal(hashed(there), digest.hexdigest(), "20 MiB down")
        curl("-T", there, "-o", back, way.url("node", "/echo"))
        equal(hashed(back), digest.hexdigest(), "20 MiB up and down")
        curl("-T", there, "-H", "Transfer-Encoding: chunked", "-o", back, way.url("node", "/echo"))
        equal(hashed(back), digest.hexdigest(), "20 MiB in chunks")


def hashed(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@case("http1/curl/methods", ["node"], ["curl"])
def methods(way):
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "X-OWN"):
        found = fields(curl("-o", "/dev/null", "-D", "-", "-X", method, way.url("node", "/echo?a=b%20c&d")))
        # Node knows no methods of one's own.
        wanted = (method, "/echo?a=b%20c&d") if method != "X-OWN" else (None, None)
        equal((found.get("x-method"), found.get("x-target")), wanted, method)


@case("http1/curl/chunked upload", ["node"], ["curl"])
def chunked(way):
    answer = curl("-H", "Transfer-Encoding: chunked", "--data-binary", "@-", way.url("node", "/echo"), stdin=BODY)
    equal(answer, BODY, "echo")


@case("http1/curl/expect", ["node"], ["curl"])
def expect(way):
    """An upload that waits for its 100, and one that is answered early. That
    the application itself is not asked is in differences.toml."""
    upload = ["-H", "Expect: 100-continue", "--expect100-timeout", "20", "--data-binary", "@-"]
    done = run([*CURL, "-v", *upload, way.url("node", "/echo")], stdin=BODY)
    equal(done.stdout, BODY, "echo")
    holds(b"< HTTP/1.1 100" in done.stderr, "no 100 was seen")
    done = run([*CURL, "-v", *upload, way.url("node", "/early")], stdin=BODY)
    holds(b"< HTTP/1.1 413" in done.stderr, f"no 413: {done.stderr[-200:]}")


@case("http1/curl/early answer", ["node"], ["curl"])
def early(way):
    code = curl("-o", "/dev/null", "-w", "%{http_code}", "-H", "Expect:", "--data-binary", "@-",
                way.url("node", "/early"), stdin=BODY * 40)
    equal(code, b"413", "status")


@case("http1/curl/trailers", ["node"], ["curl"])
def trailers(way):
    """RFC 9110 section 6.5: `TE: trailers` says that they are wanted."""
    answer = curl("--raw", "-H", "TE: trailers", "-H", "Connection: TE", "--data-binary", "@-",
                  way.url("node", "/trailers"), stdin=BODY)
    holds(answer.endswith(f"0\r\nx-bytes: {len(BODY)}\r\n\r\n".encode()), f"no trailer: {answer}")


@case("http1/curl/early hints", ["node"], ["curl"])
def hints(way):
    answer = curl("-i", way.url("node", "/hints"))
    holds(answer.startswith(b"HTTP/1.1 103 ") and b"rel=preload" in answer, f"no 103: {answer[:60]}")
    holds(answer.endswith(b"hinted\n"), "no final answer")


@case("http1/curl/streamed", ["node"], ["curl"])
def streamed(way):
    """Lines arrive when they are written, not at the end."""
    done = curl("-N", "-w", "%{time_starttransfer} %{time_total}", way.url("node", "/slow"))
    lines, times = done.decode().rsplit("\n", 1)
    first, last = map(float, times.split())
    equal(lines.count("line"), 10, "lines")
    holds(last - first > 0.3, f"the first line came {last - first:.3f} s before the last")


@case("http1/curl/hop-by-hop fields", ["node"], ["curl"])
def hop_by_hop(way):
    """RFC 9110 section 7.6.1: what Connection names ends here."""
    answer = curl("-D", "-", "-o", "/dev/null", "-H", "Connection: x-mine, close", "-H", "X-Mine: 1",
                  "-H", "Keep-Alive: 5", "-H", "Proxy-Connection: keep-alive", "-H", "X-Other: 2", way.url("node", "/echo"))
    seen = json.loads(fields(answer)["x-fields"])
    left = {"x-mine", "keep-alive", "proxy-connection"} & set(seen)
    holds(not left, f"forwarded: {left}")
    equal(seen.get("x-other"), "2", "another field")


@case("http1/wrk", ["files"], ["wrk"])
def wrk(way):
    said = run(["wrk", "-t", "1", "-c", "16", "-d", "2", way.url("files", "/ping")]).stdout.decode()
    counted = re.search(r"(\d+) requests in", said)
    holds(counted and int(counted[1]) > 100, f"too few: {said}")
    holds("Socket errors" not in said and "Non-2xx" not in said, said)


@case("http1/httpx", ["node"])
def httpx_client(way):
    import httpx
    with httpx.Client(timeout=30) as client:
        for number in range(20):
            answer = client.post(way.url("node", f"/echo?{number}"), content=BODY)
            equal((answer.status_code, answer.content), (200, BODY), "echo")
        answer = client.put(way.url("node", "/echo"), content=iter([b"a", b"bc", BODY]))
        equal(answer.content, b"abc" + BODY, "a body of unknown length")
        equal(json.loads(answer.headers["x-fields"]).get("transfer-encoding"), "chunked", "framing towards Node")
        with client.stream("GET", way.url("node", "/slow")) as stream:
            equal("".join(stream.iter_text()), "line\n" * 10, "a stream")


@case("http1/node client", ["node"], ["node"])
def node_client(way):
    node_script(way.url("node"), "http1")


def node_script(url, protocol):
    from ..servers import HERE
    said = run(["node", os.path.join(HERE, "node-client.js"), url, protocol]).stdout.decode()
    equal(said.strip().splitlines()[-1:], ["all is well"], "the client's last line")
