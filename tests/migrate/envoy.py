#!/usr/bin/env python3
"""Compares what `mesh-migrate`'s example `envoy` says of requests with what Envoy does.

    envoy.py --envoy BINARY --explain BINARY [--record] CASES.json...

A file of cases holds [{"config": PATH, "requests": [...]}, ...], paths as seen from it;
with "dump" the answers are those about /config_dump. In a configuration @DIR@ is a
directory with a certificate, c.pem and k.pem. --record writes into the cases what Envoy
did ("saw"), which the tests of mesh-migrate hold against. Envoy runs in network
and mount namespaces of its own, where 10.20.0.0/16 is on the loopback device, names come
from tests/legacy/hosts, and echo servers say which address they were asked at. Needs root.
"""
import argparse, http.server, json, os, pathlib, socket, socketserver, ssl, subprocess, sys, tempfile, threading, time, urllib.request

HERE = pathlib.Path(__file__).resolve().parent
# All that generated configurations know, and those of tests/legacy.
BACKENDS = [*(f"10.20.1.{n}" for n in (11, 12, 13, 21, 31)), *(f"10.20.2.{n}" for n in (11, 12)), "10.20.9.1", "10.20.8.21"]
PORTS = [8080, 8443, 9090]
# Headers that are written down.
TOLD = {"host", "x-l", "x-o", "x-a", "x-b", "x-c", "x-d", "x-w", "x-abs", "x-ex", "x-fmt", "x-gone", "x-old", "x-rem", "x-forwarded-for"}
# Of configurations whose `/config_dump` is read.
ADMIN = 9901
# Speaks no HTTP.
NAMED = 8444


class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        length = int(self.headers.get("content-length") or 0)
        self.rfile.read(length)
        address, port = self.connection.getsockname()[:2]
        headers = {}
        for name, value in self.headers.items():
            headers.setdefault(name.lower(), []).append(value)
        echo = {"endpoint": f"{address}:{port}", "target": self.requestline.split(" ")[1], "headers": headers}
        self.send_response(200)
        self.send_header("content-length", "0")
        self.send_header("x-echo", json.dumps(echo))
        self.end_headers()

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = do_PURGE = answer

    def log_message(self, *_):
        pass


class Named(socketserver.BaseRequestHandler):
    """Says where it was asked, whatever was said."""

    def handle(self):
        if self.request.recv(4096):
            address, port = self.request.getsockname()[:2]
            self.request.sendall(f"{address}:{port}".encode())


class Plain(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = True


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128


def connect(request):
    """One connection, as TLS for a name or as bytes, and which endpoint it came to."""
    host, port = request["listener"].rsplit(":", 1)
    hello = b"hello\n"
    if name := request.get("server_name"):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            hello = outgoing.read()
    with socket.socket() as client:
        client.settimeout(8)
        client.bind((request.get("source", "127.0.0.1"), 0))
        client.connect((host, int(port)))
        client.sendall(hello)
        got = b""
        try:
            while chunk := client.recv(4096):
                got += chunk
        except ConnectionResetError:
            pass
    if not got:
        return {"closed": True}
    return {"status": 200, "headers": {}, "echo": {"endpoint": got.decode(), "target": None, "headers": {}}}


def ask(request):
    """One request as raw bytes, and what came back."""
    if "target" not in request:
        return connect(request)
    host, port = request["listener"].rsplit(":", 1)
    version = "1.0" if request.get("http10") else "1.1"
    lines = [f"{request.get('method', 'GET')} {request['target']} HTTP/{version}"]
    if request.get("host") is not None:
        lines.append(f"Host: {request['host']}")
    lines += [f"{name}: {value}" for name, value in request.get("headers", [])]
    if version == "1.1":
        lines.append("Connection: close")
    data = ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8")
    with socket.socket() as client:
        client.settimeout(8)
        client.bind((request.get("source", "127.0.0.1"), 0))
        client.connect((host, int(port)))
        if request.get("tls"):
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            client = context.wrap_socket(client, server_hostname=request["tls"])
        client.sendall(data)
        got = b""
        while not complete(got, request) and (chunk := client.recv(65536)):
            got += chunk
    if not got:
        return {"closed": True}
    head, _, body = got.partition(b"\r\n\r\n")
    status, *rest = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in rest:
        name, _, value = line.partition(":")
        headers.setdefault(name.lower(), []).append(value.strip())
    if "chunked" in headers.get("transfer-encoding", [""])[0]:
        body = dechunk(body)
    answer = {"status": int(status.split()[1]), "headers": headers, "body": body.decode("utf-8", "replace")}
    if "x-echo" in headers:
        answer["echo"] = json.loads(headers["x-echo"][0])
    return answer


def complete(got, request):
    """Envoy keeps a connection that it has answered on open for a while."""
    head, end, body = got.partition(b"\r\n\r\n")
    if end and request.get("method") == "HEAD":
        return True
    for line in head.lower().split(b"\r\n"):
        if end and line.startswith(b"content-length:"):
            return len(body) >= int(line.split(b":")[1])
    return False


def dechunk(body):
    out = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        size = int(size, 16)
        if not size:
            break
        out, body = out + body[:size], body[size + 2:]
    return out


def resolve(endpoint, hosts):
    name, _, port = endpoint.rpartition(":")
    return f"{hosts.get(name, name)}:{port}"


def differences(said, request, answers, hosts):
    """Why what Envoy did is not what was said."""
    out = said["outcome"]
    wrong = []
    first = answers[0]
    if out == "closed":
        return [] if first.get("closed") else [f"said closed, got {first.get('status')}"]
    if first.get("closed"):
        return ["it was closed"]
    if "answered" in out:
        want = out["answered"]
        if "echo" in first or first["status"] != want["status"]:
            got = first.get("echo", {}).get("endpoint")
            wrong.append(f"said {want['status']}, got {first['status']} {got or ''}")
        for name, value in want["headers"]:
            if value not in first["headers"].get(name, []):
                wrong.append(f"{name}: said {value}, got {first['headers'].get(name)}")
        if want["body"] is not None and request.get("method") != "HEAD" and first["body"] != want["body"]:
            wrong.append(f"body: said {want['body']!r}, got {first['body']!r}")
        return wrong
    want = out["forwarded"]
    may = {resolve(endpoint, hosts) for endpoint, _ in want["endpoints"]}
    seen = {}
    for answer in answers:
        if "echo" not in answer:
            return [f"said forwarded to {sorted(may)}, got {answer.get('status', 'closed')}"]
        endpoint = answer["echo"]["endpoint"]
        seen[endpoint] = seen.get(endpoint, 0) + 1
        if endpoint not in may:
            wrong.append(f"went to {endpoint}, said {sorted(may)}")
        if want["target"] is not None and answer["echo"]["target"] != want["target"]:
            wrong.append(f"target: said {want['target']}, got {answer['echo']['target']}")
        got = answer["echo"]["headers"]
        for name, value in want["headers"]:
            has = got.get(name)
            has = None if has is None else ", ".join(has).replace(", ", ",")
            if has != (None if value is None else value.replace(", ", ",")):
                wrong.append(f"header {name}: said {value!r}, got {has!r}")
        if not any(name == "host" for name, _ in want["headers"]) and request.get("host"):
            if got.get("host") != [request["host"]]:
                wrong.append(f"host: said unchanged, got {got.get('host')}")
    many = len(answers)
    if many >= 100:
        for endpoint, share in want["endpoints"]:
            got = seen.get(resolve(endpoint, hosts), 0) / many
            if not want["is_sticky"] and abs(got - share) > 0.12:
                wrong.append(f"share of {endpoint}: said {share:.2f}, got {got:.2f}")
    if want["is_sticky"] and len(seen) > 1:
        wrong.append(f"said sticky, went to {sorted(seen)}")
    return sorted(set(wrong))[:4]


def explained(options, config, lines):
    """What the example says; a `problem` alone, if it cannot read the file."""
    said = subprocess.run([options.explain, config], input=lines, capture_output=True, text=True)
    if said.returncode:
        return [{"problem": said.stderr.strip()}]
    return [json.loads(line) for line in said.stdout.splitlines()]


def run(case, base, options, hosts, directory):
    config = os.path.join(directory, "config" + pathlib.Path(case["config"]).suffix)
    text = (base / case["config"]).read_text().replace("@DIR@", directory)
    pathlib.Path(config).write_text(text)
    requests = case["requests"]
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    said = [] if case.get("dump") else explained(options, config, lines)
    log = open(os.path.join(directory, "envoy.log"), "w+")
    envoy = [options.envoy, "-c", config, "--concurrency", "1", "--log-level", "warning", "--base-id", "77"]
    if said and "problem" in said[0] or case.get("validate"):
        valid = subprocess.run(envoy + ["--mode", "validate"], stdout=log, stderr=log).returncode == 0
        problem = said[0].get("problem") if said else None
        if valid == (problem is None):
            return [], 1
        return [f"Envoy says {'good' if valid else refusal(log)}, we say {problem or 'good'}"], 1
    proxy = subprocess.Popen(envoy, stdout=log, stderr=log)
    failed = []
    try:
        listener = requests[0]["listener"].rsplit(":", 1)
        for _ in range(200):
            try:
                socket.create_connection((listener[0], int(listener[1])), 1).close()
                break
            except OSError:
                if proxy.poll() is not None:
                    return [f"Envoy ended: {refusal(log)}, we say good"], 0
                time.sleep(0.05)
        time.sleep(0.2)
        if case.get("dump"):
            url = f"http://127.0.0.1:{ADMIN}/config_dump?include_eds"
            dump = os.path.join(directory, "dump.json")
            pathlib.Path(dump).write_bytes(urllib.request.urlopen(url, timeout=5).read())
            said = explained(options, dump, lines)
            if "problem" in said[0]:
                return [said[0]["problem"]], 0
        for request, answer in zip(requests, said):
            try:
                answers = [ask(request) for _ in range(request.get("times", 1))]
            except OSError as error:
                answers = [{"closed": True, "error": str(error)}]
            if options.record:
                request["saw"] = saw(answers)
            wrong = differences(answer, request, answers, hosts)
            if wrong:
                failed.append(json.dumps(request) + ": " + "; ".join(wrong))
    finally:
        proxy.terminate()
        proxy.wait()
    return failed, len(requests)


def certificate(directory):
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -keyout k.pem -out c.pem"
    subprocess.run(command.split(), cwd=directory, check=True, capture_output=True)


def saw(answers):
    """What Envoy did, as far as it is the same each time."""
    first = answers[0]
    if first.get("closed"):
        return {"closed": True}
    if "echo" not in first:
        seen = {"status": first["status"]}
        if location := first["headers"].get("location"):
            seen["location"] = location[0]
        return seen
    endpoints = sorted({answer["echo"]["endpoint"] for answer in answers if "echo" in answer})
    headers = {n: ",".join(v) for n, v in first["echo"]["headers"].items() if n in TOLD}
    return {"endpoints": endpoints, "target": first["echo"]["target"], "headers": headers}


def written(cases):
    """JSON with a line for each request."""
    parts = []
    for case in cases:
        rest = {name: value for name, value in case.items() if name != "requests"}
        lines = ",\n   ".join(json.dumps(request) for request in case["requests"])
        parts.append(json.dumps(rest)[:-1] + ', "requests": [\n   ' + lines + "\n ]}")
    return "[\n " + ",\n ".join(parts) + "\n]\n"


def refusal(log):
    """What Envoy says is wrong, without the whole configuration that it repeats."""
    log.seek(0)
    text = log.read()
    lines = [line for line in text.splitlines() if "[critical]" in line]
    line = lines[-1] if lines else text[-300:]
    return line.split("error `", 1)[-1].split("` initializing")[0][:300]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--envoy", required=True)
    parser.add_argument("--explain", required=True)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--inside", action="store_true")
    parser.add_argument("cases", nargs="+")
    options = parser.parse_args()
    if not options.inside:
        inside = ["unshare", "--net", "--mount", sys.executable, __file__, "--inside", *sys.argv[1:]]
        sys.exit(subprocess.run(inside).returncode)
    table = HERE.parent / "legacy" / "hosts"
    for command in (
        "ip link set lo up",
        "ip route add local 10.20.0.0/16 dev lo",
        f"mount --bind {table} /etc/hosts",
    ):
        subprocess.run(command.split(), check=True)
    hosts = {}
    for line in table.read_text().splitlines():
        address, *names = line.split()
        hosts.update((name, address) for name in names)
    for host in BACKENDS:
        for port in PORTS:
            server = Server((host, port), Echo)
            threading.Thread(target=server.serve_forever, daemon=True).start()
        named = Plain((host, NAMED), Named)
        threading.Thread(target=named.serve_forever, daemon=True).start()
    total = wrong = 0
    with tempfile.TemporaryDirectory() as directory:
        certificate(directory)
        for path in options.cases:
            cases = json.loads(pathlib.Path(path).read_text())
            for case in cases:
                failed, count = run(case, pathlib.Path(path).parent, options, hosts, directory)
                total += count
                wrong += len(failed)
                for one in failed:
                    print(f"{case['config']}: {one}", flush=True)
            if options.record:
                pathlib.Path(path).write_text(written(cases))
    print(f"{total - wrong} of {total} agree")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
