"""Where our own proxies' time goes, for one row: samples of perf (kernel and
user space), or instructions of user space counted by callgrind, which do not
depend on what else the machine does."""

import os
import re
import signal
import subprocess

from .process import find
from .run import NotMeasured, Path

# Functions that are printed for each proxy.
TOP = 40
# Samples a second; not a multiple of the timer's ticks.
FREQUENCY = 1999
INSTALL = "apt-get install linux-perf valgrind"


def profile(tool, rows, contenders, settings):
    if len(rows) != 1:
        raise SystemExit("--profile takes one row: --rows <name>")
    ours = [contender for contender in contenders if contender.ours and contender.carries(rows[0])]
    if not ours:
        raise SystemExit("--profile is of our own proxies: add isthmus to --peers")
    for contender in ours:
        print(f"\n{contender.label}: {rows[0].title}")
        try:
            {"perf": perf, "callgrind": callgrind}[tool](contender, rows[0], settings)
        except NotMeasured as error:
            print(f"  not measured: {error}")
    return 0


def perf(contender, row, settings):
    program = find("perf", INSTALL)
    with Path(contender, row, settings) as path:
        path.drive(settings.warm_up or 1)
        pids = {process.role: process.child.pid for process in path.processes}
        record = os.path.join(settings.directory, "perf.data")
        # cpu-clock: virtual machines often have no counters.
        recorder = subprocess.Popen(
            [program, "record", "-q", "-g", "-e", "cpu-clock", "-F", str(FREQUENCY), "-o", record,
             "-p", ",".join(map(str, pids.values()))], stderr=subprocess.PIPE, text=True)
        outcome = path.drive(settings.duration)
        recorder.send_signal(signal.SIGINT)
        said = recorder.communicate(timeout=60)[1]
        for role, pid in pids.items():
            report = subprocess.run(
                [program, "report", "-i", record, "--stdio", "--no-children", "-g", "none", "--pid", str(pid),
                 "--percentage", "relative", "--sort", "dso,symbol"], text=True, capture_output=True, timeout=300)
            lines = [line.rstrip() for line in report.stdout.splitlines() if line.strip() and line[0] != "#"]
            print(f"\n  {role}, share of samples ({outcome.units:.0f} {unit(row)})")
            print("\n".join("  " + line[:150] for line in lines[:TOP]) or f"  no samples: {said}{report.stderr}")


def callgrind(contender, row, settings):
    annotate, control = find("callgrind_annotate", INSTALL), find("callgrind_control", INSTALL)

    def out(role):
        return os.path.join(settings.directory, f"callgrind.{role}".replace(" ", "-"))

    def wrap(spec):
        return [find("valgrind", INSTALL), "-q", "--tool=callgrind", "--instr-atstart=no",
                f"--callgrind-out-file={out(spec.role)}", *spec.command]

    with Path(contender, row, settings, wrap) as path:
        path.drive(settings.warm_up or 1)
        toggle(control, path, "on")
        outcome = path.drive(settings.duration)
        toggle(control, path, "off")
        for process in path.processes:
            subprocess.run([control, "-d", str(process.child.pid)], capture_output=True, timeout=60)
            for title, inclusive in ("in the function itself", "no"), ("with what it calls", "yes"):
                # A dump adds its number to the name.
                listing = subprocess.run(
                    [annotate, "--auto=no", "--tree=none", f"--inclusive={inclusive}", out(process.role) + ".1"],
                    text=True, capture_output=True, timeout=300)
                if listing.returncode != 0:
                    raise NotMeasured(listing.stderr.strip())
                print(f"\n  {process.role}: user-space instructions per request, {title}; {outcome.units:.0f} {unit(row)}")
                print_listing(listing.stdout, outcome.units, max if inclusive == "yes" else int.__add__)


def toggle(control, path, state):
    for process in path.processes:
        subprocess.run([control, "-i", state, str(process.child.pid)], capture_output=True, timeout=60)


def print_listing(text, units, join):
    """callgrind_annotate's lines as instructions per request and function; it
    has a line for each file from which code was inlined there."""
    counts, total = {}, 0
    for line in text.splitlines():
        found = re.match(r"\s*([\d,]+) \([^)]*\)\s+(.*)", line)
        if not found:
            continue
        count, what = int(found[1].replace(",", "")), found[2]
        if what == "PROGRAM TOTALS":
            total = count
            continue
        function = re.match(r"[^:]*:(.*?)(?: \[[^\]]*\])?$", what)
        name = function[1] if function else what
        counts[name] = join(counts.get(name, 0), count)
    print(f"  {total / units:8.0f}  all")
    for name, count in sorted(counts.items(), key=lambda item: -item[1])[:TOP]:
        print(f"  {count / units:8.0f}  {count / max(1, total):6.1%}  {name[:120]}")


def unit(row):
    return row.unit.split("/")[-1] + ("s" if row.unit.startswith("CPU µs") else "")
