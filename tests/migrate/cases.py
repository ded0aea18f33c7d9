#!/usr/bin/env python3
"""Every case of tests/legacy, through our proxy with the configuration imported, and
through the real proxy where there is one.

    tests/migrate/cases.py [--real] [FILE…]

MESHCTL, EDGE_PROXY, HAPROXY, NGINX and ENVOY name programs.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter

import world

TARGET = os.environ.get("CARGO_TARGET_DIR") or os.path.join(world.ROOT, "target")
PROGRAMS = {
    "meshctl": os.environ.get("MESHCTL", os.path.join(TARGET, "debug", "meshctl")),
    "edge-proxy": os.environ.get("EDGE_PROXY", os.path.join(TARGET, "debug", "edge-proxy")),
    "haproxy": os.environ.get("HAPROXY", "haproxy"),
    "nginx": os.environ.get("NGINX", "nginx"),
    "envoy": os.environ.get("ENVOY", "envoy"),
}


# What cannot be the same, and a word of the report that says so.
DIFFERENT = {
    ("envoy-01-http.yaml", "e3"): "strip_matching_host_port",
    ("linkerd1-02-consul-per-host-tls.yaml", "l9"): "incoming",
    ("linkerd1-06-methodhost-marathon.yaml", "l3"): "HTTP/1.0",
    ("linkerd1-12-edge-chain.yaml", "l34"): "HTTP/1.0",
    ("nginx-01-reverse-proxy.conf", "n3"): "kept connections",
}


# Where files of io.l5d.fs are, of those that have some.
DISCO = {
    "linkerd1-03-path-fs.yaml": "linkerd1-03-disco",
    "linkerd1-12-edge-chain.yaml": "linkerd1-12-disco",
    "linkerd1-15-edge-paths.yaml": "linkerd1-15-disco",
}
FILE_OF = re.compile("^/#/(io.l5d.fs/)?")


def cases_of(name):
    with open(os.path.join(world.LEGACY, name + ".expect.md")) as file:
        return json.loads(file.read().split("```json\n")[1].split("```")[0])


def format_of(name):
    return name.split("-")[0]


# --- the legacy proxies


def real(name, directory):
    path = os.path.join(world.LEGACY, name)
    os.makedirs("/run/haproxy-lab", exist_ok=True)
    os.makedirs("/tmp/nginx-lab", exist_ok=True)
    command = {
        "haproxy": [PROGRAMS["haproxy"], "-db", "-f", path],
        "nginx": [PROGRAMS["nginx"], "-c", path, "-g", "daemon off;"],
        "envoy": [PROGRAMS["envoy"], "-c", path, "--concurrency", "1", "-l", "warning"],
    }[format_of(name)]
    log = open(os.path.join(directory, "real.log"), "w")
    return subprocess.Popen(command, cwd=world.LEGACY, stdout=log, stderr=log)


def imported(name, directory, discovery):
    plan = [PROGRAMS["meshctl"], "migrate", "plan", "--from", format_of(name), name, "--out", directory]
    if discovery:
        path = os.path.join(directory, "discovery")
        with open(path, "w") as file:
            file.writelines("%s %s\n" % line for line in discovery.items())
        plan += ["--discovery", path]
    planned = subprocess.run(plan, cwd=world.LEGACY, capture_output=True, text=True)
    if planned.returncode:
        sys.exit("%s: %s" % (name, planned.stderr))
    log = open(os.path.join(directory, "ours.log"), "w")
    ours = [PROGRAMS["edge-proxy"], "--config", os.path.join(directory, "proxy.yaml"), "--workers", "1"]
    return subprocess.Popen(ours, stdout=log, stderr=log)


# --- HAProxy, nginx, Envoy


def wrong(case):
    """What of the answers is not as the case has it, or None."""
    expected = case["expect"]
    backends = expected.get("backend")
    if case["method"] == "TCP":
        listener = case["listener"].split()[-1]
        took = Counter(world.banner(listener) for _ in range(24))
        if backends is None:
            return None if set(took) == {None} else "%s took it" % dict(took)
        return spread(took, backends, expected)
    count = 24 if backends and (len(backends) > 1 or expected.get("sticky")) else 3
    took = Counter()
    for _ in range(count):
        got = world.ask(case["listener"], case["method"], case["host"], case["path"], case["headers"])
        if got is None:
            return "the connection ended"
        status, headers, _ = got
        if status != expected.get("status", 200):
            return "status %d" % status
        for name, value in expected.get("rh", {}).items():
            if headers.get(name) != value:
                return "%s: %r" % (name, headers.get(name))
        seen = json.loads(headers["x-seen"]) if "x-seen" in headers else None
        if backends is None:
            if seen:
                return "%s took it" % seen["address"]
            continue
        if seen is None:
            return "no application answered"
        took[seen["address"]] += 1
        if "up" in expected and seen["target"] != expected["up"]:
            return "target %s" % seen["target"]
        for name, value in expected.get("uph", {}).items():
            if seen["headers"].get(name) != value:
                return "%s: %r" % (name, seen["headers"].get(name))
    return spread(took, backends, expected) if backends else None


def spread(took, backends, expected):
    if strangers := set(took) - set(backends):
        return "%s took it" % strangers
    if expected.get("sticky") and len(took) > 1:
        return "not the same endpoint: %s" % dict(took)
    # Shares are what they are on average: ours does not count in turn.
    for backend, part in expected.get("dist", {}).items():
        share = part / sum(expected["dist"].values())
        if abs(took[backend] / sum(took.values()) - share) > 0.3:
            return "shares %s" % dict(took)
    return None


def asked(name):
    """Addresses that applications of a configuration have."""
    http, tcp = {world.FLAKY}, set()
    for case in cases_of(name):
        (tcp if case["method"] == "TCP" else http).update(case["expect"].get("backend") or [])
    with open(os.path.join(world.LEGACY, "hosts")) as file:
        known = [line.split()[0] for line in file if line.startswith("10.")]
    return http | {address + ":8080" for address in known}, tcp


# --- Linkerd


def wrong_of_linkerd(case, listener, is_http2, places):
    wanted = {}
    # Of a router that sends to another one, whoever is behind that.
    for name in case.get("then", []):
        wanted.update((address, 1.0) for address in places[name])
    for bound in [] if "then" in case else case["bound"]:
        name = re.sub(r"^(/%/.*?)?(?=/#/|/\$/)", "", bound["client"])
        for address in places.get(name, fixed(name)):
            wanted[address] = bound["share"]
    status = case["status"] or 200
    headers = {k: v for k, v in case["headers"].items() if not k.startswith(":")}
    version = "1.0" if ":http10" in case["headers"] else "1.1"
    took = Counter()
    for _ in range(60 if len(case["bound"]) > 1 else 4):
        if is_http2:
            got = world.ask2(listener, case["method"], case["host"], case["uri"], headers)
        else:
            got = world.ask(listener, case["method"], case["host"], case["uri"], headers, version=version)
        if got is None:
            return "the connection ended"
        if got[0] != status:
            return "status %d" % got[0]
        if status != 200:
            continue
        seen = json.loads(got[1].get("x-seen", "null"))
        if "/io.buoyant.http.status/" in case["bound"][0]["client"]:
            if seen is not None:
                return "%s took it" % seen["address"]
            continue
        if seen is None:
            return "no application answered"
        if seen["address"] not in wanted:
            return "%s took it, wanted %s" % (seen["address"], sorted(wanted))
        if case.get("upstream_uri") and seen["target"] != case["upstream_uri"]:
            return "target %s" % seen["target"]
        took[seen["address"]] += 1
    for bound in [] if "then" in case else case["bound"]:
        name = re.sub(r"^(/%/.*?)?(?=/#/|/\$/)", "", bound["client"])
        share = sum(took[address] for address in places.get(name, fixed(name))) / max(1, sum(took.values()))
        if took and abs(share - bound["share"]) > 0.2:
            return "%s has a share of %.2f" % (name, share)
    return None


def fixed(name):
    """Where a name of `/$/inet` with an address is."""
    found = re.match(r"/\$/inet/([0-9.]+)/([0-9]+)", name)
    return ["%s:%s" % found.groups()] if found else []


def places_of(name, names, already):
    """Endpoints of bound names: those that files say, else one each."""
    places, discovery = {}, {}
    for bound in names:
        file = os.path.join(world.LEGACY, DISCO.get(name, ""), FILE_OF.sub("", bound))
        if name in DISCO and os.path.isfile(file):
            with open(file) as lines:
                words = [line.split() for line in lines if line.strip() and line[0] != "#"]
            places[bound] = ["%s:%s" % (word[0], word[1]) for word in words]
        else:
            address = "10.20.30.%d:8080" % (len(already) + 1)
            already.append(address)
            places[bound] = [address]
            discovery[bound] = address
    return places, discovery


def told(directory, word):
    """Nothing, if the report has the word where something is not exact."""
    with open(os.path.join(directory, "report.json")) as file:
        report = json.load(file)
    for statement in (s for file in report["files"] for s in file["statements"]):
        if statement["verdict"] != "exact" and word in json.dumps(statement):
            return None
    return "the report does not speak of %r" % word


# --- all of them


def run(name, with_real, served):
    cases, failed, total = cases_of(name), [], 0
    is_linkerd = format_of(name) == "linkerd1"
    discovery, places = {}, {}
    if is_linkerd:
        places, discovery = places_of(name, cases["world"], served.setdefault("names", []))
        handler = world.Echo2 if "h2" in name else world.Echo
        apps = [(address, handler) for all in places.values() for address in all]
        cases = cases["cases"]
        known = [address for case in cases for bound in case["bound"] for address in fixed(bound["client"])]
        apps += [(address, handler) for address in known if address.startswith("10.20.")]
    else:
        http, tcp = asked(name)
        apps = [(a, world.Echo) for a in http] + [(a, world.Banner) for a in tcp]
    for address, handler in apps:
        if address not in served:
            served[address] = handler
            world.serve(address, handler)
    for who in ["real"] if with_real and not is_linkerd else ["ours"]:
        with tempfile.TemporaryDirectory() as directory:
            process = real(name, directory) if who == "real" else imported(name, directory, discovery)
            try:
                routers = routers_of(name) if is_linkerd else {}
                first = next(iter(routers.values())) if routers else cases[0]["listener"].split()[-1]
                if not world.until_open(first, process):
                    with open(os.path.join(directory, who + ".log")) as log:
                        failed.append("%s, %s: does not start\n%s" % (name, who, log.read()[-2000:]))
                    continue
                for case in cases:
                    total += 1
                    # Who was slow a moment ago is spared by ours: shares are judged over a while.
                    for wait in (2, 5, 0):
                        if is_linkerd:
                            what = wrong_of_linkerd(case, routers[case["router"]], "h2" in name, places)
                        else:
                            what = wrong(case)
                        if not what or "share" not in what or not wait:
                            break
                        time.sleep(wait)
                    word = DIFFERENT.get((name, case["id"])) if who == "ours" else None
                    if word is not None:
                        what = told(directory, word) if what else "is the same now: say so no longer"
                    if what:
                        failed.append("%s, %s, %s (%s): %s" % (name, who, case["id"], case["note"], what))
            finally:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
    return total, failed


def routers_of(name):
    """Where the routers of a Linkerd listen; labels and ports of tests/legacy."""
    return {
        "linkerd1-02-consul-per-host-tls.yaml": {"outgoing": "127.0.0.1:4140", "incoming": "127.0.0.1:4141"},
        "linkerd1-03-path-fs.yaml": {"api": "127.0.0.1:4140"},
        "linkerd1-04-h2-grpc.yaml": {"grpc": "127.0.0.1:4142", "h2-plain": "127.0.0.1:4143"},
        "linkerd1-06-methodhost-marathon.yaml": {"dcos": "127.0.0.1:4140"},
        "linkerd1-12-edge-chain.yaml": {"edge": "127.0.0.1:8080", "inner": "127.0.0.1:8081", "old": "127.0.0.1:8082"},
        "linkerd1-15-edge-paths.yaml": {"api": "127.0.0.1:4160", "host": "127.0.0.1:4161"},
        "linkerd1-16-sidecar.yaml": {"out": "127.0.0.1:4190", "in": "127.0.0.1:4191"},
        "linkerd1-13-consul-regions.yaml": {"regions": "127.0.0.1:4140"},
        "linkerd1-14-grpc-h2.yaml": {
            "by-method": "127.0.0.1:4142",
            "by-authority": "127.0.0.1:4143",
            "by-header": "127.0.0.1:4144",
        },
    }[name]


def main():
    world.alone()
    arguments = [a for a in sys.argv[1:] if a != "--real"]
    with_real = "--real" in sys.argv
    names = arguments or sorted(
        f[: -len(".expect.md")] for f in os.listdir(world.LEGACY) if f.endswith(".expect.md")
    )
    served, total, failed = {}, 0, []
    for name in names:
        for real_one in [False, True] if with_real and format_of(name) != "linkerd1" else [False]:
            if real_one and shutil.which(PROGRAMS[format_of(name)]) is None:
                failed.append("%s: %s is not there" % (name, PROGRAMS[format_of(name)]))
                continue
            count, wrong_ones = run(name, real_one, served)
            print("%s, %s: %d cases, %d wrong" % (name, "the real one" if real_one else "ours", count, len(wrong_ones)))
            total, failed = total + count, failed + wrong_ones
    for what in failed:
        print(what)
    print("%d cases, %d wrong" % (total, len(failed)))
    sys.exit(1 if failed or not total else 0)


if __name__ == "__main__":
    main()
