#!/usr/bin/env python3
"""Eight hosts with a legacy proxy and an application each, in network namespaces: moved
to ours and back under constant load, one with a configuration that is wrong on purpose;
and whoever takes part is killed at every step. The proxies are HAProxy, nginx, Envoy, and
for Linkerd 1.x, which nobody can install, a stand-in that is made of Finagle.

  fleet.py [THEME…]    shadow, moves, wrong, killed; all of them unless named
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time

from fleet import host, killed, legacy, moves, shadow, world

THEMES = {"shadow": shadow.shadow, "moves": moves.moves, "wrong": moves.wrong, "killed": killed.killed}
# Once.
FIRST = {"archive": host.archive}


def run(name, theme):
    began = time.monotonic()
    print(f"  {name}: {theme.__doc__.strip()}", flush=True)
    work = tempfile.mkdtemp()
    # All that a theme has started ends with its namespaces.
    own = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    code = subprocess.call([*own, sys.executable, __file__, "--inside", name, work])
    if code:
        sys.exit(f"{name} failed; what it has left is in {work}")
    shutil.rmtree(work)
    print(f"  {name}: {time.monotonic() - began:.0f} s", flush=True)


def main():
    if sys.argv[1:2] == ["--inside"]:
        world.surroundings()
        return (THEMES | FIRST)[sys.argv[2]](sys.argv[3])
    missing = [tool for tool in ("haproxy", "nginx", "java", "nft", legacy.ENVOY) if not shutil.which(tool)]
    if missing or not os.path.exists(legacy.FINAGLE + "/router.jar"):
        sys.exit(f"the fleet lacks {missing or 'Finagle'}; install with: tests/interop/setup and tests/migrate/setup")
    if not os.path.exists(legacy.ARCHIVE):
        run("archive", host.archive)
    for name in sys.argv[1:] or THEMES:
        run(name, THEMES[name])


if __name__ == "__main__":
    main()
