"""Results as a dictionary (what -o writes), and as tables."""

import datetime
import json
import os
import platform
import statistics
import subprocess

from .rows import ADDED, BULK, ROWS

GOALS = {row.name: row for row in ROWS}


def start(options, contenders):
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "settings": {name: getattr(options, name) for name in
                     ("reps", "duration", "warm_up", "cores", "congestion", "headers")},
        "contenders": [contender.label for contender in contenders],
        "rows": [],
    }


def row(what, contenders):
    return {
        "name": what.name, "title": what.title, "unit": what.unit,
        "contenders": {contender.label: {"ours": contender.ours, "runs": []} for contender in contenders},
    }


def write(results, options):
    if options.output:
        with open(options.output, "w") as file:
            json.dump(results, file, indent=1)
    if options.markdown:
        with open(options.markdown, "w") as file:
            file.write(markdown(results))


def read(path):
    with open(path) as file:
        return json.load(file)


def print_all(results):
    print(headline(results))
    for one in results["rows"]:
        print_row(one)
    print()
    print(markdown(results), end="")


def headline(results):
    settings = results["settings"]
    return (f"{results['machine']}; {results['date']}; commit {results['commit']}; "
            f"{settings['reps']} × {settings['duration']} s, interleaved; "
            + ", ".join(f"{name} {version}" for name, version in results["versions"].items()))


def values(entry, key="value"):
    return [run[key] for run in entry["runs"] if key in run]


def median(numbers):
    return statistics.median(numbers) if numbers else None


def print_row(one):
    print(f"\n{one['name']}: {one['title']} [{one['unit']}]")
    reference = next((entry for entry in one["contenders"].values() if entry["ours"] and entry["runs"]), None)
    print(f"  {'':18}{'min':>8}{'median':>8}{'spread':>8}{'ours/it':>14}   "
          f"{'by proxy (median)':44}{'user':>7}{'per s':>9}{'p50/p99 ms':>13}{'core':>6}{'others':>7}")
    for label, entry in one["contenders"].items():
        if entry["runs"]:
            print(f"  {label:18}" + figures(entry, reference))
        if "missing" in entry:
            print(f"  {label:18}not measured: {entry['missing'][:300]}")
        elif "failed" in entry:
            print(f"  {label:18}{entry['failed']} repetition failed and is left out")
        errors = sum(values(entry, "errors"))
        if errors:
            print(f"  {label:18}{errors} requests failed: these figures do not count")
        if values(entry, "goodput"):
            print(f"  {label:18}" + goodput(entry["runs"]))
    for line in verdicts(one):
        print("  " + line)


def figures(entry, reference):
    found = values(entry)
    low, middle = min(found), median(found)
    spread = f"{(max(found) - low) / middle:.0%}" if middle else "–"
    ratio = "–"
    if reference is not None and reference is not entry:
        ours = values(reference)
        ratio = f"{min(ours) / low:.2f} / {median(ours) / middle:.2f}"
    runs = entry["runs"]
    split = "  ".join(f"{short(role)} {number(median([run['split'][role] for run in runs]))}"
                      for role in runs[0]["split"])
    latencies = [median([run["latency_ms"][name] for run in runs if run.get("latency_ms")])
                 for name in ("p50", "p99") if runs[0].get("latency_ms")]
    rate, user = median(values(entry, "rate")), median(values(entry, "user"))
    return (f"{number(low):>8}{number(middle):>8}{spread:>8}{ratio:>14}   {split:44}"
            f"{number(user):>7}{number(rate):>9}{'/'.join(number(value) for value in latencies) or '–':>13}"
            f"{percent(median(values(entry, 'core_used'))):>6}{percent(median(values(entry, 'core_others'))):>7}")


def goodput(runs):
    """Of good answers, at twice the peak."""
    peak = {key: median([run["peak_latency_ms"][key] for run in runs]) for key in ("p50", "p99")}
    at = {key: median([run[key] for run in runs]) for key in ("goodput", "value", "peak_rate", "refused")}
    return (f"goodput {percent(at['goodput'])} of the peak, for each CPU second {percent(1 / at['value'])}; "
            f"{number(at['refused'])} refused/s; peak {number(at['peak_rate'])}/s, "
            f"{number(peak['p50'])}/{number(peak['p99'])} ms")


def short(role):
    return {"destination": "dest.", "west gateway": "west gw", "east gateway": "east gw"}.get(role, role)


def number(value):
    if value is None:
        return "–"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}"


def percent(value):
    return "–" if value is None else f"{value:.0%}"


def verdicts(one):
    """The goals of numbers.md, as ratios in one run."""
    goals = GOALS.get(one["name"])
    measured = {label: entry for label, entry in one["contenders"].items() if entry["runs"]}
    for label, entry in measured.items():
        if not entry["ours"]:
            continue
        name = f"{label}: " if sum(other["ours"] for other in measured.values()) > 1 else ""
        for goal in goals.goals if goals else ():
            peers = [peer for peer in goal.peers if peer in measured]
            if peers:
                yield name + against(goal.ratio, entry, measured, peers)
        for key, limit in goals.limits if goals else ():
            worst = max(values(entry, key))
            unit = goals.unit if key == "value" else f"{goals.unit} at {key}"
            yield f"{name}goal ≤ {limit:.3g} {unit}: {worst:.3g} {met(worst <= limit)}"
        yield from across(one, label, entry, measured)


def against(ratio, ours, measured, peers):
    best = {key: min(pick(values(measured[peer])) for peer in peers) for key, pick in PICKS.items()}
    found = {key: pick(values(ours)) / best[key] for key, pick in PICKS.items()}
    return (f"goal ≤ {ratio} × {' or '.join(peers)}: {found['min']:.2f} (min), {found['median']:.2f} (median) "
            f"{met(found['median'] <= ratio)}")


PICKS = {"min": min, "median": statistics.median}


def across(one, label, entry, measured):
    """Across sites: more than two hops in the same run."""
    build, _, way = label.rpartition("/")
    near = measured.get(f"{build}/same-site")
    if way not in ("tls", "quic") or near is None:
        return
    more = {key: pick(values(entry)) - pick(values(near)) for key, pick in PICKS.items()}
    if one["name"] == "cross-bulk":
        yield f"{label}: " + against(BULK[way], entry, measured, [f"{build}/same-site"])
    yield f"{label} minus {build}/same-site: {more['min']:+.2f} (min), {more['median']:+.2f} (median)"
    peer = measured.get("haproxy/same-site")
    if one["name"] in ADDED and peer is not None:
        limit = ADDED[one["name"]] * (2 if way == "quic" else 1)
        found = {key: more[key] / pick(values(peer)) for key, pick in PICKS.items()}
        yield (f"  of haproxy/same-site {found['min']:.2f} (min), {found['median']:.2f} (median), "
               f"goal ≤ {limit:.2f} {met(found['median'] <= limit)}")


def met(fine):
    return "met" if fine else "NOT MET"


def markdown(results):
    """For SPECIFICATION.md: median, and minimum in brackets."""
    tables = [table([one for one in results["rows"] if across_sites(one) == apart], results["contenders"])
              for apart in (False, True)]
    return "\n\n".join([headline(results) + ". Medians (minima).", *filter(None, tables)]) + "\n"


def across_sites(one):
    return one["name"].startswith(("cross-", "loss-"))


def table(rows, order):
    """Its columns are the contenders that any of the rows has."""
    labels = [label for label in order if any(label in one["contenders"] for one in rows)]
    if not labels:
        return ""
    lines = ["| work | unit | " + " | ".join(labels) + " |", "|---" * (len(labels) + 2) + "|"]
    for one in rows:
        cells = []
        for label in labels:
            found = values(one["contenders"].get(label, {"runs": []}))
            cells.append(f"{number(median(found))} ({number(min(found))})" if found else "–")
        lines.append(f"| {one['title']} | {one['unit']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def commit():
    here = os.path.dirname(__file__)
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, text=True, capture_output=True)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, text=True, capture_output=True)
    except OSError:
        return "unknown"
    return head.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def machine():
    model = "unknown CPU"
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}"


def versions():
    commands = {"haproxy": ["haproxy", "-v"], "nginx": ["nginx", "-v"], "wrk": ["wrk", "-v"],
                "h2load": ["h2load", "--version"], "iperf3": ["iperf3", "-v"]}
    found = {"envoy": "1.40.0"}
    for name, command in commands.items():
        try:
            done = subprocess.run(command, text=True, capture_output=True, timeout=5)
        except OSError:
            continue
        words = (done.stdout + done.stderr).replace("/", " ").split()
        numbers = (word for word in words if any(c.isdigit() for c in word) and "." in word)
        found[name] = next(numbers, "unknown")
    return found
