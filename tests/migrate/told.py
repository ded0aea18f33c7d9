"""What a parity report says about the lines that a request goes by."""

import json
import os
import re
import subprocess

import world
from cases import PROGRAMS


def is_silent(line):
    line = line.strip()
    return not line.strip("{}[](),;\"' \t") or line.startswith("#")


def untold(report, path):
    """Lines that the report does not speak of."""
    told = set()
    for file in report["files"]:
        for statement in file["statements"]:
            if "nobody has looked at this line" in statement.get("question", ""):
                continue
            told.update(range(statement["line"], statement["last_line"] + 1))
    with open(path) as file:
        return [n for n, line in enumerate(file.read().split("\n"), 1) if n not in told and not is_silent(line)]


def reasons(name, path, report, request):
    """Where the request goes by, what the report says that is not exact."""
    command = [PROGRAMS["meshctl"], "migrate", "explain", "--from", name, path, "-o", "json"]
    command += ["--hosts", os.path.join(world.LEGACY, "hosts"), "--listener", request["listener"]]
    command += ["--client", request["source"]]
    if not request["is_tcp"]:
        for header in request.get("headers", []):
            command += ["-H", ": ".join(header)]
        if request.get("host") is not None:
            command += ["-H", "host: " + request["host"]]
        command += ["--http10"] if request.get("http10") else []
        command.append("%s %s" % (request.get("method", "GET"), request["target"]))
    else:
        command.append("TLS " + request["server_name"] if request.get("server_name") else "TCP")
    explained = subprocess.run(command, cwd=os.path.dirname(path), capture_output=True, text=True)
    if explained.returncode:
        return [], [explained.stderr.strip()]
    explained = json.loads(explained.stdout)
    steps = [(who, step["place"], step["what"]) for who in ("legacy", "ours") for step in explained[who]["why"]]
    told = ["%s: %s %s" % step for step in steps]
    lines = {int(place.rsplit(":", 2)[1]) for _, place, _ in steps if place}
    if name == "envoy":
        with open(path) as file:
            parts_of_json(json.load(file), 1, frozenset(lines), lines)
    if name == "haproxy":
        lines |= whole_sections(path, lines)
    said = []
    for statement in (s for file in report["files"] for s in file["statements"]):
        if statement["verdict"] != "exact" and statement["line"] in lines:
            said.append(statement)
    return said, told


def whole_sections(path, lines):
    """Lines that are for all of a section that one of the lines is in."""
    found, section, is_in = set(), [], False
    with open(path) as file:
        text = file.read().split("\n")
    for number, line in enumerate([*text, "end"], 1):
        if line[:1].isalpha():
            found.update(section if is_in else [])
            section, is_in = [], False
        is_in |= number in lines
        if line.split()[:1] and line.split()[0] in ("cookie", "balance", "option", "http-response", "stats"):
            section.append(number)
    return found


def parts_of_json(value, line, lines, found, is_around=False):
    """Of a value that is written from that line on, its last line, and whether one of the
    lines is in it. Adds lines of objects that begin at one of them and hold no other, and
    in listeners those of all fields beside."""
    if not isinstance(value, (dict, list)) or not value:
        return line, False
    end, parts = line, []
    for name, part in value.items() if isinstance(value, dict) else enumerate(value):
        first = end + 1
        end, holds = parts_of_json(part, first, lines, found, is_around or name == "listeners")
        parts.append((range(first, end + 1), holds))
    end += 1
    if any(holds for _, holds in parts):
        if is_around and isinstance(value, dict):
            found.update(*(part for part, holds in parts if not holds))
        return end, True
    if line in lines and isinstance(value, dict):
        found.update(range(line, end + 1))
    return end, line in lines


# What is told in these words makes these differences; decisions make any.
TOLD = [
    ("the path is not |the query |sends no query|no query there", "target|answer's header location"),
    ("append-slash|answered with|nobody|answers of errors stay", "outcome|answer's header location|body"),
    ("the text has variables|the page that says so", "body"),
    ("cookie is not sent|cookie", "answer's header set-cookie"),
    ("the method is not changed", "method|outcome"),
    ("hash of the cookie|names of TLS", "server|outcome"),
    ("split by chance|first share", "server|outcome|header host"),
    ("the host is as the client names it|port (of|in) .?Host.? is left out", "answer's header location"),
    ("it leads to no path", "answer's header location"),
    ("its port gives way to", "answer's header location"),
    ("nginx closes the connection", "outcome"),
    ("stays encoded there", "target|answer's header|body"),
    ("has headers of add_header as they are around it|answers do not have the header|with us to all", "answer's header"),
    ("applications do not get it", "header (?!host)"),
    ("begin with / after this is answered 500", "outcome"),
]
PLAIN = re.compile("(?!.*//)(?!.*/[.])/[^%]*")


def excuses(what, statement, request, theirs):
    """Whether the statement tells of such a difference."""
    text = text_of(statement)
    if "are compared as they are sent" in text:
        return not PLAIN.fullmatch(request["target"].split("?")[0])
    if statement["verdict"] == "decision" or "refuses" in text and theirs.get("answered") in (400, 426):
        return True
    if text.startswith("Envoy refuses some requests itself"):
        return False
    header = re.fullmatch("(?:answer's )?header (.*)", what)
    if header and re.search(r"(?<![\w-])%s(?![\w-])" % re.escape(header[1]), text + " " + statement["text"], re.I):
        return True
    return any(re.search(words, text) and re.match(differences, what) for words, differences in TOLD)


def text_of(statement):
    return statement.get("how") or statement.get("meaning") or statement.get("question")
