"""Our proxies: the proxy of a client with an explicit listener for every
service, and for two hops the proxy beside the services."""

import os

from bench import certs

from .process import Process, write
from .servers import PORTS

# Every service that a case uses: what it is declared as, and the server
# behind it. The order gives the ports of the listeners.
SERVICES = {
    "files": ("http", "nginx"),
    "node": ("http", "node"),
    "node-h2": ("grpc", "node-h2"),
    "nghttpd": ("grpc", "nghttpd"),
    "envoy": ("http", "envoy"),
    "envoy-h2": ("grpc", "envoy"),
    "grpc": ("grpc", "grpc"),
    "grpc-detect": ("detect", "grpc"),
    "postgres": ("tcp", "postgres"),
    "postgres-detect": ("detect", "postgres"),
    "redis": ("tcp", "redis"),
    "redis-detect": ("detect", "redis"),
    "mariadb": ("tcp", "mariadb"),
    "mariadb-detect": ("detect", "mariadb"),
    "ssh": ("tcp", "sshd"),
    "ssh-detect": ("detect", "sshd"),
    "websocket": ("http", "websocket"),
    "websocket-detect": ("detect", "websocket"),
    "raw": ("http", "origin"),  # the differential test's
}
INBOUND = 4143


class Way:
    """One of the ways to the services. The fronts are the ports that clients
    dial, `named` the listener where they name the service."""

    def __init__(self, label, base):
        self.label, self.named, self.admin = label, base, base + 1
        self.fronts = {name: base + 100 + place for place, name in enumerate(SERVICES)}
        self.processes = []

    def front(self, name):
        return self.fronts[name]

    def url(self, name, path="/"):
        return f"http://127.0.0.1:{self.fronts[name]}{path}"

    def start(self, binary, directory, keys):
        # Where the servers' files are, and ours.
        self.root, self.directory = directory, os.path.join(directory, self.label)
        os.makedirs(self.directory)
        write(self.directory, "site.yaml", self.site())
        for name, leaf, config in self.configs():
            path = write(self.directory, f"{name}.yaml", {**config, **common(keys, leaf), "state": name})
            self.processes.append(Process(name, [binary, "--config", path], self.directory))
        for process, port in zip(self.processes, self.ports()):
            process.wait_for(port)
        return self

    def site(self):
        return {"site": "west", "trust_domain": certs.WEST, "services": [
            {"name": f"{name}.shop", "ports": [{"name": "main", "port": 80, "protocol": protocol}],
             "endpoints": [{"port": "main", "target": f"127.0.0.1:{PORTS[server]}", **self.endpoint()}]}
            for name, (protocol, server) in SERVICES.items()]}

    def client(self):
        listeners = [{"listen": f"127.0.0.1:{port}", "service": f"{name}.shop", "port": "main"}
                     for name, port in self.fronts.items()]
        return "client-proxy", "checkout", {
            "role": "node", "http_listener": f"127.0.0.1:{self.named}", "listeners": listeners,
            "admin": f"127.0.0.1:{self.admin}"}

    def stop(self):
        for process in self.processes:
            process.stop()


class OneHop(Way):
    """Applications without a proxy, in plaintext."""

    def __init__(self):
        super().__init__("one-hop", 4500)

    def endpoint(self):
        return {"plaintext": True}

    def configs(self):
        return [self.client()]

    def ports(self):
        return [self.named]


class TwoHops(Way):
    """Mutual TLS between two proxies."""

    def __init__(self):
        super().__init__("two-hops", 4700)

    def endpoint(self):
        return {"identity": certs.ORDERS, "proxy": f"127.0.0.1:{INBOUND}"}

    def configs(self):
        inbound = {"role": "node", "http_listener": "off", "inbound": f"127.0.0.1:{INBOUND}",
                   "admin": f"127.0.0.1:{self.admin + 1}"}
        return [("server-proxy", "orders", inbound), self.client()]

    def ports(self):
        return [INBOUND, self.named]


WAYS = {"2": TwoHops, "1": OneHop}


def common(keys, leaf):
    return {
        "identity": {"files": {
            "certificate": f"{keys}/{leaf}.pem", "key": f"{keys}/{leaf}.key",
            "bundles": {certs.WEST: f"{keys}/{certs.WEST}.root.pem"}}},
        "snapshot": {"file": "site.yaml"}, "workers": 1, "access_log": "stdout"}
