#!/usr/bin/env python3
"""Asks the real nginx what `explain` has said of it.

    nginx.py DIR        DIR has N.conf and N.json of the example nginx_oracle

Runs itself in a network namespace of its own, where all of 10.20.0.0/16 is local: one
echo server takes every backend's address. Ends with 1 if an answer differs.
"""

import glob, http.client, json, os, signal, socket, ssl, subprocess, sys, tempfile, threading, time

MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"


def echo(sock):
    """One request: what was asked, and at which address."""
    with sock:
        sock.settimeout(5)
        data = b""
        while b"\r\n\r\n" not in data:
            more = sock.recv(65536)
            if not more:
                return
            data += more
        head = data.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        headers = [line.split(": ", 1) if ": " in line else [line.rstrip(":"), ""] for line in head[1:]]
        host, port = sock.getsockname()
        said = {"at": f"{host}:{port}", "line": head[0], "headers": headers}
        body = json.dumps(said).encode()
        if head[0].startswith("HEAD"):
            body_sent, extra = b"", f"X-Said: {json.dumps(said)}\r\n"
        else:
            body_sent, extra = body, ""
        answer = f"HTTP/1.1 200 OK\r\nX-Echo: 1\r\n{extra}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        sock.sendall(answer.encode() + body_sent)


def tell(sock):
    """A connection: at which address it has come."""
    with sock:
        sock.settimeout(5)
        sock.recv(65536)
        host, port = sock.getsockname()
        sock.sendall(f"{host}:{port}".encode())


def serve(port, one):
    listener = socket.create_server(("0.0.0.0", port), backlog=512)

    def forever():
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=guarded, args=(one, sock), daemon=True).start()

    threading.Thread(target=forever, daemon=True).start()


def guarded(one, sock):
    try:
        one(sock)
    except OSError:
        pass


def hello(name):
    """A ClientHello."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    out = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return out.read()


def connect(address):
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), 5, source_address=("10.20.0.1", 0))


def ask(case):
    asked = case["asked"]
    with connect(case["listener"]) as sock:
        sock.settimeout(10)
        if "method" not in asked:
            sock.sendall(hello(asked["server_name"]))
            return {"at": read(sock).decode() or None}
        version = "1.0" if asked["http10"] else "1.1"
        head = [f"{asked['method']} {asked['target']} HTTP/{version}"]
        if asked["host"] is not None:
            head.append(f"Host: {asked['host']}")
        head += [f"{name}: {value}" for name, value in asked["headers"]]
        head += ["Connection: close", "", ""]
        sock.sendall("\r\n".join(head).encode())
        response = http.client.HTTPResponse(sock, method=asked["method"])
        try:
            response.begin()
        except (http.client.BadStatusLine, ConnectionError):
            return {"closed": True}
        body = response.read().decode("utf-8", "replace")
        location = response.getheader("location")
        location = location and location.encode("latin-1").decode("utf-8", "replace")
        answer = {"status": response.status, "location": location, "body": body}
        if response.getheader("x-echo"):
            answer["echo"] = json.loads(response.getheader("x-said") or body)
        return answer


def read(sock):
    data = b""
    try:
        while more := sock.recv(65536):
            data += more
    except OSError:
        pass
    return data


def differs(case, real):
    """What differs, or None."""
    outcome = case["answer"]["outcome"]
    if outcome == "closed":
        return None if real.get("closed") or ("at" in real and real["at"] is None) else "is not closed"
    if "answered" in outcome:
        said = outcome["answered"]
        if "echo" in real or real.get("closed"):
            return "is not answered by nginx"
        if said["status"] != real["status"]:
            return f"status {said['status']}"
        location = dict(said["headers"]).get("location")
        if location != real["location"]:
            return f"location {location}"
        if said["body"] is not None and case["asked"]["method"] != "HEAD" and said["body"] != real["body"]:
            return f"body {said['body']!r}"
        return None
    said = outcome["forwarded"]
    endpoints = [endpoint for endpoint, _ in said["endpoints"]]
    if "at" in real:
        return None if real["at"] in endpoints else f"endpoints {endpoints}"
    if "echo" not in real:
        return "is not forwarded"
    real = real["echo"]
    if real["at"] not in endpoints:
        return f"endpoints {endpoints}"
    target = real["line"].split(" ", 1)[1].rsplit(" ", 1)[0]
    target = target.encode("latin-1").decode("utf-8", "replace")
    if said["target"] != target:
        return f"target {said['target']}"
    headers = {}
    for name, value in real["headers"]:
        value = value.encode("latin-1").decode("utf-8", "replace")
        headers[name.lower()] = f"{headers[name.lower()]}, {value}" if name.lower() in headers else value
    expected = dict(said["headers"])
    # Shares of split_clients may have hosts of their own.
    if len(said["pools"]) == 1:
        expected.setdefault("host", case["asked"]["host"])
    for name, value in expected.items():
        if headers.get(name) != value:
            return f"header {name}: {value}"
    return None


def run(folder, conf):
    """nginx with this configuration; (asked, not said, differences)."""
    cases = json.load(open(conf[:-5] + ".json"))
    if all("problem" in case["answer"] for case in cases):
        return 0, len(cases), []
    with tempfile.TemporaryDirectory() as prefix:
        main = f"user root; pid nginx.pid; daemon off; master_process off; load_module {MODULE};"
        command = ["nginx", "-p", prefix + "/", "-c", os.path.abspath(conf), "-e", "error.log", "-g", main]
        nginx = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        try:
            if not ready(nginx, cases):
                nginx.kill()
                said = nginx.stderr.read().decode() + open(prefix + "/error.log").read()
                return 0, 0, [(conf, "nginx does not start", said[-400:])]
            count, unsaid, differences = 0, 0, []
            for case in cases:
                if "problem" in case["answer"]:
                    unsaid += 1
                    continue
                count += 1
                real = ask(case)
                if what := differs(case, real):
                    differences.append((conf, what, {"case": case, "real": real}))
            return count, unsaid, differences
        finally:
            nginx.send_signal(signal.SIGTERM)
            nginx.wait(10)


def ready(nginx, cases):
    for _ in range(200):
        if nginx.poll() is not None:
            return False
        try:
            known = [case["listener"] for case in cases if "problem" not in case["answer"]]
            connect(known[0]).close()
            return True
        except OSError:
            time.sleep(0.02)
    return False


def main():
    if os.environ.get("MESH_MIGRATE_NS") != "1":
        os.environ["MESH_MIGRATE_NS"] = "1"
        os.execvp("unshare", ["unshare", "-rn", sys.executable, os.path.abspath(__file__), *sys.argv[1:]])
    for command in ("link set lo up", "route add local 10.20.0.0/16 dev lo"):
        subprocess.run(["ip", *command.split()], check=True)
    serve(9000, echo)
    serve(9443, tell)
    asked = unsaid = 0
    differences = []
    for conf in sorted(glob.glob(sys.argv[1] + "/*.conf"), key=lambda name: int(os.path.basename(name)[:-5])):
        count, not_said, found = run(sys.argv[1], conf)
        asked, unsaid = asked + count, unsaid + not_said
        differences += found
    for conf, what, rest in differences:
        print(conf, what, json.dumps(rest), sep="\n  ")
    print(f"{asked} requests asked, {len(differences)} differ, {unsaid} that explain does not say")
    sys.exit(1 if differences or not asked else 0)


main()
