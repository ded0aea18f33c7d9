"""A host: its namespace, legacy proxy, application and agent."""

import json
import os
import signal
import subprocess

from . import legacy
from .load import ask
from .world import HOSTS, address, meshctl, reap, serve, until


class Host:
    # As clients ask it, who are elsewhere.
    authority, namespace = "web.example", None

    def __init__(self, work, name):
        self.name = name
        self.kind, which = name.split("-")
        self.peer = f"{self.kind}-{3 - int(which)}"
        self.number = HOSTS.index(name) + 1
        self.address = address(name)
        self.other = address(HOSTS[self.number % len(HOSTS)])
        self.port = 4140 if self.kind == "linkerd" else 80
        # One listens at all addresses, and its application asks 127.0.0.1.
        self.listens = "0.0.0.0" if name == "linkerd-1" else self.address
        self.answers = [f"{self.address}:8080", f"{self.other}:8080"]
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
        serve(name, self.address)
        self.agent = None
        self.config = os.path.join(self.work, self.kind + (".yaml" if self.kind in ("envoy", "linkerd") else ".conf"))
        fill = {"work": self.work, "address": self.address, "other": self.other, "listens": self.listens}
        text, self.command = legacy.KINDS[self.kind](self, fill)
        with open(self.config, "w") as file:
            file.write(text)

    @property
    def within(self):
        return ["ip", "netns", "exec", self.name]

    def inside(self, command, **more):
        return subprocess.Popen([*self.within, *command], **more)

    def start_legacy(self):
        log = open(self.work + "/legacy.log", "a")
        self.inside(self.command, stdout=log, stderr=log)

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
        kind = "linkerd1" if self.kind == "linkerd" else self.kind
        into = ["-o", f"{plans}/{self.name}"]
        if self.name == "linkerd-2":
            # What runs is asked, where it runs.
            live = ["--live", "http://127.0.0.1:9990"]
            meshctl("migrate", "plan", "--from", kind, *live, *into, within=self.within)
        else:
            meshctl("migrate", "plan", "--from", kind, self.config, *into)
        with open(f"{plans}/{self.name}/host.yaml", "a") as file:
            file.write(f"via: [ip, netns, exec, {self.name}]\nrun: {self.work}/run\n")

    def log(self, name):
        try:
            return open(f"{self.work}/{name}").read()
        except OSError:
            return ""

    def logs(self):
        names = ["agent.log", "legacy.log", f"state/{self.name}/proxy.log"]
        return "".join(f"\n--- {self.name}: {name}\n{self.log(name)[-3000:]}" for name in names)


def archive(work):
    """Once: a run of the stand-in for Linkerd that leaves the classes it has loaded."""
    host = Host(work, "linkerd-1")
    made = legacy.ARCHIVE + ".new"
    host.command = [word.replace(f"SharedArchiveFile={legacy.ARCHIVE}", f"ArchiveClassesAtExit={made}") for word in host.command]
    host.start_legacy()
    until("the stand-in for Linkerd answers", lambda: ask(host))
    host.plan(work)
    for pid in host.legacy_pids():
        os.kill(pid, signal.SIGTERM)
    until("the stand-in for Linkerd has ended", lambda: not host.legacy_pids())
    os.replace(made, legacy.ARCHIVE)


class Call:
    """What the application of a host asks: its own Linkerd, for a name that leads through
    the Linkerd of the other host to the application there."""

    def __init__(self, host, to):
        self.name, self.namespace = f"{host.name} to {to.name}", host.name
        self.address = "127.0.0.1" if host.listens == "0.0.0.0" else host.address
        self.port, self.authority = host.port, f"{to.name}.example"
        self.answers = [f"{to.address}:8080"]
        self.logs = lambda: host.logs() + to.logs()


def fleet(work):
    hosts = [Host(work, name) for name in HOSTS]
    for host in hosts:
        host.start_legacy()
    for host in hosts:
        until(f"{host.name}: the legacy proxy answers", lambda: ask(host))
        host.start_agent()
    return hosts


def statuses(plans):
    # It fails where an agent has just been killed, after what it knows.
    said = meshctl("migrate", "status", "--plans", plans, "-o", "json", fails=None)
    shown, _ = json.JSONDecoder().raw_decode(said)
    return {host["host"]: host for host in shown["hosts"]}


def must_be(plans, phase, serves, names=HOSTS):
    now = statuses(plans)
    wrong = {name: (now[name]["phase"], now[name]["serves"], now[name]["problem"]) for name in names
             if (now[name]["phase"], now[name]["serves"]) != (phase, serves)}
    assert not wrong, f"not {phase} and served by {serves}: {wrong}"
