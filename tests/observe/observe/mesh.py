"""Two linked sites of our programs, each on addresses of its own.

    west (VM, outbound only)        east (stands for a cluster)
      vm1  orders.shop, the caller    node1  payments.prod
"""

import json
import os

from interop.process import Process, run, write

from .waiting import get, until

GATEWAY, ADMIN, AGENT_ADMIN, INBOUND, PROXY = 8443, 4191, 4192, 4143, 4140
ECHO_LISTENER, PLAIN = 7000, 4145
# Observers; all listen on loopback.
STATSD = "127.0.0.1:8125"

RULES = """\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: payments, namespace: prod }
spec:
  parentRefs: [{ group: "", kind: Service, name: payments, port: 80 }]
  rules:
    - name: pay
      backendRefs: [{ name: payments, port: 80 }]
"""
# Whoever has no identity may come, too: to one door.
ACCESS = """\
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: { name: payments, namespace: prod }
spec:
  externalWorkloadSelector: { matchLabels: { isthmus.io/service: payments } }
  port: http
  accessPolicy: all-unauthenticated
"""


class Site:
    def __init__(self, name, net):
        self.name, self.net = name, f"127.40.{net}"
        self.domain = f"{name}.example"

    def at(self, host, port):
        return f"{self.net}.{host}:{port}"


class Machine:
    def __init__(self, name, site, account, service, ports, reachable):
        self.name, self.site, self.account, self.service = name, site, account, service
        # What a port is called and speaks, its number, and the application's.
        self.ports, self.reachable = ports, reachable

    def at(self, port):
        return self.site.at(21, port)

    @property
    def namespace(self):
        return self.service.split(".")[1]


WEST, EAST = Site("west", 0), Site("east", 1)
VM1 = Machine("vm1", WEST, "orders", "orders.shop", [("http", "http", 80, 8080)], False)
NODE1 = Machine("node1", EAST, "payments", "payments.prod",
                [("http", "http", 80, 8080), ("grpc", "grpc", 50051, 8081), ("echo", "tcp", 7000, 8082)], True)
SITES, MACHINES = [WEST, EAST], [VM1, NODE1]


class Mesh:
    def __init__(self, programs, directory):
        self.programs, self.directory = programs, directory
        self.processes = {}

    def targets(self):
        """Everything with figures: what it is, and its admin port."""
        found = []
        for site in SITES:
            found += [("federation", site.at(11, 8448)), ("gateway", site.at(12, ADMIN))]
        for machine in MACHINES:
            found += [("agent", machine.at(AGENT_ADMIN)), ("proxy", machine.at(ADMIN))]
        return found

    def start(self, tracing):
        for site in SITES:
            self.init(site)
        for machine in MACHINES:
            self.prepare(machine)
            self.apps(machine)
        self.trace(tracing)
        for site in SITES:
            self.daemon("federation", site.name, "federation")
            self.listens(f"{site.name}/federation.sock")
        for machine in MACHINES:
            self.daemon("vm-agent", machine.name, "agent")
            self.listens(f"{machine.name}/agent.sock")
        self.start_proxies()
        self.ready("federation", "gateway")
        for machine in MACHINES:
            token = self.meshctl(machine.site.name, "token", "create", "--namespace", machine.namespace, "--account",
                                 machine.account, "--uses", "1", "--ttl", "15m", "--service", machine.service)
            self.meshctl(machine.name, "join", "-", stdin=token)
        self.ready()
        token = self.meshctl("east", "link", "token", "--site", "west")
        self.meshctl("west", "link", "cluster", "east", "-", stdin=token)
        for machine in MACHINES:
            until(f"{machine.service} is exported",
                  lambda m=machine: self.meshctl(m.site.name, "service", "export", m.service), 20, 0.3)
        for name, text in [("rules", RULES), ("access", ACCESS)]:
            path = os.path.join(self.directory, f"{name}.yaml")
            with open(path, "w") as file:
                file.write(text)
            # Each site decides for what it knows.
            for site in SITES if name == "rules" else [EAST]:
                self.meshctl(site.name, "apply", "-f", path)
        return self

    def meshctl(self, name, *words, stdin=b""):
        command = [self.programs["meshctl"], "--run", os.path.join(self.directory, name), *words]
        return run(command, stdin=stdin).stdout

    def meshctl_json(self, name, *words):
        return json.loads(self.meshctl(name, *words, "-o", "json"))

    def init(self, site):
        run_dir = os.path.join(self.directory, site.name)
        gateway = site.at(12, GATEWAY)
        self.meshctl(site.name, "site", "init", site.name, "--trust-domain", site.domain, "--state", f"{run_dir}/state",
                     "--config", f"{run_dir}/etc", "--listen", site.at(11, 8446), "--admin", site.at(11, 8448),
                     "--gateway-listen", gateway, "--gateway-address", gateway,
                     "--gateway-admin", site.at(12, ADMIN), "--gateway-state", f"{run_dir}/gateway",
                     "--gateway-access-log", "stdout")

    def prepare(self, machine):
        """What an operator writes on the machine."""
        run_dir = os.path.join(self.directory, machine.name)
        os.makedirs(f"{run_dir}/services.d")
        os.makedirs(f"{run_dir}/etc")
        with open(f"{run_dir}/machine-id", "wb") as file:
            file.write(os.urandom(16).hex().encode() + b"\n")
        agent = {"state": f"{run_dir}/agent", "run": run_dir, "services": f"{run_dir}/services.d",
                 "machine_id_file": f"{run_dir}/machine-id", "admin": machine.at(AGENT_ADMIN)}
        proxy = {"role": "node", "identity": {"socket": f"{run_dir}/identity.sock"},
                 "http_listener": machine.at(PROXY), "admin": machine.at(ADMIN), "state": f"{run_dir}/proxy",
                 "access_log": "stdout", "workers": 1, "drain_timeout": "1s", "statsd": STATSD,
                 "control_socket": f"{run_dir}/proxy.sock"}
        if machine.reachable:
            agent["advertise"] = proxy["inbound"] = machine.at(INBOUND)
            proxy["inbound_plaintext"] = [{"listen": machine.at(PLAIN), "service": machine.service, "port": "http"}]
        else:
            proxy["listeners"] = [
                {"listen": machine.at(ECHO_LISTENER), "service": NODE1.service, "port": "echo"}]
        service = {"service": machine.service.split(".")[0], "namespace": machine.namespace,
                   "address": f"{machine.site.net}.21",
                   "ports": [{"name": name, "port": number, "target": target, "protocol": protocol}
                             for name, protocol, number, target in machine.ports],
                   "check": {"http": "/healthz", "port": 8080, "interval": "1s"}}
        write(run_dir, "etc/agent.yaml", agent)
        write(run_dir, "etc/proxy.yaml", proxy)
        write(run_dir, "services.d/service.yaml", service)

    def apps(self, machine):
        for name, protocol, _, port in machine.ports:
            kind = "echo" if protocol == "tcp" else protocol
            words = ["demo-part", "app", kind, "--listen", machine.at(port), "--name", name, "--site",
                     machine.site.name]
            self.begin(f"{machine.name}-app-{name}", self.programs["meshctl"], words)

    def trace(self, tracing):
        """Where proxies and gateways shall send spans, from their next start on."""
        for name, kind in self.proxies():
            path = os.path.join(self.directory, name, "etc", f"{kind}.yaml")
            kept = path + ".kept"
            if not os.path.exists(kept):
                os.rename(path, kept)
            with open(kept) as file:
                text = file.read()
            block = f"{{ endpoint: '{tracing[name][1]}', protocol: {tracing[name][0]} }}"
            with open(path, "w") as file:
                # JSON, or what `site init` writes.
                if text.startswith("{"):
                    file.write(text.rstrip()[:-1] + f', "tracing": {block}}}\n')
                else:
                    file.write(f"{text}\ntracing: {block}\n")

    @staticmethod
    def proxies():
        return [(site.name, "gateway") for site in SITES] + [(machine.name, "proxy") for machine in MACHINES]

    def start_proxies(self):
        for name, kind in self.proxies():
            self.daemon("edge-proxy", name, kind)

    def restart_proxies(self):
        for name, kind in self.proxies():
            self.processes.pop(f"{name}-{kind}").stop()
        self.start_proxies()
        self.ready()

    def ready(self, *kinds):
        for kind, admin in self.targets():
            if not kinds or kind in kinds:
                until(f"the {kind} at {admin} is ready", lambda at=admin: get(f"http://{at}/ready"))

    def daemon(self, program, name, kind):
        config = os.path.join(self.directory, name, "etc", f"{kind}.yaml")
        self.begin(f"{name}-{kind}", self.programs[program], ["--config", config])

    def begin(self, name, program, words):
        self.processes[name] = Process(name, [program, *words], self.directory)

    def listens(self, socket):
        path = os.path.join(self.directory, socket)
        until(f"{socket} is there", lambda: os.path.exists(path))

    def check(self):
        """Nobody may have ended."""
        for process in self.processes.values():
            process.check()


def programs(target):
    """Ours, as cargo puts them."""
    found = {name: os.path.join(target, name) for name in ["meshctl", "federation", "vm-agent", "edge-proxy"]}
    missing = [path for path in found.values() if not os.access(path, os.X_OK)]
    if missing:
        raise SystemExit(f"missing: {', '.join(missing)}; build with: cargo build --workspace --bins")
    return found
