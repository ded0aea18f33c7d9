"""Where our own proxies' time goes, for one row: samples of perf (kernel and
user space), or instructions of user space counted by callgrind, which do not
depend on what else the machine does."""

import collections
import os
import re
import signal
import subprocess

from .process import require
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
    require([("perf", INSTALL)] if tool == "perf" else [("valgrind", INSTALL)])
    for contender in ours:
        print(f"\n{contender.label}: {rows[0].title}")
        try:
            {"perf": perf, "callgrind": callgrind}[tool](contender, rows[0], settings)
        except NotMeasured as error:
            print(f"  not measured: {error}")
    return 0


def perf(contender, row, settings):
    with Path(contender, row, settings) as path:
        path.drive(settings.warm_up or 1)
        pids = {process.role: process.child.pid for process in path.processes}
        record = os.path.join(settings.directory, "perf.data")
        # cpu-clock: virtual machines often have no counters.
        recorder = subprocess.Popen(
            ["perf", "record", "-q", "-g", "-e", "cpu-clock", "-F", str(FREQUENCY), "-o", record,
             "-p", ",".join(map(str, pids.values()))], stderr=subprocess.PIPE, text=True)
        outcome = path.drive(settings.duration)
        recorder.send_signal(signal.SIGINT)
        said = recorder.communicate(timeout=60)[1]
        script = subprocess.run(["perf", "script", "-i", record, "-F", "pid,ip,sym,dso"],
                                text=True, capture_output=True, timeout=300)
        stacks = samples(script.stdout)
        for role, pid in pids.items():
            found = stacks.get(pid, [])
            print(f"\n  {role}: {len(found)} samples, {outcome.units:.0f} {unit(row)} {'' if found else said + script.stderr}")
            print_shares("object", [stack[0][1] for stack in found], 6)
            print_shares("system call", [system_call(stack) for stack in found], 12)
            print_shares("function", [f"{name}  [{dso}]" for (name, dso), *_ in found], TOP)


def samples(script):
    """By process, the stacks of perf-script(1): [(function, object), …], innermost first."""
    stacks, stack = {}, None
    for line in script.splitlines():
        frame = re.match(r"\s+[0-9a-f]+ (.*) \(([^)]*)\)$", line)
        if frame and stack is not None:
            stack.append((frame[1], os.path.basename(frame[2])))
        elif line.strip().isdigit():
            stack = []
            stacks.setdefault(int(line), []).append(stack)
    return {pid: [stack for stack in found if stack] for pid, found in stacks.items()}


def system_call(stack):
    """What the kernel was asked for: the function under its entry point."""
    names = [name for name, _ in stack]
    if "do_syscall_64" in names[1:]:
        return names[names.index("do_syscall_64") - 1].removeprefix("__x64_sys_")
    return "(interrupts and the scheduler)" if stack[0][1].startswith("[kernel") else "(none: user space)"


def print_shares(by, names, count):
    print(f"    by {by}")
    for name, times in collections.Counter(names).most_common(count):
        print(f"    {times / len(names):7.1%}  {name[:140]}")


def callgrind(contender, row, settings):
    def out(role):
        return os.path.join(settings.directory, f"callgrind.{role}".replace(" ", "-"))

    def wrap(spec):
        return ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no",
                f"--callgrind-out-file={out(spec.role)}", *spec.command]

    with Path(contender, row, settings, wrap) as path:
        path.drive(settings.warm_up or 1)
        toggle(path, "on")
        outcome = path.drive(settings.duration)
        toggle(path, "off")
        for process in path.processes:
            subprocess.run(["callgrind_control", "-d", str(process.child.pid)], capture_output=True, timeout=60)
            for title, inclusive in ("in the function itself", "no"), ("with what it calls", "yes"):
                # A dump adds its number to the name.
                listing = subprocess.run(
                    ["callgrind_annotate", "--auto=no", "--tree=none", f"--inclusive={inclusive}", out(process.role) + ".1"],
                    text=True, capture_output=True, timeout=300)
                if listing.returncode != 0:
                    raise NotMeasured(listing.stderr.strip())
                print(f"\n  {process.role}: user-space instructions per request, {title}; {outcome.units:.0f} {unit(row)}")
                print_listing(listing.stdout, outcome.units, max if inclusive == "yes" else int.__add__)


def toggle(path, state):
    for process in path.processes:
        subprocess.run(["callgrind_control", "-i", state, str(process.child.pid)], capture_output=True, timeout=60)


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
