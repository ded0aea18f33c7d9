"""Runs the cases and counts."""

import argparse
import os
import shutil
import time

from bench import certs

from . import cases, servers, world
from .process import Failed


def arguments(given):
    parser = argparse.ArgumentParser(
        prog="make test-interop INTEROP_ARGS=…", description="Our proxies and peers that nobody here wrote.")
    parser.add_argument("only", nargs="*", metavar="CASE", help="beginnings of names [default: all]")
    parser.add_argument("--hops", default="2,1",
                        help="2: two proxies and mutual TLS; 1: one, plaintext; or both [default: %(default)s]")
    parser.add_argument("--long", action="store_true", help="the long forms too")
    parser.add_argument("--keep", metavar="DIR", help="leave configurations and logs there")
    parser.add_argument("--list", action="store_true", help="list the cases")
    parser.add_argument("--proxy", default=default_proxy(), help="our edge-proxy [default: %(default)s]")
    return parser.parse_args(given)


def default_proxy():
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(os.path.dirname(__file__), "../../../target"))
    return os.environ.get("EDGE_PROXY") or os.path.normpath(os.path.join(target, "debug", "edge-proxy"))


def main(given):
    options = arguments(given)
    chosen = select(cases.ALL, options)
    if options.list:
        print("\n".join(one.name + (" (long)" if one.long else "") for one in cases.ALL))
        return 0
    used = servers.behind({world.SERVICES[service][1] for one in chosen for service in one.services})
    require(chosen, used, options.proxy)
    directory = os.path.abspath(options.keep or os.environ["ISTHMUS_INTEROP_DIR"])
    os.makedirs(directory, exist_ok=True)
    keys = os.path.join(os.environ["ISTHMUS_INTEROP_DIR"], "certs")
    certs.make(keys)
    os.umask(0o022)
    behind = servers.start(used, directory)
    ways = [world.WAYS[hops]().start(options.proxy, directory, keys) for hops in options.hops.split(",")]
    return count(chosen, ways, behind)


def select(all_cases, options):
    chosen = [one for one in all_cases if not options.only or any(one.name.startswith(name) for name in options.only)]
    chosen = [one for one in chosen if options.long or not one.long or options.only]
    if not chosen:
        raise SystemExit("no such case: see --list")
    return chosen


def require(chosen, used, proxy):
    """Nothing is skipped: what is missing ends the run."""
    if not os.access(proxy, os.X_OK):
        raise SystemExit(f"no edge-proxy at {proxy}; install with: cargo build -p edge-proxy")
    needs = dict.fromkeys(need for one in chosen for need in one.needs)
    missing = servers.require(used) + [need for need in needs if not shutil.which(need)]
    if missing:
        raise SystemExit(f"missing: {', '.join(dict.fromkeys(missing))}; install with: tests/interop/setup")


def count(chosen, ways, behind):
    passed, failed, begun = 0, [], time.monotonic()
    for one in chosen:
        for way in ways:
            start, problem = time.monotonic(), None
            try:
                one.check(way)
            except Failed as error:
                problem = str(error)
            except Exception as error:  # a client library's own
                problem = f"{type(error).__name__}: {error}"
            for process in [*behind, *way.processes]:
                process.check()
            name = f"{one.name} ({way.label})"
            print(f"{'FAILED' if problem else 'ok':6} {name:58} {time.monotonic() - start:6.1f} s", flush=True)
            if problem:
                print("       " + problem.replace("\n", "\n       "), flush=True)
                failed.append(name)
            else:
                passed += 1
    print(f"--- {time.monotonic() - begun:.0f} s")
    for name in failed:
        print(f"failed: {name}")
    print(f"{passed} passed, {len(failed)} failed")
    return 1 if failed or not passed else 0
