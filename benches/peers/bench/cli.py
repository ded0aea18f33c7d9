"""All rows and contenders, interleaved."""

import argparse
import contextlib
import fcntl
import os
import sys

from . import certs, honesty, load, lossy, process, profiling, report, rows, run, world
from .proxies import envoy, haproxy, isthmus, nginx, plain

# Measured unless --peers says otherwise.
PEERS = ["haproxy", "haproxy-h1", "nginx", "envoy", "envoy-h1", "plain"]
OURS = "isthmus"
ATTEMPTS = 2
LOCK = "/tmp/isthmus-bench.lock"


def arguments(given):
    parser = argparse.ArgumentParser(
        prog="make bench BENCH_ARGS=…", description="CPU per request of Isthmus and other proxies, side by side.",
        epilog="See benches/README.md for the method and how to read the figures.")
    parser.add_argument("--rows", default="", help="names or their beginnings, with commas [default: all]")
    parser.add_argument("--peers", default=",".join([*PEERS, OURS]),
                        help="contenders, with commas [default: %(default)s]")
    parser.add_argument("--ours", action="append", metavar="LABEL=PATH", default=[],
                        help="another edge-proxy to compare, e.g. before=/tmp/edge-proxy; may be repeated")
    parser.add_argument("--proxy", default=default_proxy(), metavar="PATH", help="our edge-proxy [default: %(default)s]")
    parser.add_argument("--reps", type=int, default=5, help="repetitions [default: %(default)s]")
    parser.add_argument("--duration", type=int, default=4, help="seconds measured [default: %(default)s]")
    parser.add_argument("--warm-up", type=int, default=1, help="seconds before that [default: %(default)s]")
    parser.add_argument("--quick", action="store_true",
                        help="three rows, three repetitions of two seconds; what is given besides holds")
    parser.add_argument("--cores", default="1,0", metavar="PROXIES,LOAD",
                        help="the proxies' core, and that of load and backends [default: %(default)s]")
    parser.add_argument("--congestion", default="cubic", help="for all, where a row does not say [default: %(default)s]")
    parser.add_argument("--headers", action="store_true", help="send eight headers as a service would, not only Host")
    parser.add_argument("-o", "--output", metavar="FILE", help="write every figure as JSON, after every row")
    parser.add_argument("--markdown", metavar="FILE", help="write the table for SPECIFICATION.md")
    parser.add_argument("--read", metavar="FILE", help="print the tables of an earlier -o and measure nothing")
    parser.add_argument("--profile", choices=["perf", "callgrind"],
                        help="one row: where CPU time (perf) or instructions (callgrind) of our proxies go")
    parser.add_argument("--keep", metavar="DIR", help="leave configurations and logs there")
    parser.add_argument("--check", action="store_true",
                        help="measure nothing, show that every contender verifies certificates on both sides")
    parser.add_argument("--list", action="store_true", help="list the rows")
    chosen = parser.parse_args(given)
    if chosen.quick:
        quick = parser.parse_args(["--rows", ",".join(rows.QUICK), "--reps", "3", "--duration", "2"])
        for name in ("rows", "reps", "duration"):
            if getattr(chosen, name) == parser.get_default(name):
                setattr(chosen, name, getattr(quick, name))
    return chosen


def default_proxy():
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(os.path.dirname(__file__), "../../../target"))
    return os.environ.get("EDGE_PROXY") or os.path.normpath(os.path.join(target, "release", "edge-proxy"))


def main(given):
    options = arguments(given)
    if options.list:
        for row in rows.ROWS:
            print(f"{row.name:16} {row.title}")
        return 0
    if options.read:
        report.print_all(report.read(options.read))
        return 0
    chosen = rows.select([name for name in options.rows.split(",") if name] or [row.name for row in rows.ROWS])
    contenders = select(options)
    process.require(load.NEEDS + [contender.needs for contender in contenders if contender.needs])
    # Removed by `run`, which also ends every process.
    directory = os.path.abspath(options.keep or os.environ["ISTHMUS_BENCH_DIR"])
    return compare(options, chosen, contenders, directory)


def select(options):
    """The contenders that are named, ours last; another build of ours is one more."""
    binaries = {OURS: options.proxy}
    for given in options.ours:
        label, found, path = given.partition("=")
        if not found:
            raise SystemExit(f"--ours {given}: write LABEL=PATH")
        binaries[label] = path
    named = options.peers.split(",")
    available = haproxy.contenders() + nginx.contenders() + envoy.contenders() + plain.contenders()
    known = [contender.label for contender in available] + [OURS]
    unknown = set(named) - set(known)
    if unknown:
        raise SystemExit(f"no peer {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    # `haproxy` is all that HAProxy carries, `haproxy/same-site` only that.
    chosen = [contender for contender in available
              if contender.label in named or contender.label.partition("/")[0] in named]
    for label, path in binaries.items():
        if label == OURS and OURS not in named:
            continue
        if not os.access(path, os.X_OK):
            raise SystemExit(f"no edge-proxy at {path}: cargo build --release -p edge-proxy, or set EDGE_PROXY")
        chosen += isthmus.contenders(label, path)
    return chosen


def compare(options, chosen, contenders, directory):
    proxy_core, load_core = (int(core) for core in options.cores.split(","))
    os.makedirs(directory, exist_ok=True)
    keys = os.path.join(os.environ["ISTHMUS_BENCH_DIR"], "certs")
    certs.make(keys)
    settings = run.Settings(options.duration, options.warm_up, proxy_core, load_core, directory,
                            keys, load.TYPICAL_HEADERS if options.headers else {})
    for name in "output", "markdown":
        if getattr(options, name):
            setattr(options, name, os.path.abspath(getattr(options, name)))
    # Load generators leave their files where they run.
    os.chdir(directory)
    # The harness itself must not take the proxies' core.
    os.sched_setaffinity(0, {load_core})
    world.build(options.congestion)
    if any(row.lossy for row in chosen):
        lossy.build()
    backends = load.start_backends(directory, load_core)
    if options.check:
        return honesty.check(contenders, settings)
    if options.profile:
        with alone():
            return profiling.profile(options.profile, chosen, contenders, settings)
    results = report.start(options, contenders)
    for row in chosen:
        world.set_congestion(row.congestion or options.congestion)
        results["rows"].append(repeat(row, contenders, settings, options.reps))
        report.print_row(results["rows"][-1])
        report.write(results, options)
        alive(backends)
    return 0


def alive(backends):
    """What answered must still be there, or the row says nothing."""
    for backend in backends:
        if backend.ended():
            raise SystemExit(f"a backend ended: {backend.tail()}")


def repeat(row, contenders, settings, repetitions):
    """Every contender in turn, again and again: what the machine does besides
    meets all of them."""
    carrying = [contender for contender in contenders if contender.carries(row)]
    result = report.row(row, carrying)
    for repetition in range(min(repetitions, row.repetitions or repetitions)):
        # Nobody is always first.
        turn = repetition % max(1, len(carrying))
        for contender in carrying[turn:] + carrying[:turn]:
            entry = result["contenders"][contender.label]
            if "missing" in entry:
                continue
            progress(f"{row.name}  {repetition + 1}/{repetitions}  {contender.label}")
            try:
                with alone():
                    entry["runs"].append(run.measure(contender, row, settings))
            except run.NotMeasured as error:
                # Once may be the machine; twice is the contender.
                entry["failed"] = entry.get("failed", 0) + 1
                if entry["failed"] == ATTEMPTS or not entry["runs"]:
                    entry["missing"] = str(error)
    progress("")
    return result


@contextlib.contextmanager
def alone():
    """Not while another comparison on this machine measures: they take turns."""
    lock = os.open(LOCK, os.O_RDONLY | os.O_CREAT)
    try:
        with contextlib.suppress(PermissionError):
            os.fchmod(lock, 0o644)  # other users only open it
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def progress(text):
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
