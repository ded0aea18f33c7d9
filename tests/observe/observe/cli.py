"""Runs the cases in their order and counts."""

import argparse
import os
import time

from interop.process import Failed

from . import cases
from .mesh import MACHINES, SITES, Mesh, programs
from .observers import OTLP_GRPC, OTLP_HTTP, ZIPKIN, Observers
from .traffic import Traffic


def arguments(given):
    parser = argparse.ArgumentParser(
        prog="make test-observe OBSERVE_ARGS=…", description="Our mesh, and observers that nobody here wrote.")
    parser.add_argument("--keep", metavar="DIR", help="leave configurations and logs there")
    parser.add_argument("--target", default=default_target(), help="where our programs are [default: %(default)s]")
    return parser.parse_args(given)


def default_target():
    here = os.path.dirname(os.path.abspath(__file__))
    return os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(here, "../../../target")), "debug")


def main(given):
    options = arguments(given)
    directory = os.path.abspath(options.keep or os.environ["ISTHMUS_OBSERVE_DIR"])
    os.makedirs(directory, exist_ok=True)
    examples = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../examples")
    mesh = Mesh(programs(options.target), directory)
    observers = Observers(os.environ["ISTHMUS_OBSERVE_CACHE"], examples, directory).start(mesh.targets())
    ring = Ring([mesh, observers])
    names = [one.name for one in SITES + MACHINES]
    # Both ways of OTLP in one tree.
    otlp = {name: ("otlp-grpc", OTLP_GRPC) if name in ["west", "vm1"] else ("otlp-http", OTLP_HTTP)
            for name in names}
    ring.must("the mesh starts", lambda: mesh.start(otlp))
    ring.must("the observers start", observers.wait)
    for name, path in cases.PATHS.items():
        ring.case(f"OTLP: one tree over four hops and two sites, {name}",
                  lambda p=path: cases.tree(p, observers.otlp_spans))
    mesh.trace({name: ("zipkin", ZIPKIN) for name in names})
    ring.must("proxies and gateways start anew", mesh.restart_proxies)
    for name, path in cases.PATHS.items():
        ring.case(f"Zipkin: one tree over four hops and two sites, {name}",
                  lambda p=path: cases.tree(p, observers.zipkin_spans))
    with Traffic() as traffic:
        for query in cases.queries():
            ring.case(query["source"], lambda q=query: cases.answered(observers, q))
        ring.case("statsd takes every line", lambda: cases.statsd(observers))
        ring.case("meshctl routes", lambda: cases.routes(mesh))
        ring.case("meshctl edges", lambda: cases.edges(mesh))
        ring.case("meshctl identity", lambda: cases.identities(mesh))
        ring.case("meshctl tap of a whole site", lambda: cases.tap(mesh))
    ring.case("no call has failed", lambda: traffic.verdict())
    return ring.result()


class Ring:
    def __init__(self, watched):
        self.watched, self.passed, self.failed, self.begun = watched, 0, [], time.monotonic()

    def must(self, name, check):
        self.case(name, check)
        if self.failed:
            raise SystemExit(self.result())

    def case(self, name, check):
        start, problem = time.monotonic(), None
        try:
            check()
        except Failed as error:
            problem = str(error)
        except Exception as error:  # of an observer's answer
            problem = f"{type(error).__name__}: {error}"
        for each in self.watched:
            each.check()
        print(f"{'FAILED' if problem else 'ok':6} {name:74} {time.monotonic() - start:6.1f} s", flush=True)
        if problem:
            print("       " + problem.replace("\n", "\n       "), flush=True)
            self.failed.append(name)
        else:
            self.passed += 1

    def result(self):
        print(f"--- {time.monotonic() - self.begun:.0f} s")
        for name in self.failed:
            print(f"failed: {name}")
        print(f"{self.passed} passed, {len(self.failed)} failed")
        return 1 if self.failed or not self.passed else 0
