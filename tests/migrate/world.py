"""Applications that tell what they were sent, and whoever asks them through a proxy.

Everything is in network and mount namespaces of the process's own: 10.20.0.0/16 is on
its loopback device, and tests/legacy/hosts knows its names.
"""

import http.client
import http.server
import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LEGACY = os.path.join(ROOT, "tests", "legacy")
# The one that is always overloaded.
FLAKY = "10.20.8.99:8080"


def alone():
    """Runs this program again, in namespaces of its own."""
    if os.environ.get("ISTHMUS_NAMESPACE") == "own":
        os.environ["PATH"] += ":/usr/sbin:/sbin"
        for command in (
            "ip link set lo up",
            "ip addr add 10.20.0.0/16 dev lo",
            "mount --bind %s /etc/hosts" % os.path.join(LEGACY, "hosts"),
            "mount -t tmpfs none /run",
        ):
            subprocess.check_call(command.split())
        return
    os.environ["ISTHMUS_NAMESPACE"] = "own"
    own = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    own += [] if os.getuid() == 0 else ["--map-root-user"]
    sys.exit(subprocess.call([*own, sys.executable, *sys.argv]))


class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {}
        for name, value in self.headers.items():
            headers.setdefault(name.lower(), []).append(value)
        address = "%s:%d" % self.connection.getsockname()
        headers = {name: ", ".join(values) for name, values in headers.items()}
        seen = json.dumps({"address": address, "target": self.path, "headers": headers})
        self.send_response(503 if address == FLAKY else 200)
        self.send_header("x-seen", seen)
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do_PATCH = do_OPTIONS = answer

    def log_message(self, *_):
        pass


class Banner(socketserver.BaseRequestHandler):
    """Says where it is to whoever connects."""

    def handle(self):
        self.request.sendall(b"%s:%d\n" % (self.request.getsockname()[0].encode(), self.request.getsockname()[1]))
        try:
            self.request.recv(64)
        except OSError:
            pass


class Echo2(socketserver.BaseRequestHandler):
    """The same over HTTP/2 without TLS."""

    def handle(self):
        import h2.config
        import h2.connection
        import h2.events

        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        self.request.sendall(connection.data_to_send())
        asked = {}
        while data := self.request.recv(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    asked[event.stream_id] = dict(event.headers)
                if isinstance(event, h2.events.StreamEnded):
                    fields = asked.pop(event.stream_id)
                    headers = {k: v for k, v in fields.items() if not k.startswith(":")}
                    headers["host"] = fields.get(":authority", headers.get("host", ""))
                    address = "%s:%d" % self.request.getsockname()
                    seen = {"address": address, "target": fields[":path"], "headers": headers}
                    answer = [(":status", "200"), ("x-seen", json.dumps(seen))]
                    connection.send_headers(event.stream_id, answer, end_stream=True)
            self.request.sendall(connection.data_to_send())


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = allow_reuse_address = True
    request_queue_size = 64

    def handle_error(self, *_):
        pass


def serve(address, handler):
    host, port = address.rsplit(":", 1)
    server = Server((host, int(port)), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def until_open(address, process, seconds=20):
    """Whether somebody listens there before the process ends."""
    host, port = address.rsplit(":", 1)
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return True
        except OSError:
            time.sleep(0.02)
    return False


def ask(listener, method, host, target, headers, source="10.20.0.1", version="1.1"):
    """Status, headers and text of the answer, or None where the connection ends."""
    at, port = listener.rsplit(":", 1)
    source = "127.0.0.1" if at.startswith("127.") else source
    client = http.client.HTTPConnection(at, int(port), timeout=10, source_address=(source, 0))
    if version == "1.0":
        client._http_vsn, client._http_vsn_str = 10, "HTTP/1.0"
    try:
        client.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        if host:
            client.putheader("Host", host)
        for name, value in headers.items():
            client.putheader(name, value)
        if method in ("POST", "PUT", "PATCH"):
            client.putheader("Content-Length", "0")
        client.endheaders()
        answer = client.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, found, answer.read().decode(errors="replace")
    except (http.client.HTTPException, ConnectionError):
        return None
    finally:
        client.close()


def ask2(listener, method, host, target, headers):
    """The same over HTTP/2 without TLS, by curl."""
    command = ["curl", "-s", "-m", "10", "-i", "--http2-prior-knowledge", "-X", method, "-H", "Host: " + host]
    command += [word for header in headers.items() for word in ("-H", "%s: %s" % header)]
    got = subprocess.run([*command, "http://%s%s" % (listener, target)], capture_output=True, text=True)
    if got.returncode:
        return None
    head, _, body = got.stdout.partition("\n\n")
    first, *fields = head.split("\n")
    headers = dict(field.split(": ", 1) for field in fields if ": " in field)
    return int(first.split()[1]), headers, body


def banner(listener):
    """What a connection is told first, or None."""
    host, port = listener.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=10, source_address=("10.20.0.1", 0)) as client:
            return client.makefile().readline().strip() or None
    except OSError:
        return None
