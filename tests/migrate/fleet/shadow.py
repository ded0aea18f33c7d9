"""Answers are compared."""

import json
import os
import socket
import subprocess
import threading
import time

from .host import fleet, must_be
from .load import Load, post
from .world import BRIDGE, ORDERS, address, meshctl, together


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
            post(host, f"{number}/{order}")
        posting = threading.Thread(target=lambda: [time.sleep(1.5), post(host, f"{number}/live")])
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
            file.write(f'{BRIDGE} - - [30/Nov/2026:10:00:00 +0000] "GET /alike/{number} HTTP/1.1" 200 5 "-" "curl/8"\n')
    elsewhere = address("envoy-2") + ":8080"
    moved = sites.replace(bad.address + ":8080", elsewhere).replace(bad.other + ":8080", elsewhere)
    assert moved != sites, sites
    with open(site, "w") as file:
        file.write(moved)
    said = meshctl("migrate", "shadow", bad.name, *at, "--share", "0%", "--access-log", log, "--for", "3s", "--at-least", "20", fails=True)
    assert "backend 10.50.0." in said and "became apps.legacy" in said, said
    with open(site, "w") as file:
        file.write(sites)
    # Of a log, which an agent that is killed meanwhile does not forget.
    log = work + "/access.log"
    with open(log, "w") as file:
        for number in range(40):
            file.write(f'{BRIDGE} - - [30/Nov/2026:10:00:00 +0000] "GET /{number} HTTP/1.1" 200 14 "-" "curl/8"\n')
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
    quiet = [socket.create_connection((bad.address, bad.port)) for _ in range(20)]
    subprocess.check_call(["prlimit", "--pid", ours, f"--nofile={len(os.listdir(f'/proc/{ours}/fd')) + 20}:"])
    said = meshctl("migrate", "cutover", bad.name, *at, "--watch", "1s", fails=True)
    assert "no room for the" in said and "more files" in said, said
    for connection in quiet:
        connection.close()
    subprocess.check_call(["prlimit", "--pid", ours, f"--nofile={limit}:"])
    together(lambda host: meshctl("migrate", "cutover", host.name, *at, "--watch", "1s"), hosts)
    must_be(plans, "moved", "isthmus")
    load.settled("compared, and cut over by what was found")
    load.ended = True
