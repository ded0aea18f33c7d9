#!/usr/bin/env python3
"""What `meshctl migrate plan` says of files that are no configuration: where the mistake
is, with an end, within bounded memory, and with nothing written.

    tests/migrate/bad.py

MESHCTL names the program.
"""

import os
import re
import subprocess
import sys
import tempfile
import time

from cases import PROGRAMS

# In a debug build, on a busy machine; it is there to find what does not end.
PATIENCE_S = 30
MEMORY_KIB = 400 << 10
# sysexits.h: EX_CONFIG.
CONFIG = 78
MIB = 1 << 20

LINKERD = "routers:\n- protocol: http\n  label: out\n  dtab: |\n%s\n  servers:\n  - port: 4140\n"
HAPROXY = "defaults\n  mode http\nfrontend fe\n  bind 10.20.0.1:8000\n  default_backend a\nbackend a\n%s\n"
NGINX = "events {}\nhttp {\n  server {\n    listen 80;\n%s\n  }\n}\n"
ENVOY = "static_resources:\n  listeners: []\n  clusters:\n%s\n"


def large(line):
    return line * (50 * MIB // len(line) + 1)


# Name, format, files (the first one is given), and what is said of it; `None` where it is a
# configuration that has to be taken.
CASES = [
    ("no mapping", "linkerd1", {"l.yaml": "routers: [\n  - protocol: http\n"}, r"l\.yaml:\d+:\d+: .+"),
    ("a tab", "linkerd1", {"l.yaml": "routers:\n\t- protocol: http\n"}, r"l\.yaml:2:\d+: .+"),
    ("a dtab", "linkerd1", {"l.yaml": LINKERD % "    /svc => => /x;"}, r"l\.yaml:\d+:\d+: .+"),
    ("for ever", "linkerd1", {"l.yaml": LINKERD % "    /svc => /svc/a;"}, None),
    ("in a circle", "linkerd1", {"l.yaml": LINKERD % "    /svc => /a;\n    /a => /b | /b;\n    /b => /a | /a;"}, None),
    ("anchors", "linkerd1", {"l.yaml": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        "%s: &%s [%s]\n" % (b, b, ",".join(["*" + a] * 9)) for a, b in zip("abcdefgh", "bcdefghi"))}, r"l\.yaml:\d+:\d+: .+"),
    ("50 MB", "linkerd1", {"l.yaml": large("# nothing\n")}, r"l\.yaml:1:1: .*longer than"),
    ("deep", "linkerd1", {"l.yaml": "[" * 200_000}, r"l\.yaml:\d+:\d+: .+"),
    ("a quote", "haproxy", {"h.cfg": HAPROXY % '  http-request set-header X "a'}, r"h\.cfg:7:\d+: .+"),
    ("no address", "haproxy", {"h.cfg": HAPROXY % "  server s1"}, r"h\.cfg:7:\d+: .+"),
    ("no section", "haproxy", {"h.cfg": "bind 10.20.0.1:80\n"}, r"h\.cfg:1:\d+: .+"),
    ("no map", "haproxy", {"h.cfg": HAPROXY % "  http-request set-header X %[path,map(none.map)]"}, None),
    ("a circle", "haproxy", {"h.cfg": "defaults a from b\n  mode http\ndefaults b from a\n  mode http\nfrontend f from a\n  bind :80\n"}, r"h\.cfg:\d+:\d+: .+"),
    ("50 MB", "haproxy", {"h.cfg": large("# nothing\n")}, r"h\.cfg:1:1: .*longer than"),
    ("a long line", "haproxy", {"h.cfg": HAPROXY % ("  acl a path " + "/a " * (5 * MIB // 3))}, None),
    ("conditions", "haproxy", {"h.cfg": HAPROXY % ("  acl a path /a\n  acl b path /b\n  http-request deny if " + "a !b || b !a " * 3000)}, None),
    ("no end", "nginx", {"n.conf": "events {}\nhttp {\n  server {\n"}, r"n\.conf:\d+:\d+: .+"),
    ("no semicolon", "nginx", {"n.conf": NGINX % "    return 200\n"}, r"n\.conf:\d+:\d+: .+"),
    ("no file", "nginx", {"n.conf": "events {}\nhttp {\n  include none.conf;\n}\n"}, r"n\.conf:3:\d+: .*none\.conf"),
    ("a circle", "nginx", {"n.conf": "events {}\ninclude a.conf;\n", "a.conf": "include b.conf;\n", "b.conf": "include a.conf;\n"}, r"[ab]\.conf:1:\d+: .+"),
    ("itself", "nginx", {"n.conf": "events {}\ninclude n.conf;\ninclude n.conf;\n"}, r"n\.conf:\d+:\d+: .+"),
    ("50 MB", "nginx", {"n.conf": large("# nothing\n")}, r"n\.conf:1:1: .*longer than"),
    ("50 MB inside", "nginx", {"n.conf": "events {}\ninclude a.conf;\n", "a.conf": large("# nothing\n")}, r"a\.conf.*longer than"),
    ("much of much", "nginx", {"n.conf": "events {}\n" + "include a.conf;\n" * 50, "a.conf": "include b.conf;\n" * 50, "b.conf": "include c.conf;\n" * 50, "c.conf": "#" * MIB}, r"\.conf:\d+:\d+: .+"),
    ("deep", "nginx", {"n.conf": "events {}\nhttp {\n" + "a {\n" * 100_000}, r"n\.conf:\d+:\d+: .+"),
    ("a pattern", "nginx", {"n.conf": NGINX % "    location ~ '(((a{1,900}){1,900}){1,900})' { return 204; }"}, None),
    ("no mapping", "envoy", {"e.yaml": "static_resources: [\n"}, r"e\.yaml:\d+:\d+: .+"),
    ("no JSON", "envoy", {"e.json": '{"static_resources": {"listeners": [,]}}\n'}, r"e\.json:1:\d+: .+"),
    ("no type", "envoy", {"e.yaml": ENVOY % "  - name: 3\n    connect_timeout: soon"}, r"e\.yaml:\d+:\d+: .+"),
    ("50 MB", "envoy", {"e.yaml": large("# nothing\n")}, r"e\.yaml:1:1: .*longer than"),
    ("deep", "envoy", {"e.json": '{"static_resources":' + "[" * 200_000}, r"e\.json:\d+:\d+: .+"),
    ("anchors", "envoy", {"e.yaml": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        "%s: &%s [%s]\n" % (b, b, ",".join(["*" + a] * 9)) for a, b in zip("abcdefgh", "bcdefghi"))}, r"e\.yaml:\d+:\d+: .+"),
    *[("not there", of, {}, r"none:1:1: cannot be read: .+") for of in ("linkerd1", "haproxy", "nginx", "envoy")],
    *[("no text", of, {"x": b"\x00\xff\xfe\n"}, r"x:1:1: .*UTF-8.*") for of in ("linkerd1", "haproxy", "nginx", "envoy")],
]


def run(arguments, directory):
    """Code, what is said, and what it has taken, in KiB; None as code where it does not end."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(arguments, cwd=directory, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        end = time.monotonic() + PATIENCE_S
        pid = 0
        while not pid and time.monotonic() < end:
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            time.sleep(0.01)
        if not pid:
            process.kill()
            process.wait()
            return None, "", 0
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        return process.returncode, said.read(1 << 20).decode(errors="replace"), used.ru_maxrss


def wrong(of, files, expected, command):
    with tempfile.TemporaryDirectory() as directory:
        for name, content in files.items():
            with open(os.path.join(directory, name), "wb") as file:
                file.write(content if isinstance(content, bytes) else content.encode())
        first = next(iter(files), "none")
        arguments = [PROGRAMS["meshctl"], "migrate", command, "--from", of, first]
        arguments += ["--out", "made"] if command == "plan" else ["GET http://a.example/x"]
        code, said, used = run(arguments, directory)
        if code is None:
            return "has not ended after %d s" % PATIENCE_S
        if used > MEMORY_KIB:
            return "has taken %d MiB" % (used >> 10)
        if expected is None:
            return None if code in (0, CONFIG) else "ends with %d: %s" % (code, said[-300:])
        if code != CONFIG:
            return "ends with %d: %s" % (code, said[-300:])
        if not re.search(expected, said):
            return "says %r" % said[-300:]
        if len(said) > 2000:
            return "says %d bytes" % len(said)
        if os.path.exists(os.path.join(directory, "made")):
            return "has written something"
    return None


def main():
    failed = 0
    for name, of, files, expected in CASES:
        for command in ("plan", "explain"):
            if what := wrong(of, files, expected, command):
                failed += 1
                print("%s, %s: %s %s" % (of, name, command, what))
    print("%d files, %d wrong" % (len(CASES), failed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
