"""Autobahn's WebSocket test suite, before its own server."""

import json
import os
import tempfile

from ..case import case, holds
from ..process import Failed, run, write

# What our proxy does not change: the same without us.
FINE = {"OK", "NON-STRICT", "INFORMATIONAL"}
# Sections 9 (limits, up to 16 MiB each), 12 and 13 (compression) take minutes: one of each.
SHORT = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.1.3", "9.2.3", "10.*", "12.1.5", "13.1.5"]
LONG = ["*"]


def fuzz(url, cases, least, timeout):
    """Runs wstest as the client against `url`."""
    with tempfile.TemporaryDirectory() as directory:
        spec = write(directory, "spec.json", {
            "outdir": directory, "options": {"failByDrop": False},
            "servers": [{"agent": "us", "url": url, "options": {"version": 18}}],
            "cases": cases, "exclude-cases": [], "exclude-agent-cases": {}})
        run(["wstest", "-m", "fuzzingclient", "-s", spec], timeout=timeout, status=None)
        index = os.path.join(directory, "index.json")
        if not os.path.exists(index):
            raise Failed("wstest wrote no report")
        with open(index) as file:
            found = json.load(file)["us"]
    bad = {name: result["behavior"] for name, result in found.items()
           if result["behavior"] not in FINE or result["behaviorClose"] not in FINE}
    holds(len(found) >= least, f"only {len(found)} cases were run")
    holds(not bad, f"{len(bad)} of {len(found)}: {dict(sorted(bad.items())[:10])}")


@case("websocket/autobahn", ["websocket"], ["wstest"])
def autobahn(way):
    fuzz(f"ws://127.0.0.1:{way.front('websocket')}", SHORT, 240, 200)


@case("websocket/all of autobahn", ["websocket-detect"], ["wstest"], long=True)
def autobahn_all(way):
    fuzz(f"ws://127.0.0.1:{way.front('websocket-detect')}", LONG, 500, 1800)
