"""Backends, and what drives requests through the proxies."""

import http.client
import json
import os
import re
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field, replace

from . import exchanges
from .process import FILES, Process
from .rows import HTTP1_PORT, HTTP2_PORT, IPERF_PORT
from .world import CLIENT, SERVER, inside

BODY = "x" * 256
# A gRPC message: not compressed, 64 bytes. It is echoed.
MESSAGE = b"\0" + (64).to_bytes(4, "big") + b"m" * 64

BACKEND = """
user root;
daemon off;
worker_processes 1;
pid {directory}/backend.pid;
error_log {directory}/backend.error.log;
events {{ worker_connections 20000; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_body_temp_path {directory}/backend.body;
    proxy_temp_path {directory}/backend.proxy;
    fastcgi_temp_path {directory}/backend.fastcgi;
    uwsgi_temp_path {directory}/backend.uwsgi;
    scgi_temp_path {directory}/backend.scgi;
    server {{ listen 0.0.0.0:{port} backlog=8192; location / {{ return 200 "{body}"; }} }}
}}
"""

MESSAGE_FILE = "message"

# What a service's client sends besides Host, for --headers.
TYPICAL_HEADERS = {
    "user-agent": "checkout/2.14.1 (linux; x86_64)",
    "accept": "application/json",
    "accept-encoding": "gzip, deflate",
    "x-request-id": "7d4c1a52-3b0e-4ec2-8d7a-5f0b6c9e2a11",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "authorization": "Bearer " + "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9." + "a" * 160,
    "cache-control": "no-cache",
    "x-forwarded-proto": "https",
}


NEEDS = [("nginx", "apt-get install nginx-light"), ("nghttpd", "apt-get install nghttp2-server"),
         ("h2load", "apt-get install nghttp2-client"), ("wrk", "apt-get install wrk"),
         ("iperf3", "apt-get install iperf3")]


class LoadFailed(Exception):
    """The load generator ended with an error, or nothing was answered."""


@dataclass
class Outcome:
    """What one run of a load generator saw."""

    units: float  # requests, connections, or GiB
    errors: int
    seconds: float
    latencies: dict = field(default_factory=dict)  # "p50", "p99": ms


def start_backends(directory, core):
    """For the whole run; those that nobody calls cost nothing."""
    config = os.path.join(directory, "backend.conf")
    with open(config, "w") as file:
        file.write(BACKEND.format(directory=directory, port=HTTP1_PORT, body=BODY))
    with open(os.path.join(directory, MESSAGE_FILE), "wb") as file:
        file.write(MESSAGE)
    commands = {
        "nginx": ["nginx", "-c", config],
        "nghttpd": ["nghttpd", "--no-tls", "-n", "1", "-m", "256", "--echo-upload",
                    "--trailer", "grpc-status: 0", str(HTTP2_PORT)],
    }
    return [backend(name, command, directory, core) for name, command in commands.items()]


def backend(name, command, directory, core):
    return Process("backend", SERVER, core, command, os.path.join(directory, f"{name}.log"))


def start_iperf3(directory, core):
    """One for each path: it serves one test at a time, and holds on to one that broke."""
    return backend("iperf3", ["iperf3", "-s", "-p", str(IPERF_PORT)], directory, core)


class Wrk:
    """HTTP/1.1 as fast as it goes, on connections that stay or are closed
    after each request."""

    tool = "wrk"
    extra = ()

    def __init__(self, core, headers):
        self.core, self.headers = core, headers

    def probe(self, row, address, host):
        ask(address, host)

    def drive(self, row, address, host, seconds):
        command = ["wrk", "-t", "1", "-c", str(row.connections),
                   "-d", str(max(1, round(seconds))), "--latency", "--timeout", "5s",
                   "-H", f"Host: {host}", *self.extra]
        for name, value in self.headers.items():
            command += ["-H", f"{name}: {value}"]
        return self.outcome(run(self.core, [*command, f"http://{address}/"], seconds))

    def outcome(self, text):
        done = re.search(r"(\d+) requests in ([\d.]+)(m?s|m)", text)
        if not done or int(done[1]) == 0:
            raise LoadFailed(text)
        errors = sum(int(count) for count in re.findall(r"(?:connect|read|write|timeout) (\d+)", text))
        refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
        errors += int(refused[1]) if refused else 0
        latencies = {f"p{percent}": milliseconds(value, unit) for percent, value, unit in
                     re.findall(r"^ +(50|99)% +([\d.]+)(us|ms|s)", text, re.MULTILINE)}
        return Outcome(int(done[1]), errors, milliseconds(done[2], done[3]) / 1000, latencies)


class WrkClose(Wrk):
    extra = ("-H", "Connection: close")


class H2load:
    """Unary gRPC calls, with prior knowledge of HTTP/2, as fast as they go."""

    tool = "h2load"
    answer = len(MESSAGE)

    def __init__(self, core, headers):
        self.core = core
        self.headers = {"content-type": "application/grpc", "te": "trailers", **headers}

    def probe(self, row, address, host):
        self.outcome(run(self.core, self.command(row, address, host, ["-n", "1", "-c", "1"]), 5))

    def command(self, row, address, host, amount):
        command = ["h2load", *amount, "-t", "1",
                   "-m", str(row.streams), "-H", f":authority: {host}"]
        for name, value in self.headers.items():
            command += ["-H", f"{name}: {value}"]
        return [*command, *self.body(), f"http://{address}/shop.Orders/Get"]

    def body(self):
        return ["-d", MESSAGE_FILE]

    def drive(self, row, address, host, seconds):
        amount = ["-c", str(row.connections), "-D", str(max(1, round(seconds)))]
        return self.outcome(run(self.core, self.command(row, address, host, amount), seconds))

    def outcome(self, text):
        """Whole answers count. h2load's own idea of success does not: it knows
        no status without a reason phrase, which HTTP/1.1 allows."""
        finished = re.search(r"finished in ([\d.]+)(us|ms|s|m)", text)
        counts = re.search(r"(\d+) done, \d+ succeeded, \d+ failed, (\d+) errored, (\d+) timeout", text)
        refused = re.search(r"(\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text)
        data = re.search(r"\((\d+)\) data", text)
        if not (finished and counts and refused and data) or int(counts[1]) == 0:
            raise LoadFailed(text[-600:])
        done = int(counts[1])
        missing = max(0, done - int(data[1]) // self.answer)
        errors = int(counts[2]) + int(counts[3]) + max(missing, sum(map(int, refused.groups())))
        if errors >= done:
            raise LoadFailed(text[-600:])
        return Outcome(done, errors, milliseconds(finished[1], finished[2]) / 1000)


class Paced(H2load):
    """HTTP/1.1 at a fixed rate. A request that is late because the answer
    before it was is timed from when it was sent."""

    answer = len(BODY)

    def __init__(self, core, headers):
        super().__init__(core, headers)
        self.headers = headers

    def body(self):
        return ["--h1"]

    def probe(self, row, address, host):
        ask(address, host)

    def drive(self, row, address, host, seconds):
        log = os.path.abspath("paced.log")
        amount = ["-c", str(row.connections), "-D", str(max(1, round(seconds))),
                  "--rps", str(row.rate / row.connections), f"--log-file={log}"]
        outcome = self.outcome(run(self.core, self.command(row, address, host, amount), seconds))
        with open(log) as file:
            times = sorted(int(line.split()[2]) / 1000 for line in file)
        os.unlink(log)
        outcome.latencies = {"p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}
        return outcome


class Overload(H2load):
    """As much as can be answered, then twice that at a fixed rate. Who is
    refused, or not answered while it lasts, is no unit."""

    # Until what was opened in a burst goes its way, and before it ends, in seconds.
    SETTLE, REST = 1.5, 0.5

    def __init__(self, core, headers):
        super().__init__(core, headers)
        self.headers = headers

    def body(self):
        return []

    def probe(self, row, address, host):
        ask(address, host)

    def drive(self, row, address, host, seconds):
        return self.window(row, address, host, seconds, lambda: None)

    def window(self, row, address, host, seconds, look, rate=0):
        """`look` is called at the beginning and the end of what is counted."""
        log = os.path.abspath("overload.log")
        connections, streams = row.excess if rate else (row.connections, row.streams)
        whole = round(self.SETTLE + seconds + self.REST)
        amount = ["-c", str(connections), "-D", str(whole), f"--log-file={log}"]
        if rate:
            amount += ["--rps", str(rate / connections)]
        command = self.command(replace(row, streams=streams), address, host, amount)
        if row.streams == 1:
            command.append("--h1")
        ended = threading.Thread(target=run, args=(self.core, command, whole), daemon=True)
        ended.start()
        time.sleep(self.SETTLE)
        look()
        begin = time.time()
        time.sleep(seconds)
        look()
        end = time.time()
        ended.join()
        try:
            with open(log) as file:
                return good(file, begin, end)
        finally:
            os.unlink(log)


def good(log, begin, end):
    """Of h2load's log: what was answered between two times, and how late."""
    times, refused = [], 0
    for line in log:
        started, status, took = line.split()[:3]
        if not begin <= (int(started) + int(took)) / 1e6 < end:
            continue
        if status == "200":
            times.append(int(took) / 1000)
        else:
            refused += 1
    if not times:
        raise LoadFailed("no good answer")
    times.sort()
    latencies = {f"p{percent}": times[len(times) * percent // 100] for percent in (50, 99)}
    return Outcome(len(times), refused, end - begin, latencies)


class Requests:
    """HTTP/1.1, a number of requests at once, a connection for each."""

    tool = "requests"
    kept = False

    def __init__(self, core, headers):
        pass

    def probe(self, row, address, host):
        self.exchange(address, host, 1, 0)

    def drive(self, row, address, host, seconds):
        return self.exchange(address, host, row.connections, seconds)

    def exchange(self, address, host, at_once, seconds):
        ip, _, port = address.partition(":")
        target = ip, int(port or 80)
        seen = inside(CLIENT, lambda: exchanges.drive(target, host, BODY.encode(), at_once, seconds, self.kept))
        if not seen.times:
            raise LoadFailed(seen.problem or "no answer")
        times = sorted(seen.times)
        latencies = {f"p{percent}": times[len(times) * percent // 100] for percent in (50, 99)}
        return Outcome(len(times), seen.errors, seconds or 1e-9, latencies)


class KeptRequests(Requests):
    kept = True


class Iperf3:
    """One TCP stream as fast as it goes."""

    tool = "iperf3"
    # Until the server has put the test before away, in seconds.
    FREE = 3

    def __init__(self, core, _headers):
        self.core = core

    def probe(self, row, address, host):
        self.transfer(address, ["-n", "1M"], 5)

    def drive(self, row, address, host, seconds):
        return self.transfer(address, ["-t", str(max(1, round(seconds)))], seconds)

    def transfer(self, address, amount, seconds):
        deadline = time.monotonic() + self.FREE
        while True:
            said = self.attempt(address, amount, seconds)
            if "busy" not in said.get("error", "") or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        if "error" in said or "sum_received" not in said.get("end", {}):
            raise LoadFailed(said.get("error", "no sum"))
        received = said["end"]["sum_received"]
        return Outcome(received["bytes"] / 2**30, 0, received["seconds"] or 1e-9)

    def attempt(self, address, amount, seconds):
        command = ["iperf3", "-J", "-c", address, "-p", "80", "--connect-timeout", "5000", *amount]
        text = run(self.core, command, seconds, fails=True)
        try:
            return json.loads(text)
        except ValueError as error:
            raise LoadFailed(f"iperf3 says no JSON: {text[:200]}") from error


LOADS = {"wrk": Wrk, "wrk-close": WrkClose, "h2load": H2load, "paced": Paced, "iperf3": Iperf3, "idle": Wrk,
         "overload": Overload, "requests": Requests, "requests-kept": KeptRequests}


def run(core, command, seconds, fails=False):
    """A load generator to its end, on its core beside the client's proxy. One
    that `fails` tells why on standard output."""
    line = ["nsenter", f"--net=/run/netns/{CLIENT}", "taskset", "-c", str(core), *command]
    try:
        done = subprocess.run(line, text=True, capture_output=True, timeout=seconds + 20)
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"{command[0]} did not end within {error.timeout} s") from error
    if done.returncode != 0 and not fails:
        raise LoadFailed(done.stderr.strip() or done.stdout.strip())
    return done.stdout


def milliseconds(value, unit):
    return float(value) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000}[unit]


def ask(address, host):
    """One request on a connection of its own."""
    def request():
        connection = http.client.HTTPConnection(address, 80, timeout=5)
        try:
            connection.request("GET", "/", headers={"Host": host})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200 or body != BODY.encode():
                raise LoadFailed(f"answer {answer.status}: {body[:200].decode(errors='replace')}")
        finally:
            connection.close()

    try:
        inside(CLIENT, request)
    except (OSError, http.client.HTTPException) as error:
        raise LoadFailed(f"{type(error).__name__}: {error}") from error


def hold(count, address, host):
    """Opens connections, sends one request on each, and keeps them open."""
    request = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()

    def connect():
        held = []
        for _ in range(count):
            connection = socket.create_connection((address, 80), timeout=5)
            connection.sendall(request)
            answer = b""
            while not answer.endswith(BODY.encode()):
                part = connection.recv(FILES)
                if not part:
                    raise LoadFailed(f"closed after {len(held)} connections")
                answer += part
            held.append(connection)
        return held

    try:
        return inside(CLIENT, connect)
    except OSError as error:
        raise LoadFailed(f"{type(error).__name__}: {error}") from error
