"""The namespaces of a theme, applications in them, and whoever is asked to do something."""

import concurrent.futures
import ctypes
import http.server
import os
import socketserver
import subprocess
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
TARGET = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "debug")
HOSTS = ["haproxy-1", "haproxy-2", "nginx-1", "nginx-2", "envoy-1", "envoy-2", "linkerd-1", "linkerd-2"]
CLONE_NEWNET = 0x40000000
# Whoever is asked from outside is asked from there.
BRIDGE = "10.50.0.254"
# For what is to become true.
PATIENCE = 40
os.environ["PATH"] = TARGET + ":" + os.environ["PATH"] + ":/usr/sbin:/sbin"


def address(name):
    return f"10.50.0.{HOSTS.index(name) + 1}"


def surroundings():
    """In namespaces of its own: a bridge that the hosts are at."""
    for command in (
        "mount -t tmpfs none /run",
        "ip link set lo up",
        "ip link add bridge type bridge",
        f"ip addr add {BRIDGE}/24 dev bridge",
        "ip link set bridge up",
    ):
        subprocess.check_call(command.split())


def enter(namespace):
    """The sockets of this thread are there from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


# What was ordered, by POST.
ORDERS = []


class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # In one packet.
    wbufsize = -1

    def do_GET(self):
        # Of whoever answers: not the same each time, unless everybody says the same.
        alike = self.path.startswith("/alike")
        body = b"hello" if alike else ("%s:%d" % self.connection.getsockname()).encode()
        self.send_response(200)
        if not alike:
            self.send_header("x-app", body.decode())
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        ORDERS.append(self.rfile.read(int(self.headers["content-length"])).decode())
        self.send_response(201)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = allow_reuse_address = True
    request_queue_size = 256

    def handle_error(self, *_):
        pass


def serve(namespace, address):
    """An application: its socket is in the namespace, its threads are ours."""
    made = threading.Event()

    def run():
        enter(namespace)
        server = Server((address, 8080), App)
        made.set()
        server.serve_forever()

    threading.Thread(target=run, daemon=True).start()
    assert made.wait(10)


def reap():
    """Ends the corpses of those whose parents have ended: this is the first process here."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, parent = open(f"/proc/{pid}/stat").read().rsplit(") ", 1)[1].split()[:2]
            if state == "Z" and parent == "1":
                os.waitpid(int(pid), os.WNOHANG)
        except (OSError, ValueError):
            pass


def meshctl(*arguments, fails=False, within=()):
    """What it says; `fails` is None where it may."""
    got = subprocess.run([*within, "meshctl", *arguments], capture_output=True, text=True)
    if fails is not None and (got.returncode != 0) != fails:
        raise SystemExit(f"meshctl {' '.join(arguments)}: exit {got.returncode}\n{got.stdout}{got.stderr}")
    return got.stdout + got.stderr


def together(doing, hosts):
    """At all hosts at once; the first that fails ends it."""
    with concurrent.futures.ThreadPoolExecutor(len(hosts)) as threads:
        list(threads.map(doing, hosts))


def until(what, holds, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while True:
        reap()
        got = holds()
        if got:
            return got
        if time.monotonic() > end:
            raise SystemExit(f"not within {seconds} s: {what}: {got!r}")
        time.sleep(0.05)
