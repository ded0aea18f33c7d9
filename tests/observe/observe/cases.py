"""What the observers must have seen."""

import math
import os
import re
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
