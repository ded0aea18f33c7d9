"""Processes, and waiting for their ports."""

import json
import os
import signal
import socket
import subprocess
import time

# A debug build on a busy machine.
START = 60


class Failed(Exception):
    """A case does not hold; the text says why."""


class Process:
    """A program of this run; ended by `stop`, or with the namespace."""

    def __init__(self, name, command, directory, env=None, cwd=None):
        self.name, self.log = name, os.path.join(directory, f"{name}.log")
        with open(self.log, "w") as out:
            self.child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd,
                env={**os.environ, **(env or {})}, start_new_session=True)

    def wait_for(self, *ports):
        """Until it listens on all of them."""
        deadline = time.monotonic() + START
        for port in ports:
            while not listens(port):
                if self.child.poll() is not None:
                    raise SystemExit(f"{self.name} ended at once:\n{self.tail()}")
                if time.monotonic() > deadline:
                    raise SystemExit(f"{self.name} does not listen on {port}:\n{self.tail()}")
                time.sleep(0.05)
        return self

    def check(self):
        """No case may end it."""
        if self.child.poll() is not None:
            raise SystemExit(f"{self.name} has ended:\n{self.tail(30)}")

    def tail(self, lines=8):
        with open(self.log, errors="replace") as file:
            return "".join(file.readlines()[-lines:]).strip()

    def stop(self):
        if self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def run(command, timeout=60, stdin=b"", status=0, env=None):
    """What a command prints, both streams apart; Failed if it ends with
    another status than `status` (None: any)."""
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout,
                              env={**os.environ, **(env or {})})
    except subprocess.TimeoutExpired as error:
        said = ((error.stdout or b"") + (error.stderr or b""))[-600:].decode(errors="replace")
        raise Failed(f"{command[0]}: not done within {timeout} s; {said}") from None
    if status is not None and done.returncode != status:
        said = (done.stdout[-600:] + done.stderr[-600:]).decode(errors="replace").strip()
        raise Failed(f"{command[0]}: exit status {done.returncode}, not {status}: {said}")
    return done


def write(directory, name, content):
    """Configuration for whoever reads JSON, or YAML, of which it is a part."""
    path = os.path.join(directory, name)
    with open(path, "w") as file:
        json.dump(content, file, indent=1)
    return path
