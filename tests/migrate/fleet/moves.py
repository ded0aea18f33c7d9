"""All of them over and back, and one that is wrong."""

import os
import subprocess
import time

from .host import Call, fleet, must_be, statuses
from .load import Load, ask, ask_from, leave_behind
from .world import HOSTS, address, meshctl, together, until


def moves(work):
    """All of them over, back, and over again; then the legacy proxies are stopped."""
    plans = work + "/plans"
    hosts = fleet(work)
    for host in hosts:
        host.plan(plans)
        meshctl("migrate", "beside", host.name, "--plans", plans)
        leave_behind(host, 20_001)
    pair = [host for host in hosts if host.kind == "linkerd"]
    load = Load([*hosts, Call(*pair), Call(*reversed(pair))])
    # Each of two that call each other while the other one has not moved.
    for host in pair:
        meshctl("migrate", "cutover", host.name, "--plans", plans, "--watch", "1s", "--without-shadow")
        must_be(plans, "moved", "isthmus", [host.name])
        # The other Linkerd calls ours here, and ours calls the other Linkerd.
        asks = f'"client":"{address(host.peer)}","method":"GET","authority":"{host.name}.example"'
        until(f"{host.peer} asks ours at {host.name}", lambda: asks in host.log(f"state/{host.name}/proxy.log"))
        time.sleep(1)
        load.settled(f"{host.name} moved, the other Linkerd not")
        load.fresh()
        meshctl("migrate", "rollback", host.name, "--plans", plans)
    must_be(plans, "back", "legacy", [host.name for host in pair])
    meshctl("migrate", "next", "--plans", plans, "--watch", "1s", "--concurrency", "2", "--without-shadow")
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
    meshctl("migrate", "next", "--resume", "--plans", plans, "--watch", "1s", "--concurrency", "8", "--without-shadow")
    must_be(plans, "moved", "isthmus")
    together(lambda host: meshctl("migrate", "finish", host.name, "--plans", plans), hosts)
    must_be(plans, "finished", "isthmus")
    for host in hosts:
        until(f"{host.name}: the legacy proxy has ended", lambda: not host.legacy_pids())
    for host in hosts:
        ask_from(host, 20_001)
    load.settled("over again, and the legacy proxies stopped")
    load.fresh()
    # From the disk alone.
    together(lambda host: meshctl("migrate", "rollback", host.name, "--plans", plans), hosts)
    must_be(plans, "back", "legacy")
    time.sleep(1)
    load.settled("rolled back after they were stopped")
    together(lambda host: meshctl("migrate", "abandon", host.name, "--plans", plans), hosts)
    load.ended = True
    for host in hosts:
        assert ask(host), host.name
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
    said = meshctl("migrate", "next", "--plans", plans, "--watch", "5s", "--without-shadow", fails=True)
    assert bad.name in said and "rolled back" in said and "were not begun with" in said, said
    now = statuses(plans)
    assert now[bad.name]["phase"] == "back" and now[bad.name]["serves"] == "legacy", now[bad.name]
    assert "failed" in now[bad.name]["problem"], now[bad.name]
    order = sorted(HOSTS)
    after = order[order.index(bad.name) + 1:]
    assert all(now[name]["phase"] == "planned" for name in after), now
    until("it answers again", lambda: ask(bad))
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
    meshctl("migrate", "next", "--again", "--plans", plans, "--watch", "1s", "--concurrency", "8", "--without-shadow")
    must_be(plans, "moved", "isthmus")
    load.settled("all moved after it was mended")
    load.ended = True
