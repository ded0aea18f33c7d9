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
    ours = dict(cases.PROGRAMS)
    ours["vm-agent"] = os.path.join(os.path.dirname(ours["meshctl"]), "vm-agent")
    for name in ("meshctl", "edge-proxy", "vm-agent", "envoy"):
        found = shutil.which(ours[name]) or ours[name]
        os.symlink(os.path.abspath(found), os.path.join(programs, name))
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
                # Who goes on in the background holds a file, not us.
                with tempfile.TemporaryFile("w+") as said:
                    ran = subprocess.run(command, cwd=directory, env=environment, stdout=said, stderr=said)
                    said.seek(0)
                    text = said.read()
                # The hop between two Linkerds is another with us, as its page says.
                is_other = "NOT the same" in text and "--listener outgoing" not in block
                if ran.returncode or is_other:
                    failed += 1
                    print("%s:\n%s\n%s" % (page, block, text))
    shutil.rmtree(programs)
    print("%d blocks of docs/migrate, %d failed" % (total, failed))
    sys.exit(1 if failed or total < 12 else 0)


if __name__ == "__main__":
    main()
