"""Whoever takes part ends without a word."""

import subprocess
import time

from .host import fleet, must_be, statuses
from .load import Load, ask
from .world import meshctl, together, until


def broken_off(host, *words):
    """meshctl is killed in the middle, a little later on each host, and then the agent."""
    asking = subprocess.Popen(["meshctl", "migrate", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.02 * host.number)
    asking.kill()
    asking.wait()
    host.kill_agent()
    host.start_agent()


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
            assert ask(host), f"{host.name}: nobody serves without its agent"
            host.start_agent()

    def served(when):
        for host in hosts:
            until(f"{when}: {host.name} is served", lambda: ask(host), 15)
        print(f"    {when}: all served", flush=True)

    load = Load(hosts)
    together(lambda name: meshctl("migrate", "beside", name, *at), names)
    agents()
    must_be(plans, "beside", "legacy")
    load.settled("agents killed beside")
    load.fresh()
    # Killed in the middle of what they do.
    for host in hosts:
        broken_off(host, "cutover", host.name, *at, "--watch", "60s", "--without-shadow")
    now = statuses(plans)
    for name in names:
        state = (now[name]["phase"], now[name]["serves"])
        assert state in (("beside", "legacy"), ("watch", "isthmus")), f"{name}: {state}"
    load.settled("meshctl and agents killed while cutting over")
    load.fresh()
    together(lambda name: meshctl("migrate", "cutover", name, *at, "--watch", "60s", "--no-wait", "--without-shadow"), names)
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
        broken_off(host, "rollback", host.name, *at)
    together(lambda name: meshctl("migrate", "rollback", name, *at), names)
    must_be(plans, "back", "legacy")
    load.settled("meshctl and agents killed while rolling back")
    load.fresh()
    together(lambda name: meshctl("migrate", "cutover", name, *at, "--watch", "1s", "--without-shadow"), names)
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
    together(lambda name: meshctl("migrate", "rollback", name, *at), names)
    must_be(plans, "back", "legacy")
    load.settled("rolled back to legacy proxies that were dead")
    load.ended = True
    # Nobody is on the way over: the legacy proxy alone serves, and is started again.
    for host in hosts:
        host.kill_legacy()
    served("legacy proxies killed while they serve")
    must_be(plans, "back", "legacy")
