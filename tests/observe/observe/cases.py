"""What the observers must have seen."""

import json
import math
import os
import re
import time
import tomllib

from interop.process import Failed

from . import traffic
from .mesh import NODE1, PROXY, VM1
from .observers import PROMETHEUS
from .waiting import get_json, until

# Who has asked: a client that is traced already.
CLIENT = "00f067aa0ba902b7"
# Until a window of a minute has what irate and rate need.
SOON = 30


class Path:
    """Who calls whom, and where each is."""

    def __init__(self, caller, callee, url):
        self.caller, self.callee, self.url = caller, callee, url


PATHS = {
    "to an address": Path(VM1, NODE1, "http://payments.prod/pay"),
    "in reverse": Path(NODE1, VM1, "http://orders.shop/pay"),
}


def tree(path, spans_of):
    """A request over four hops and two sites is one tree, with nothing missing,
    whether its session had to be opened or was there."""
    for _ in range(2):
        trace = os.urandom(16).hex()
        headers = {"traceparent": f"00-{trace}-{CLIENT}-01"}
        traffic.expect(traffic.request(path.caller.at(PROXY), path.url, headers), 200)
        spans = until("four spans", lambda t=trace: of_four(spans_of(t)), SOON)
        check_tree(path, {(span["service"], span["site"]): span for span in spans})


def of_four(spans):
    if len(spans) > 4:
        raise Failed(f"{len(spans)} spans, not 4: {spans}")
    return spans if len(spans) == 4 else None


def check_tree(path, spans):
    caller, callee = ((machine.account, machine.site.name) for machine in [path.caller, path.callee])
    source, near = spans[caller], spans["gateway", caller[1]]
    far, destination = spans["gateway", callee[1]], spans[callee]
    parents = [(source, CLIENT), (near, source["id"]), (far, near["id"]), (destination, source["id"])]
    for span, parent in parents:
        traffic.expect(span["parent"], parent)
        if not source["began"] <= span["began"] <= span["ended"]:
            raise Failed(f"times of {span}")
    traffic.expect([span["kind"] for span, _ in parents], ["CLIENT", "SERVER", "SERVER", "SERVER"])
    # One connection, which the log lines of all four have, too.
    traffic.expect(len({span["tags"]["isthmus.connection"] for span, _ in parents}), 1)
    for span in [source, destination]:
        traffic.expect(span["tags"]["url.path"], "/pay")
        traffic.expect(str(span["tags"]["http.response.status_code"]), "200")


def queries():
    with open(os.path.join(os.path.dirname(__file__), "../queries.toml"), "rb") as file:
        return tomllib.load(file)["query"]


def ask(observers, query):
    """Prometheus finds something, and it can be true."""
    if "label" in query:
        url = f"{PROMETHEUS}/api/v1/label/{query['label']}/values"
        found = get_json(url, **{"match[]": query["expr"]})["data"]
        missing = set(query["values"]) - set(found)
        if missing:
            raise Failed(f"{sorted(missing)} not among {found}")
        return True
    found = observers.query(query["expr"])
    if not found:
        raise Failed(f"no data: {query['expr']}")
    least, most = query["range"]
    for labels, value in found:
        lacking = [name for name in query.get("with", []) if not labels.get(name)]
        if lacking or math.isnan(value) or not least <= value <= most:
            raise Failed(f"{labels} {value}; must have {query.get('with', [])} and be in {query['range']}")
    if query.get("some") and all(value <= least for _, value in found):
        raise Failed(f"nothing above {least}: {found}")
    return True


def answered(observers, query):
    until(query["source"], lambda: ask(observers, query), SOON, 0.5)


def statsd(observers):
    """It understands every line, and counts what was called."""
    text = observers.ask_statsd("counters")
    counters = {name: float(value) for name, value in re.findall(r"'?([\w.]+)'?: ([\d.]+)", text)}
    traffic.expect(counters["statsd.bad_lines_seen"], 0)
    for name in ["isthmus.outbound.payments_prod.http", "isthmus.inbound.payments_prod.http",
                 "isthmus.outbound.orders_shop.http", "isthmus.inbound.orders_shop.http"]:
        if counters.get(f"{name}.requests.success", 0) < 10:
            raise Failed(f"{name}: {text}")
    timers = observers.ask_statsd("timers")
    if not re.search(r"'isthmus\.inbound\.payments_prod\.http\.latency': \[\s*[\d.]+", timers):
        raise Failed(f"no latency: {timers[:500]}")


def routes(mesh):
    """By the name of the rule, as the callers in `west` see it."""
    def there():
        rows = mesh.meshctl_json("west", "routes", "payments.prod", "--from", "orders.shop")["routes"]
        return [row for row in rows if row["route"].endswith("/pay") and row["effective_rps"] > 1]
    [row] = until("the route", there, SOON)
    traffic.expect((row["authority"], row["effective_success"], row["actual_success"]), ("payments.prod:80", 100, 100))
    if not 0 < row["latency_ms_p50"] <= row["latency_ms_p99"]:
        raise Failed(f"latencies: {row}")
    traffic.expect(mesh.meshctl_json("west", "routes", "no.such")["routes"], [])


def edges(mesh):
    """Both ends with their identities and sites, from either site; and who has none."""
    orders, payments = (f"spiffe://{machine.site.domain}/ns/{machine.namespace}/sa/{machine.account}"
                        for machine in [VM1, NODE1])
    wanted = [(orders, payments, "west", "east", ""), (payments, orders, "east", "west", "")]
    for site in ["west", "east"]:
        more = [("", payments, "", "east", "no_tls_from_remote")] if site == "east" else []

        def there(site=site, more=more):
            rows = mesh.meshctl_json(site, "edges")["edges"]
            keys = ["client_id", "server_id", "src_site", "dst_site", "no_tls_reason"]
            seen = {tuple(row[key] for key in keys) for row in rows}
            return seen == set(wanted + more)
        until(f"the edges of {site}", there, SOON)


def identities(mesh):
    """Everybody of the site, with time left, and the root of the other."""
    rows = mesh.meshctl_json("west", "identity")["identities"]
    kinds = sorted(row["kind"] for row in rows)
    traffic.expect(kinds, ["gateway", "issuing-ca", "linked-root", "node", "root", "workload"])
    for row in rows:
        left = row["expires_unix_s"] and row["expires_unix_s"] - time.time()
        if row["kind"] != "linked-root" and left < 3600:
            raise Failed(f"ends too soon: {row}")
    roots = {site: [row["fingerprint"] for row in mesh.meshctl_json(site, "identity")["identities"]
                    if row["kind"] in ["root", "linked-root"]] for site in ["west", "east"]}
    traffic.expect(roots["west"], list(reversed(roots["east"])))


def tap(mesh):
    """From the hosts of both federations, proxies of other machines show what
    matches, each end its own."""
    for site, machine in [("west", VM1), ("east", NODE1)]:
        own = f"spiffe://{machine.site.domain}/ns/{machine.namespace}/sa/{machine.account}"
        words = ["tap", "payments.prod", "--path", "/pay", "--status", "2xx", "--count", "20", "-o", "json"]
        lines = mesh.meshctl(site, *words).decode().splitlines()
        events = [json.loads(line) for line in lines]
        traffic.expect(len(events), 20)
        for event in events:
            end = "source" if site == "west" else "destination"
            traffic.expect((event["path"], event["service"], event[end]["spiffe_id"]), ("/pay", "payments.prod", own))
        counts = {event["connection"] for event in events}
        if not all(counts):
            raise Failed(f"no connection: {events}")
