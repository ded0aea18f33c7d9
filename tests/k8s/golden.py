"""Sends the pods of mesh-inject's golden files to an API server, with a server-side
dry run, and compares what comes back with what the files say:

  golden.py DIR KUBECTL…

Files that assume another cluster (`#! server`, `#! oldest_kubelet`,
`#! native_sidecar`) or are no pods are left out, and counted."""

import json
import subprocess
import sys
from pathlib import Path

FEWEST = 60


def main():
    folder, kubectl = Path(sys.argv[1]), sys.argv[2:]
    wrong, sent, left_out = [], 0, 0
    for path in sorted(folder.glob("*.yaml")):
        given, _, expected = path.read_text().partition("\n---\n")
        said = dict(line[3:].split(": ", 1) for line in given.splitlines() if line.startswith("#! "))
        if "kind: Pod\n" not in given or said.keys() & {"server", "oldest_kubelet", "native_sidecar"}:
            left_out += 1
            continue
        namespace = "plain" if "namespace" in said else said.get("pod_security", "asked")
        command = [*kubectl, "-n", namespace, "create", "--dry-run=server", "-o", "json", "-f", "-"]
        done = subprocess.run(command, input=given, capture_output=True, text=True)
        sent += 1
        problem = compare(expected, done)
        if problem:
            wrong.append(f"{path.stem}: {problem}")
    for line in wrong:
        print(line)
    print(f"{sent} pods sent, {len(wrong)} otherwise than expected, {left_out} files of other clusters or kinds")
    sys.exit(bool(wrong) or sent < FEWEST)


def compare(expected, done):
    refusal = scalar(expected, "refused: ")
    if refusal is not None:
        if done.returncode == 0:
            return "not refused"
        return None if refusal in done.stderr.replace("\\\"", "\"") else f"refused with {done.stderr!r}"
    if done.returncode != 0:
        return f"refused: {done.stderr.strip()[:300]}"
    pod = json.loads(done.stdout)
    names = {key: [one["name"] for one in pod["spec"].get(key, [])] for key in ("initContainers", "containers")}
    skip = scalar(expected, "  isthmus.dev/skip-reason: ")
    if scalar(expected, "skipped: ") is not None:
        there = pod["metadata"].get("annotations", {}).get("isthmus.dev/skip-reason")
        if "isthmus-proxy" in sum(names.values(), []) and "skipped" not in expected:
            return f"injected: {names}"
        return None if there == skip else f"skip-reason {there!r}, not {skip!r}"
    wanted = order(expected)
    got = {key: names[key] for key in wanted}
    return None if got == wanted else f"{got}, not {wanted}"


def scalar(text, prefix):
    """One line of YAML, plain or in single quotes."""
    for line in text.splitlines():
        if line.startswith(prefix):
            value = line[len(prefix):]
            return value[1:-1].replace("''", "'") if value.startswith("'") else value
    return None


def order(text):
    found, inside, key = {}, False, None
    for line in text.splitlines():
        if not line.startswith(" "):
            inside = line == "order:"
        elif inside and line.startswith("  ") and line.endswith(":"):
            key = line.strip()[:-1]
        elif inside and key in ("initContainers", "containers") and line.startswith("  - "):
            found.setdefault(key, []).append(line[4:])
    return found


main()
