#!/usr/bin/env python3
"""Configurations by chance, through the real legacy proxy and then through ours with what
was imported: the same requests must come to the same servers, as the same requests, and
answers must be the same, or the report says otherwise at a line that the request goes by.

    tests/migrate/ours.py [haproxy|nginx|envoy…]

MIGRATE_COUNT configurations of each, 40, from MIGRATE_SEED on, 1. MIGRATE_KEEP names a
directory for configurations that are wrong. MESHCTL, EDGE_PROXY, HAPROXY, NGINX and ENVOY
name programs; examples of mesh-migrate are in the target directory.
"""

import glob
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections import Counter

import world
from cases import PROGRAMS, TARGET
from told import excuses, reasons, text_of, untold

FORMATS = ["haproxy", "nginx", "envoy"]
COUNT = int(os.environ.get("MIGRATE_COUNT", "40"))
SEED = int(os.environ.get("MIGRATE_SEED", "1"))
# Ports of every address that configurations send to, and for Envoy which addresses:
# it listens at some of the ports itself.
SERVERS = {
    "haproxy": [("0.0.0.0", port) for port in (8080, 8443)],
    "nginx": [("0.0.0.0", port) for port in (9000, 9443)],
    "envoy": [
        ("10.20.%s" % host, port)
        for host in ("1.11", "1.12", "1.13", "1.21", "1.31", "2.11", "2.12", "9.1", "8.21")
        for port in (8080, 8443, 8444, 9090)
    ],
}
NGINX_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"
# Of one connection, or of the one who answers.
HOP = {"connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade", "content-length"}


class Echo(world.socketserver.BaseRequestHandler):
    """Tells where it is and, of HTTP, what was asked."""

    def handle(self):
        address = "%s:%d" % self.request.getsockname()
        data = b""
        while b"\r\n\r\n" not in data:
            more = self.request.recv(65536)
            if not more:
                return
            data += more
            if not data[:1].isalpha() or data.startswith(b"hello"):
                self.request.sendall(address.encode())
                return
        first, *lines = data.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = folded(line.partition(":") for line in lines)
        seen = json.dumps({"address": address, "method": method, "target": target, "headers": headers})
        answer = "HTTP/1.1 200 OK\r\nx-seen: %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        self.request.sendall((answer % seen).encode())


def folded(fields):
    """Values by name, those of one name together."""
    headers = {}
    for name, _, value in fields:
        headers.setdefault(name.strip().lower(), []).append(value.strip())
    # What is empty says nothing beside others.
    headers = {name: [v for v in values if v] or [""] for name, values in headers.items()}
    return {name: ", ".join(values).replace(", ", ",") for name, values in headers.items()}


# --- configurations by chance


def haproxy_cases(directory):
    made = subprocess.check_output([os.path.join(TARGET, "debug/examples/haproxy"), str(COUNT), str(SEED)])
    for number, case in enumerate(json.loads(made)):
        own = os.path.join(directory, str(SEED + number))
        os.mkdir(own)
        files = [("proxy.cfg", case["config"]), ("hosts.map", case["map"]), ("paths.lst", case["list"])]
        for name, text in files + case["fixed"]:
            with open(os.path.join(own, name), "w") as file:
                file.write(text)
        for request in case["requests"]:
            port = int(request["listener"].split(":")[1])
            if port == 9443:
                request["server_name"] = request["host"].split(":")[0]
            request["is_tcp"] = port in (9000, 9443)
        yield os.path.join(own, "proxy.cfg"), [r for r in case["requests"] if r["listener"] in case["config"]]


def nginx_cases(directory):
    example = os.path.join(TARGET, "debug/examples/nginx_oracle")
    subprocess.check_call([example, directory, str(SEED), str(COUNT)])
    for number in range(COUNT):
        own = os.path.join(directory, "%d.own" % number)
        os.mkdir(own)
        path = os.path.join(own, "proxy.cfg")
        os.rename(os.path.join(directory, "%d.conf" % number), path)
        with open(os.path.join(directory, "%d.json" % number)) as file:
            cases = json.load(file)
        for case in cases:
            asked = case.pop("asked")
            case.update(asked, source="10.20.0.1", is_tcp="method" not in asked)
        yield path, cases


def envoy_cases(directory):
    example = os.path.join(TARGET, "debug/examples/envoy")
    subprocess.check_call([example, "generate", directory, str(COUNT), str(SEED)])
    with open(os.path.join(directory, "cases.json")) as file:
        cases = json.load(file)
    for case in cases:
        # With a line for each field: the report tells of lines.
        path = case["config"].replace(".yaml", ".json")
        for request in case["requests"]:
            # Envoy takes clients of its own machine for itself.
            request.setdefault("source", "10.20.0.1")
        asked = "".join(json.dumps(request) + "\n" for request in case["requests"])
        said = subprocess.run([example, path], input=asked, capture_output=True, text=True, check=True)
        for request, answer in zip(case["requests"], said.stdout.splitlines()):
            request["answer"] = json.loads(answer)
            request["is_tcp"] = "target" not in request
        yield path, case["requests"]


# --- proxies


def real(name, path, directory):
    own = os.path.dirname(path)
    command = {
        "haproxy": [PROGRAMS["haproxy"], "-db", "-f", path],
        "nginx": [
            PROGRAMS["nginx"], "-p", directory + "/", "-c", path, "-e", "error.log", "-g",
            "user root; pid nginx.pid; daemon off; master_process off; load_module %s;" % NGINX_MODULE,
        ],
        "envoy": [PROGRAMS["envoy"], "-c", path, "--concurrency", "1", "-l", "warning", "--base-id", "78"],
    }[name]
    log = open(os.path.join(directory, "real.log"), "w")
    return subprocess.Popen(command, cwd=own, stdout=log, stderr=log)


def ours(directory):
    log = open(os.path.join(directory, "ours.log"), "w")
    command = [PROGRAMS["edge-proxy"], "--config", os.path.join(directory, "proxy.yaml"), "--workers", "1"]
    return subprocess.Popen(command, stdout=log, stderr=log)


def answers(process, requests, times):
    """What came of every request, as often as `times` says of it; None if nobody is there."""
    try:
        # Some ask where nobody listens.
        listeners = sorted({request["listener"] for request in requests})
        opened = [listener for listener in listeners if world.until_open(listener, process, 0.1)]
        if not opened and not any(world.until_open(listener, process, 20 / len(listeners)) for listener in listeners):
            return None
        for listener in set(listeners) - set(opened):
            world.until_open(listener, process, 0.3)
        got = [[ask(request) for _ in range(times(request))] for request in requests]
        return got if process.poll() is None else None
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# --- requests


def hello(name):
    """What a client of TLS says first."""
    said = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    client = context.wrap_bio(ssl.MemoryBIO(), said, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return said.read()


def ask(request):
    """What came back: `closed`, `answered` or, of whoever was behind, `seen`."""
    data = b"hello\n"
    if request["is_tcp"]:
        if request.get("server_name"):
            data = hello(request["server_name"])
    else:
        method = request.get("method", "GET")
        lines = ["%s %s HTTP/%s" % (method, request["target"], "1.0" if request.get("http10") else "1.1")]
        if request.get("host") is not None:
            lines.append("Host: " + request["host"])
        lines += ["%s: %s" % (name, value) for name, value in request.get("headers", [])]
        if method in ("POST", "PUT", "PATCH"):
            lines.append("Content-Length: 0")
        data = ("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode()
    host, port = request["listener"].rsplit(":", 1)
    got = b""
    try:
        source = (request["source"], 0)
        with socket.create_connection((host, int(port)), 8, source) as client:
            if request.get("tls"):
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                client = context.wrap_socket(client, server_hostname=request["tls"])
            client.sendall(data)
            while not is_whole(got, request) and (more := client.recv(65536)):
                got += more
    except ConnectionRefusedError:
        return {"closed": "before it was open"}
    except ConnectionError:
        pass
    # An alert of TLS says no more.
    if not got or got[:1] == b"\x15":
        return {"closed": True}
    if request["is_tcp"]:
        return {"seen": {"address": got.decode("latin-1")}, "headers": {}}
    head, _, body = got.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = folded(line.partition(":") for line in lines)
    if seen := headers.pop("x-seen", None):
        return {"seen": json.loads(seen), "headers": headers}
    return {"answered": int(status.split()[1]), "headers": headers, "body": body.decode("latin-1")}


def is_whole(got, request):
    """Some keep a connection open a while that they have answered on."""
    head, end, body = got.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: *(\d+)", head.lower())
    return bool(end and (request.get("method") == "HEAD" or length and len(body) >= int(length[1])))


# --- what differs


def endpoints(request):
    """Servers that are alike for the request, or None where nothing is known of that."""
    outcome = request["answer"].get("outcome")
    if not isinstance(outcome, dict) or "forwarded" not in outcome:
        return None
    return {endpoint for endpoint, _ in outcome["forwarded"]["endpoints"]}


def is_by_chance(request):
    """Whether clusters with shares stand behind it, which may change different headers."""
    return any(re.search(r", \d+ of \d+$", step["what"]) for step in request["answer"].get("why", []))


def outcome(answer):
    for kind in ("closed", "answered"):
        if kind in answer:
            return "%s %s" % (kind, answer[kind])
    return "from %s" % answer["seen"]["address"]


def differences(request, theirs, own):
    """Pairs of what differs and how: outcome, server, target, method, header …"""
    if "seen" not in theirs or "seen" not in own:
        if outcome(theirs) != outcome(own):
            return [("outcome", "%s, ours %s" % (outcome(theirs), outcome(own)))]
        if "closed" in theirs:
            return []
        found = fields("answer's ", theirs["headers"], own["headers"], ANSWERED)
        said = request["answer"].get("outcome")
        body = said["answered"]["body"] if isinstance(said, dict) and "answered" in said else None
        # Pages that a proxy has for itself are its own.
        if body is not None and request.get("method") != "HEAD" and theirs["body"] != own["body"]:
            found.append(("body", "%r, ours %r" % (theirs["body"], own["body"])))
        return found
    one, other = theirs["seen"], own["seen"]
    if one["address"] != other["address"]:
        alike = endpoints(request)
        if alike is None or not {one["address"], other["address"]} <= resolved(alike):
            return [("server", "%s, ours %s" % (one["address"], other["address"]))]
    found = []
    for part in ("target", "method"):
        if one.get(part) != other.get(part):
            found.append((part, "%s, ours %s" % (one.get(part), other.get(part))))
    sent = dict(one.get("headers", {}))
    if request.get("http10") and request.get("host") is None:
        # It goes on in HTTP/1.1, which must have one.
        sent.setdefault("host", other.get("headers", {}).get("host"))
    found += fields("", sent, other.get("headers", {}), HOP)
    return found + fields("answer's ", theirs["headers"], own["headers"], ANSWERED)


# Headers that each of them adds by itself; the report says so of Envoy's.
THEIRS = re.compile("x-request-id|x-forwarded-proto|x-envoy-.*")
OURS = {"x-forwarded-host", "x-forwarded-proto", "x-isthmus-timeout", "isthmus-error", "l5d-proxy-error"}
ANSWERED = HOP | {"date", "server", "content-type", "cache-control"}


def same_host(location):
    """Capitals and a last dot of a host name nobody."""
    return location and re.sub("(?<=://)[^/?#]+", lambda host: re.sub(r"[.](?=:|$)", "", host[0].lower()), location)


def fields(whose, theirs, own, but):
    found = []
    for name in sorted((set(theirs) | set(own)) - but):
        one, other = theirs.get(name), own.get(name)
        if name == "location":
            one, other = same_host(one), same_host(other)
            # A path alone is of the same host.
            one = one if other is None or other[:1] != "/" or not one else re.sub("^https?://[^/]*", "", one)
        is_added = other is None and THEIRS.fullmatch(name) or one is None and name in OURS
        if one != other and not is_added:
            found.append(("%sheader %s" % (whose, name), "%r, ours %r" % (one, other)))
    return found


def names():
    with open(os.path.join(world.LEGACY, "hosts")) as file:
        return {name: line.split()[0] for line in file if line.split() for name in line.split()[1:]}


NAMES = names()


def resolved(all):
    parts = (endpoint.rsplit(":", 1) for endpoint in all)
    return {"%s:%s" % (NAMES.get(host, host), port) for host, port in parts}


# --- all of them


class Tally:
    def __init__(self):
        self.same, self.told, self.wrong, self.refused = 0, 0, 0, 0
        # What hangs on something that is not in the configuration, as `explain` says.
        self.unsaid = 0
        self.excuses = Counter()


def run(name, path, requests, tally):
    number = os.path.basename(os.path.dirname(path) if name != "envoy" else path)
    with tempfile.TemporaryDirectory() as directory:
        plan = [PROGRAMS["meshctl"], "migrate", "plan", "--from", name, path, "--out", directory]
        plan += ["--hosts", os.path.join(world.LEGACY, "hosts")]
        planned = subprocess.run(plan, cwd=os.path.dirname(path), capture_output=True, text=True)
        theirs = answers(real(name, path, directory), requests, lambda request: 12 if is_by_chance(request) else 1)
        if theirs is None:
            with open(os.path.join(directory, "real.log")) as log:
                print("%s %s: the real one does not take it: %s" % (name, number, log.read()[-500:]))
            tally.refused += 1
            return False
        if planned.returncode:
            print("%s %s: not planned: %s" % (name, number, planned.stderr.strip()))
            tally.wrong += 1
            return False
        with open(os.path.join(directory, "report.json")) as file:
            report = json.load(file)
        good = True
        if lines := untold(report, path):
            print("%s %s: the report does not speak of lines %s" % (name, number, lines))
            tally.wrong, good = tally.wrong + 1, False
        own = answers(ours(directory), requests, lambda _: 2)
        if os.environ.get("MIGRATE_KEEP"):
            shutil.copy(os.path.join(directory, "ours.log"), os.path.dirname(path))
        with open(os.path.join(directory, "ours.log")) as log:
            said = log.read()
        if own is None or "panicked" in said:
            print("%s %s: ours does not run: %s" % (name, number, said[-1000:]))
            tally.wrong += 1
            return False
        for request, real_ones, both in zip(requests, theirs, own):
            # What is nearest of the real one's answers, where chance has several.
            found = max((min((differences(request, one, other) for one in real_ones), key=len) for other in both), key=len)
            one = real_ones[0]
            if not found:
                tally.same += 1
                continue
            if "problem" in request["answer"]:
                tally.unsaid += 1
                continue
            statements, told = reasons(name, path, report, request)
            silent = []
            for what, how in found:
                texts = sorted({text_of(s) for s in statements if excuses(what, s, request, one)})
                if texts:
                    tally.excuses[what, texts[0] if len(texts) == 1 else "; ".join(texts)] += 1
                else:
                    silent.append("%s: %s" % (what, how))
            if not silent:
                tally.told += 1
                continue
            tally.wrong, good = tally.wrong + 1, False
            print("%s %s: %s" % (name, number, "; ".join(silent)))
            print("  ", json.dumps({k: v for k, v in request.items() if k != "answer"}))
            for line in told:
                print("  ", line)
            for line in said.splitlines()[-3:]:
                print("   ours says:", line)
        return good


def compared(name):
    """Whether all is well with one format."""
    world.alone()
    if shutil.which(PROGRAMS[name]) is None:
        sys.exit("%s is not there; install it and run this again" % PROGRAMS[name])
    for address in SERVERS[name]:
        server = world.Server(address, Echo)
        world.threading.Thread(target=server.serve_forever, daemon=True).start()
    tally, keep = Tally(), os.environ.get("MIGRATE_KEEP")
    with tempfile.TemporaryDirectory() as directory:
        for path, requests in globals()[name + "_cases"](directory):
            if not run(name, path, requests, tally) and keep:
                own = os.path.dirname(path) if name != "envoy" else path
                target = os.path.join(keep, "%s-%s" % (name, os.path.basename(own)))
                shutil.copytree(own, target, dirs_exist_ok=True) if os.path.isdir(own) else shutil.copy(own, target)
    print("%s, of %d configurations (%d refused): %d requests the same, %d told to differ, %d that explain does not say, %d wrong"
          % (name, COUNT, tally.refused, tally.same, tally.told, tally.unsaid, tally.wrong))
    for (what, text), count in sorted(tally.excuses.items(), key=lambda item: -item[1]):
        print("%6d  %s: %s" % (count, what, text))
    return not tally.wrong and not tally.refused and tally.same > 0


def main():
    names = sys.argv[1:] or FORMATS
    if len(names) == 1:
        sys.exit(0 if compared(names[0]) else 1)
    with tempfile.TemporaryDirectory() as directory:
        running = []
        for name in names:
            log = open(os.path.join(directory, name), "w+")
            running.append((subprocess.Popen([sys.executable, __file__, name], stdout=log, stderr=log), log))
        failed = [process.wait() for process, _ in running]
        for _, log in running:
            log.seek(0)
            print(log.read(), end="")
    sys.exit(1 if any(failed) else 0)


if __name__ == "__main__":
    main()
