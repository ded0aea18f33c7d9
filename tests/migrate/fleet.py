#!/usr/bin/env python3
"""Six hosts with a legacy proxy and an application each, in network namespaces: moved
to ours and back under constant load, one with a configuration that is wrong on purpose;
and whoever takes part is killed at every step.

  fleet.py [THEME…]    shadow, moves, wrong, killed; all of them unless named
"""

import ctypes
import http.server
import json
import os
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TARGET = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "debug")
CACHE = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
# As tests/interop/setup installs it.
ENVOY = os.environ.get("ENVOY", CACHE + "/isthmus-bench/envoy-1.40.0/envoy/_bin/envoy")
HOSTS = ["haproxy-1", "haproxy-2", "nginx-1", "nginx-2", "envoy-1", "envoy-2"]
CLONE_NEWNET = 0x40000000
# For what is to become true.
PATIENCE = 40

HAPROXY = """
global
    {admin}
    hard-stop-after 30s
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
frontend fe_web
    bind {address}:80
    default_backend apps
backend apps
    balance roundrobin
    server own {address}:8080
    server other {other}:8080
"""
NGINX = """
daemon on;
pid {work}/nginx.pid;
error_log {work}/error.log;
events {{ worker_connections 512; }}
{body}
"""
NGINX_HTTP = """
http {{
    access_log off;
    upstream apps {{ server {address}:8080; server {other}:8080; }}
    server {{ listen 80; location / {{ proxy_pass http://apps; }} }}
}}
"""
NGINX_STREAM = """
stream {{
    upstream apps {{ server {address}:8080; server {other}:8080; }}
    server {{ listen {address}:80; proxy_pass apps; }}
}}
"""
ENVOY_YAML = """
admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: 9901 }} }} }}
static_resources:
  listeners:
    - name: web
      address: {{ socket_address: {{ address: {address}, port_value: 80 }} }}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: web
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
                route_config:
                  virtual_hosts:
                    - {{ name: all, domains: ["*"], routes: [{{ match: {{ prefix: / }}, route: {{ cluster: apps }} }}] }}
  clusters:
    - name: apps
      type: STATIC
      connect_timeout: 2s
      load_assignment:
        cluster_name: apps
        endpoints:
          - lb_endpoints:
              - endpoint: {{ address: {{ socket_address: {{ address: {address}, port_value: 8080 }} }} }}
              - endpoint: {{ address: {{ socket_address: {{ address: {other}, port_value: 8080 }} }} }}
"""


def surroundings():
    """In namespaces of its own: a bridge that the hosts are at."""
    os.environ["PATH"] = TARGET + ":" + os.environ["PATH"] + ":/usr/sbin:/sbin"
    for command in (
        "mount -t tmpfs none /run",
        "ip link set lo up",
        "ip link add bridge type bridge",
        "ip addr add 10.50.0.254/24 dev bridge",
        "ip link set bridge up",
    ):
        subprocess.check_call(command.split())


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


def reap():
    """Ends the corpses of those whose parents have ended: this is the first process here."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, parent = open(f"/proc/{pid}/stat").read().rsplit(") ", 1)[1].split()[:2]
            if state == "Z" and parent == "1":
                os.waitpid(int(pid), os.WNOHANG)
        except (OSError, ValueError):
            pass


class Host:
    def __init__(self, work, number, name):
        self.name, self.number = name, number
        self.address = "10.50.0.%d" % number
        self.other = "10.50.0.%d" % (number % len(HOSTS) + 1)
        self.work = os.path.join(work, name)
        os.makedirs(self.work + "/run")
        for command in (
            f"ip netns add {name}",
            f"ip link add {name} type veth peer name eth0 netns {name}",
            f"ip link set {name} master bridge up",
            f"ip -n {name} addr add {self.address}/24 dev eth0",
            f"ip -n {name} link set eth0 up",
            f"ip -n {name} link set lo up",
        ):
            subprocess.check_call(command.split())
        self.app()
        self.agent = None
        kind = name.split("-")[0]
        self.config = os.path.join(self.work, "envoy.yaml" if kind == "envoy" else kind + ".conf")
        fill = {"work": self.work, "address": self.address, "other": self.other}
        if kind == "haproxy":
            # The second one has no socket to be told by.
            admin = f"stats socket {self.work}/admin.sock level admin" if number == 1 else "maxconn 1000"
            text = HAPROXY.format(admin=admin, **fill)
            self.command = ["haproxy", "-db", "-f", self.config]
        elif kind == "nginx":
            body = (NGINX_HTTP if number == 3 else NGINX_STREAM).format(**fill)
            text = NGINX.format(body=body, **fill)
            if number == 4:
                text = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n" + text
            self.command = ["nginx", "-c", self.config]
        else:
            text = ENVOY_YAML.format(**fill)
            self.command = [ENVOY, "-c", self.config, "--use-dynamic-base-id", "--concurrency", "1", "-l", "error"]
        self.kind = kind
        with open(self.config, "w") as file:
            file.write(text)

    def inside(self, command, **more):
        return subprocess.Popen(["ip", "netns", "exec", self.name, *command], **more)

    def app(self):
        """Its socket is in the host's namespace, its thread in ours."""
        libc = ctypes.CDLL(None, use_errno=True)
        made = threading.Event()

        def serve():
            with open(f"/run/netns/{self.name}") as namespace:
                if libc.setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            server = Server((self.address, 8080), App)
            made.set()
            server.serve_forever()

        threading.Thread(target=serve, daemon=True).start()
        assert made.wait(10)

    def start_legacy(self):
        log = open(self.work + "/legacy.log", "a")
        self.inside(self.command, stdout=log, stderr=log)
        until(f"{self.name}: the legacy proxy answers", lambda: ask(self.address))

    def legacy_pids(self):
        """Of those that serve here, not of our agents' helpers."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = open(f"/proc/{pid}/cmdline").read().replace("\0", " ")
            except OSError:
                continue
            if self.config in words and "ip netns exec" not in words and "edge-proxy" not in words:
                found.append(int(pid))
            elif self.kind == "nginx" and words.startswith("nginx: worker"):
                parent = open(f"/proc/{pid}/stat").read().rsplit(") ")[1].split()[1]
                if parent in map(str, found):
                    found.append(int(pid))
        return found

    def kill_legacy(self):
        for pid in self.legacy_pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        reap()

    def start_agent(self):
        log = open(self.work + "/agent.log", "a")
        command = ["vm-agent", "migrate", "--run", self.work + "/run", "--state", self.work + "/state"]
        self.agent = self.inside(command, stdout=log, stderr=log)
        until(f"{self.name}: its agent answers", lambda: os.path.exists(self.work + "/run/migrate.sock"))

    def kill_agent(self):
        # `ip netns exec` becomes the program.
        self.agent.kill()
        self.agent.wait()
        os.unlink(self.work + "/run/migrate.sock")

    def plan(self, plans):
        kind = self.name.split("-")[0]
        meshctl("migrate", "plan", "--from", kind, self.config, "-o", f"{plans}/{self.name}")
        path = f"{plans}/{self.name}/host.yaml"
        with open(path, "a") as file:
            file.write(f"via: [ip, netns, exec, {self.name}]\nrun: {self.work}/run\n")

    def log(self, name):
        try:
            return open(f"{self.work}/{name}.log").read()
        except OSError:
            return ""


def meshctl(*arguments, fails=False):
    got = subprocess.run(["meshctl", *arguments], capture_output=True, text=True)
    if (got.returncode != 0) != fails:
        raise SystemExit(f"meshctl {' '.join(arguments)}: exit {got.returncode}\n{got.stdout}{got.stderr}")
    return got.stdout + got.stderr


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


def ask(address, keep=None, why=None):
    """The body of an answer, over a connection that is kept or a new one; without one
    `why` is told."""
    why = [] if why is None else why
    try:
        client = keep or socket.create_connection((address, 80), timeout=5)
        client.sendall(b"GET / HTTP/1.1\r\nhost: web.example\r\n\r\n")
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


class Load:
    """Clients of all hosts that never rest: new connections, and kept ones."""

    def __init__(self, hosts):
        self.hosts, self.ended = hosts, False
        self.asked = {host.name: 0 for host in hosts}
        self.failed = {host.name: [] for host in hosts}
        for host in hosts:
            for client in (self.new, self.kept):
                threading.Thread(target=client, args=(host,), daemon=True).start()

    def new(self, host):
        while not self.ended:
            why = []
            answer = ask(host.address, None, why)
            self.note(host, f"a new connection: {why}", answer)
            time.sleep(0.01)

    def kept(self, host):
        """A connection that ends between two requests is no failure: RFC 9112 section 9.3.1."""
        client = None
        while not self.ended:
            answer = client and ask(host.address, client)
            if not answer:
                if client:
                    client.close()
                try:
                    client = socket.create_connection((host.address, 80), timeout=5)
                except OSError as error:
                    self.note(host, f"a kept connection: {error}", None)
                    client = None
                    continue
                why = []
                answer = ask(host.address, client, why)
                self.note(host, f"a kept connection: {why}", answer)
            else:
                self.note(host, "", answer)
            time.sleep(0.02)

    def note(self, host, what, answer):
        self.asked[host.name] += 1
        if not answer:
            self.failed[host.name].append((round(time.monotonic(), 2), what))

    def fresh(self):
        """Figures begin anew."""
        for name in self.failed:
            self.failed[name], self.asked[name] = [], 0

    def settled(self, when, but=()):
        for name, failed in self.failed.items():
            if failed and name not in but:
                host = next(host for host in self.hosts if host.name == name)
                logs = "".join(f"\n--- {log}\n{host.log(log)[-3000:]}" for log in ("agent", "legacy"))
                proxy = f"{host.work}/state/{name}/proxy.log"
                logs += "\n--- proxy\n" + (open(proxy).read()[-3000:] if os.path.exists(proxy) else "")
                logs += "\n--- processes\n" + subprocess.run(["ps", "-eo", "pid,ppid,lstart,stat,args"], capture_output=True, text=True).stdout
                raise SystemExit(f"{when}: {name}: {len(failed)} of {self.asked[name]} failed: {failed[:5]}{logs}")
            assert self.asked[name] > 0, f"{when}: nobody asked {name}"
        print(f"    {when}: {sum(self.asked.values())} requests, 0 failed", flush=True)


def statuses(plans):
    shown = json.loads(meshctl("migrate", "status", "--plans", plans, "-o", "json"))
    return {host["host"]: host for host in shown["hosts"]}


def are(plans, phase, serves, names=HOSTS):
    now = statuses(plans)
    wrong = {name: (now[name]["phase"], now[name]["serves"], now[name]["problem"]) for name in names
             if (now[name]["phase"], now[name]["serves"]) != (phase, serves)}
    return not wrong, wrong


def must_be(plans, phase, serves, names=HOSTS):
    good, wrong = are(plans, phase, serves, names)
    assert good, f"not {phase} and served by {serves}: {wrong}"


def fleet(work):
    hosts = [Host(work, number, name) for number, name in enumerate(HOSTS, 1)]
    for host in hosts:
        host.start_legacy()
        host.start_agent()
    return hosts


def leave_behind(host, port):
    """The last packet of a connection that the kernel has not seen before, and that it
    does not see end: an entry that leads to the legacy proxy for five minutes."""
    rules = "table ip quiet { chain out { type filter hook output priority -300; tcp flags rst drop; }; }"
    inside = ["ip", "netns", "exec", host.name]
    subprocess.run([*inside, "nft", "-f", "-"], input=rules, text=True, check=True)
    client, at = socket.inet_aton("10.50.0.254"), socket.inet_aton(host.address)
    segment = struct.pack("!HHIIBBHHH", port, 80, 1, 1, 5 << 4, 0x10, 1024, 0, 0)
    summed = client + at + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(segment)) + segment
    checksum = sum(struct.unpack(f"!{len(summed) // 2}H", summed))
    checksum = ~((checksum & 0xFFFF) + (checksum >> 16)) & 0xFFFF
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.sendto(segment[:16] + struct.pack("!H", checksum) + segment[18:], (host.address, 0))
    time.sleep(0.1)
    subprocess.check_call([*inside, "nft", "delete", "table", "ip", "quiet"])


def ask_from(host, port):
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("", port))
        client.settimeout(5)
        client.connect((host.address, 80))
        assert ask(host.address, client), f"{host.name}: no answer to port {port}"


def moves(work):
    """All of them over, back, and over again; then the legacy proxies are stopped."""
    plans = work + "/plans"
    hosts = fleet(work)
    for host in hosts:
        host.plan(plans)
        meshctl("migrate", "beside", host.name, "--plans", plans)
        leave_behind(host, 20_001)
    load = Load(hosts)
    meshctl("migrate", "next", "--plans", plans, "--watch", "2s", "--concurrency", "2", "--without-shadow")
    must_be(plans, "moved", "isthmus")
    load.settled("all cut over")
    load.fresh()
    for host in hosts:
        meshctl("migrate", "rollback", host.name, "--plans", plans)
    must_be(plans, "back", "legacy")
    time.sleep(1)
    load.settled("all rolled back")
    load.fresh()
    meshctl("migrate", "pause", "--plans", plans, "--because", "lunch")
    meshctl("migrate", "next", "--plans", plans, "--watch", "1s", "--without-shadow")
    must_be(plans, "back", "legacy")
    meshctl("migrate", "next", "--resume", "--plans", plans, "--watch", "1s", "--concurrency", "6", "--without-shadow")
    must_be(plans, "moved", "isthmus")
    for host in hosts:
        meshctl("migrate", "finish", host.name, "--plans", plans)
    must_be(plans, "finished", "isthmus")
    for host in hosts:
        until(f"{host.name}: the legacy proxy has ended", lambda: not host.legacy_pids())
    for host in hosts:
        ask_from(host, 20_001)
    load.settled("over again, and the legacy proxies stopped")
    load.fresh()
    # From the disk alone.
    for host in hosts:
        meshctl("migrate", "rollback", host.name, "--plans", plans)
    must_be(plans, "back", "legacy")
    time.sleep(1)
    load.settled("rolled back after they were stopped")
    for host in hosts:
        meshctl("migrate", "abandon", host.name, "--plans", plans)
    load.ended = True
    for host in hosts:
        assert ask(host.address), host.name
        table = subprocess.run(["ip", "netns", "exec", host.name, "nft", "list", "tables"], capture_output=True, text=True)
        assert "isthmus_migrate" not in table.stdout, f"{host.name}: {table.stdout}"
        assert not os.path.exists(f"{host.work}/state/{host.name}"), host.name


def wrong(work):
    """The third of them sends everything where nobody is."""
    plans = work + "/plans"
    hosts = fleet(work)
    for host in hosts:
        host.plan(plans)
    bad = hosts[2]
    site = f"{plans}/{bad.name}/site.yaml"
    text = open(site).read()
    assert ":8080" in text, text
    with open(site, "w") as file:
        file.write(text.replace(":8080", ":8081"))
    load = Load(hosts)
    said = meshctl("migrate", "next", "--plans", plans, "--watch", "8s", "--without-shadow", fails=True)
    assert bad.name in said and "rolled back" in said and "were not begun with" in said, said
    now = statuses(plans)
    assert now[bad.name]["phase"] == "back" and now[bad.name]["serves"] == "legacy", now[bad.name]
    assert "failed" in now[bad.name]["problem"], now[bad.name]
    order = sorted(HOSTS)
    after = order[order.index(bad.name) + 1:]
    assert all(now[name]["phase"] == "planned" for name in after), now
    until("it answers again", lambda: ask(bad.address))
    load.settled("one was wrong", but=[bad.name])
    print(f"    {bad.name}: {len(load.failed[bad.name])} of {load.asked[bad.name]} failed before it went back")
    load.fresh()
    time.sleep(1)
    load.settled("after it went back")
    # It stops all until somebody has mended it.
    said = meshctl("migrate", "next", "--plans", plans, "--watch", "1s", "--without-shadow", fails=True)
    assert "--again" in said, said
    os.unlink(f"{plans}/{bad.name}/host.yaml")
    bad.plan(plans)
    meshctl("migrate", "next", "--again", "--plans", plans, "--watch", "1s", "--concurrency", "6", "--without-shadow")
    must_be(plans, "moved", "isthmus")
    load.settled("all moved after it was mended")
    load.ended = True


def killed(work):
    """Agent, meshctl and legacy proxy, at each step."""
    plans = work + "/plans"
    hosts = fleet(work)
    for host in hosts:
        host.plan(plans)
    names = [host.name for host in hosts]
    at = ["--plans", plans]

    def agents():
        for host in hosts:
            host.kill_agent()
        for host in hosts:
            assert ask(host.address), f"{host.name}: nobody serves without its agent"
            host.start_agent()

    def served(when):
        for host in hosts:
            until(f"{when}: {host.name} is served", lambda: ask(host.address), 15)
        print(f"    {when}: all served", flush=True)

    load = Load(hosts)
    for name in names:
        meshctl("migrate", "beside", name, *at)
    agents()
    must_be(plans, "beside", "legacy")
    load.settled("agents killed beside")
    load.fresh()
    # Killed in the middle of what they do.
    for host in hosts:
        asking = subprocess.Popen(["meshctl", "migrate", "cutover", host.name, *at, "--watch", "60s", "--without-shadow"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.02 * host.number)
        asking.kill()
        asking.wait()
        host.kill_agent()
        host.start_agent()
    now = statuses(plans)
    for name in names:
        state = (now[name]["phase"], now[name]["serves"])
        assert state in (("beside", "legacy"), ("watch", "isthmus")), f"{name}: {state}"
    load.settled("meshctl and agents killed while cutting over")
    load.fresh()
    for name in names:
        meshctl("migrate", "cutover", name, *at, "--watch", "60s", "--no-wait", "--without-shadow")
    must_be(plans, "watch", "isthmus")
    agents()
    must_be(plans, "watch", "isthmus")
    load.settled("agents killed while ours is watched")
    load.fresh()
    for host in hosts:
        host.kill_legacy()
    for host in hosts:
        until(f"{host.name}: the legacy proxy is there again", lambda: statuses(plans)[host.name]["legacyRuns"])
    must_be(plans, "watch", "isthmus")
    # Who was on a connection of before loses that one.
    load.fresh()
    time.sleep(1)
    load.settled("legacy proxies killed while ours is watched")
    load.fresh()
    for host in hosts:
        asking = subprocess.Popen(["meshctl", "migrate", "rollback", host.name, *at],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.02 * host.number)
        asking.kill()
        asking.wait()
        host.kill_agent()
        host.start_agent()
    for name in names:
        meshctl("migrate", "rollback", name, *at)
    must_be(plans, "back", "legacy")
    load.settled("meshctl and agents killed while rolling back")
    load.fresh()
    for name in names:
        meshctl("migrate", "cutover", name, *at, "--watch", "1s", "--without-shadow")
    must_be(plans, "moved", "isthmus")
    agents()
    for host in hosts:
        host.kill_legacy()
    time.sleep(1)
    must_be(plans, "moved", "isthmus")
    load.fresh()
    time.sleep(1)
    load.settled("legacy proxies killed after they have let go")
    load.fresh()
    for name in names:
        meshctl("migrate", "rollback", name, *at)
    must_be(plans, "back", "legacy")
    load.settled("rolled back to legacy proxies that were dead")
    load.ended = True
    # Nobody is on the way over: the legacy proxy alone serves, and is started again.
    for host in hosts:
        host.kill_legacy()
    served("legacy proxies killed while they serve")
    must_be(plans, "back", "legacy")


def post(address, what):
    with socket.create_connection((address, 80), timeout=5) as client:
        body = what.encode()
        client.sendall(b"POST /orders HTTP/1.1\r\nhost: web.example\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        assert client.recv(4096).startswith(b"HTTP/1.1 201"), what


def shadow(work):
    """Answers are compared before anybody is led away, from live requests and from a log."""
    plans = work + "/plans"
    hosts = fleet(work)
    for host in hosts:
        host.plan(plans)
    at = ["--plans", plans]
    good, bad = hosts[0], hosts[2]
    said = meshctl("migrate", "beside", good.name, *at)
    said = meshctl("migrate", "cutover", good.name, *at, "--watch", "1s", fails=True)
    assert "nothing was compared" in said, said
    load = Load(hosts)
    for number, host in enumerate(hosts):
        if host is bad:
            continue
        for order in range(5):
            post(host.address, f"{number}/{order}")
        posting = threading.Thread(target=lambda: [time.sleep(1.5), post(host.address, f"{number}/live")])
        posting.start()
        said = meshctl("migrate", "shadow", host.name, *at, "--share", "100%", "--for", "3s", "-o", "json")
        posting.join()
        found = json.loads(said)["hosts"][0]["shadow"]
        assert found["verdict"] == "alike" and found["compared"] >= 20, found
        assert len(found["legacyUs"]) == 3 and found["proxyUs"][0] > 0, found
        print(f"    {host.name}: {found['compared']} compared, legacy {found['legacyUs']} us, ours {found['proxyUs']} us")
    assert sorted(ORDERS) == sorted(set(ORDERS)), "an order was made twice"
    # Another path is answered otherwise, another header is set.
    rules = f"{plans}/{bad.name}/rules.yaml"
    text = open(rules).read()
    site = f"{plans}/{bad.name}/site.yaml"
    sites = open(site).read()
    with open(site, "w") as file:
        file.write(sites.replace(":8080", ":8081"))
    said = meshctl("migrate", "shadow", bad.name, *at, "--share", "100%", "--for", "3s", fails=True)
    assert "status 200 became 50" in said and "answers differ" in said and "GET / web.example" in said, said
    said = meshctl("migrate", "cutover", bad.name, *at, "--watch", "1s", fails=True)
    assert "answers differ" in said, said
    # Another application, which answers the same.
    log = work + "/alike.log"
    with open(log, "w") as file:
        for number in range(20):
            file.write(f'10.50.0.254 - - [30/Nov/2026:10:00:00 +0000] "GET /alike/{number} HTTP/1.1" 200 5 "-" "curl/8"\n')
    elsewhere = sites.replace(bad.address + ":8080", "10.50.0.6:8080").replace(bad.other + ":8080", "10.50.0.6:8080")
    assert elsewhere != sites, sites
    with open(site, "w") as file:
        file.write(elsewhere)
    said = meshctl("migrate", "shadow", bad.name, *at, "--share", "0%", "--access-log", log, "--for", "3s", "--at-least", "20", fails=True)
    assert "backend 10.50.0." in said and "became apps.legacy" in said, said
    with open(site, "w") as file:
        file.write(sites)
    # Of a log, which an agent that is killed meanwhile does not forget.
    log = work + "/access.log"
    with open(log, "w") as file:
        for number in range(40):
            file.write(f'10.50.0.254 - - [30/Nov/2026:10:00:00 +0000] "GET /{number} HTTP/1.1" 200 14 "-" "curl/8"\n')
        file.write('10.50.0.254 - - [30/Nov/2026:10:00:00 +0000] "POST /orders HTTP/1.1" 201 0 "-" "curl/8"\nnonsense\n')
    orders = len(ORDERS)
    said = meshctl("migrate", "shadow", bad.name, *at, "--share", "0%", "--access-log", log, "--for", "4s", "--at-least", "40", "-o", "json")
    found = json.loads(said)["hosts"][0]["shadow"]
    assert (found["verdict"], found["compared"], found["skipped"]) == ("alike", 40, 2), found
    assert len(ORDERS) == orders, "a request of the log that is not safe was made again"
    bad.kill_agent()
    bad.start_agent()
    # Not while ours has no room for what the legacy proxy has.
    ours = open(f"{work}/{bad.name}/state/{bad.name}/proxy.pid").read().strip()
    limit = subprocess.check_output(["prlimit", "--pid", ours, "--nofile", "--noheadings", "--output=SOFT"], text=True).strip()
    quiet = [socket.create_connection((bad.address, 80)) for _ in range(20)]
    subprocess.check_call(["prlimit", "--pid", ours, f"--nofile={len(os.listdir(f'/proc/{ours}/fd')) + 20}:"])
    said = meshctl("migrate", "cutover", bad.name, *at, "--watch", "1s", fails=True)
    assert "no room for the" in said and "more files" in said, said
    for connection in quiet:
        connection.close()
    subprocess.check_call(["prlimit", "--pid", ours, f"--nofile={limit}:"])
    for host in hosts:
        meshctl("migrate", "cutover", host.name, *at, "--watch", "1s")
    must_be(plans, "moved", "isthmus")
    load.settled("compared, and cut over by what was found")
    load.ended = True


THEMES = {"shadow": shadow, "moves": moves, "wrong": wrong, "killed": killed}


def main():
    if sys.argv[1:2] == ["--inside"]:
        surroundings()
        return THEMES[sys.argv[2]](sys.argv[3])
    for name in sys.argv[1:] or THEMES:
        began = time.monotonic()
        print(f"  {name}: {THEMES[name].__doc__.strip()}", flush=True)
        work = tempfile.mkdtemp()
        # All that a theme has started ends with its namespaces.
        own = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        code = subprocess.call([*own, sys.executable, __file__, "--inside", name, work])
        if code:
            sys.exit(f"{name} failed; what it has left is in {work}")
        shutil.rmtree(work)
        print(f"  {name}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
