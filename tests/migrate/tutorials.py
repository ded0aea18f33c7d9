#!/usr/bin/env python3
"""Runs every block of docs/migrate as it is written, in a copy of tests/legacy."""

import os
import re
import shutil
import subprocess
import sys
import tempfile

import cases
import world


def main():
    world.alone()
    programs = tempfile.mkdtemp()
    for name in ("meshctl", "edge-proxy"):
        os.symlink(os.path.abspath(cases.PROGRAMS[name]), os.path.join(programs, name))
    environment = dict(os.environ, PATH=programs + ":" + os.environ["PATH"])
    docs = os.path.join(world.ROOT, "docs", "migrate")
    failed = total = 0
    for page in sorted(os.listdir(docs)):
        with open(os.path.join(docs, page)) as file:
            blocks = re.findall(r"^```sh\n(.*?)^```", file.read(), re.M | re.S)
        with tempfile.TemporaryDirectory() as directory:
            shutil.copytree(world.LEGACY, directory, dirs_exist_ok=True)
            for block in blocks:
                total += 1
                command = ["timeout", "60", "bash", "-euo", "pipefail", "-c", block]
                ran = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
                # The hop between two Linkerds is another with us, as its page says.
                is_other = "NOT the same" in ran.stdout and "--listener outgoing" not in block
                if ran.returncode or is_other:
                    failed += 1
                    print("%s:\n%s\n%s%s" % (page, block, ran.stdout, ran.stderr))
    shutil.rmtree(programs)
    print("%d blocks of docs/migrate, %d failed" % (total, failed))
    sys.exit(1 if failed or total < 12 else 0)


if __name__ == "__main__":
    main()
