"""Whoever asks: once, or all the time."""

import socket
import struct
import subprocess
import threading
import time

from .world import BRIDGE, enter

# For an answer, of a JVM that was just started on a busy machine.
TIMEOUT = 15


def ask(way, keep=None, why=None):
    """The body of an answer, over a connection that is kept or a new one; without one
    `why` is told."""
    why = [] if why is None else why
    try:
        client = keep or socket.create_connection((way.address, way.port), timeout=TIMEOUT)
        client.sendall(f"GET / HTTP/1.1\r\nhost: {way.authority}\r\n\r\n".encode())
        data = b""
        while b"\r\n\r\n" not in data:
            more = client.recv(4096)
            if not more:
                why.append("the connection ended")
                return None
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        wanted = int(length[0].split(b":")[1]) if length else 0
        while len(body) < wanted:
            more = client.recv(4096)
            if not more:
                why.append("the body ended")
                return None
            body += more
        if not keep:
            client.close()
        if head.split(b" ")[1] == b"200":
            return body.decode()
        why.append(head.decode(errors="replace"))
    except OSError as error:
        why.append(str(error))
    return None


def ask_from(host, port):
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("", port))
        client.settimeout(TIMEOUT)
        client.connect((host.address, host.port))
        assert ask(host, client), f"{host.name}: no answer to port {port}"


def post(host, what):
    with socket.create_connection((host.address, host.port), timeout=TIMEOUT) as client:
        body = what.encode()
        head = f"POST /orders HTTP/1.1\r\nhost: {host.authority}\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        assert client.recv(4096).startswith(b"HTTP/1.1 201"), what


def leave_behind(host, port):
    """The last packet of a connection that the kernel has not seen before, and that it
    does not see end: an entry that leads to the legacy proxy for five minutes."""
    rules = "table ip quiet { chain out { type filter hook output priority -300; tcp flags rst drop; }; }"
    inside = ["ip", "netns", "exec", host.name]
    subprocess.run([*inside, "nft", "-f", "-"], input=rules, text=True, check=True)
    client, at = socket.inet_aton(BRIDGE), socket.inet_aton(host.address)
    segment = struct.pack("!HHIIBBHHH", port, host.port, 1, 1, 5 << 4, 0x10, 1024, 0, 0)
    summed = client + at + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(segment)) + segment
    checksum = sum(struct.unpack(f"!{len(summed) // 2}H", summed))
    checksum = ~((checksum & 0xFFFF) + (checksum >> 16)) & 0xFFFF
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.sendto(segment[:16] + struct.pack("!H", checksum) + segment[18:], (host.address, 0))
    time.sleep(0.1)
    subprocess.check_call([*inside, "nft", "delete", "table", "ip", "quiet"])


class Load:
    """Clients of all ways that never rest: new connections, and kept ones."""

    def __init__(self, ways):
        self.ways, self.ended = {way.name: way for way in ways}, False
        self.fresh()
        for way in ways:
            for client in (self.new, self.kept):
                threading.Thread(target=self.begin, args=(client, way), daemon=True).start()

    def begin(self, client, way):
        if way.namespace:
            enter(way.namespace)
        client(way)

    def new(self, way):
        while not self.ended:
            why = []
            answer = ask(way, None, why)
            self.note(way, f"a new connection: {why}", answer)
            time.sleep(0.015)

    def kept(self, way):
        """A connection that ends between two requests is no failure: RFC 9112 section 9.3.1."""
        client = None
        while not self.ended:
            if client:
                why = []
                answer = ask(way, client, why)
                if answer is not None or why[0].startswith("HTTP/"):
                    self.note(way, f"a kept connection: {why}", answer)
                    time.sleep(0.03)
                    continue
                client.close()
            try:
                client = socket.create_connection((way.address, way.port), timeout=TIMEOUT)
            except OSError as error:
                self.note(way, f"a kept connection: {error}", None)
                client = None
                continue
            why = []
            answer = ask(way, client, why)
            self.note(way, f"a kept connection: {why}", answer)

    def note(self, way, what, answer):
        self.asked[way.name] += 1
        if answer not in way.answers:
            what = f"{what} {answer}" if answer else what
            self.failed[way.name].append((round(time.monotonic(), 2), what))

    def fresh(self):
        """Figures begin anew."""
        self.asked = {name: 0 for name in self.ways}
        self.failed = {name: [] for name in self.ways}

    def settled(self, when, but=()):
        for name, failed in self.failed.items():
            if failed and name not in but:
                processes = subprocess.run(["ps", "-eo", "pid,ppid,lstart,stat,args"], capture_output=True, text=True).stdout
                logs = self.ways[name].logs() + "\n--- processes\n" + processes
                raise SystemExit(f"{when}: {name}: {len(failed)} of {self.asked[name]} failed: {failed[:5]}{logs}")
            assert self.asked[name] > 0, f"{when}: nobody asked {name}"
        print(f"    {when}: {sum(self.asked.values())} requests, 0 failed", flush=True)
