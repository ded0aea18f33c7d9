"""Processes: pinned, in a namespace, and what they use."""

import os
import shutil
import signal
import subprocess
import time

PAGE = os.sysconf("SC_PAGE_SIZE")
# Connections of a thousand clients, both ways.
FILES = 65536


class Process:
    """A program on one core in one namespace; ended by `stop`."""

    def __init__(self, role, host, core, command, log):
        self.role, self.log = role, log
        line = ["nsenter", f"--net=/run/netns/{host}", "taskset", "-c", str(core), *command]
        with open(log, "w") as out:
            self.child = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def pids(self):
        """Its own and those of its children (nginx has a worker)."""
        found, ahead = [], [self.child.pid]
        while ahead:
            pid = ahead.pop()
            found.append(pid)
            try:
                for task in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{task}/children") as file:
                        ahead += [int(child) for child in file.read().split()]
            except OSError:
                continue
        return found

    def cpu(self):
        """Seconds of CPU since the start of all its threads, also those that
        have ended: (all, of it in user space). The first is exact to the
        nanosecond, the second to the kernel's ticks."""
        total = user = 0.0
        for pid in self.pids():
            total += time.clock_gettime(process_clock(pid))
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            user += int(fields[11]) / os.sysconf("SC_CLK_TCK")
        return total, user

    def resident(self):
        """Resident memory in MiB, summed over its processes."""
        pages = 0
        for pid in self.pids():
            with open(f"/proc/{pid}/statm") as file:
                pages += int(file.read().split()[1])
        return pages * PAGE / 2**20

    def ended(self):
        return self.child.poll() is not None

    def tail(self):
        """The last that it said, for errors."""
        with open(self.log, errors="replace") as file:
            return "".join(file.readlines()[-8:]).strip()

    def stop(self):
        """Without a drain: nothing is measured any more. What a killed parent
        leaves behind is killed too."""
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.child.wait()


def process_clock(pid):
    """The clock of another process's CPU time: clock_getcpuclockid(3)."""
    return (~pid << 3) | 2


def core_times(core):
    """(busy, idle) seconds of a core since boot."""
    with open("/proc/stat") as file:
        for line in file:
            if line.startswith(f"cpu{core} "):
                values = [int(value) for value in line.split()[1:9]]
                idle = values[3] + values[4]
                tick = os.sysconf("SC_CLK_TCK")
                return (sum(values) - idle) / tick, idle / tick
    raise SystemExit(f"there is no core {core}; see --cores")


def require(needs):
    """Says everything that is missing, and how to get it."""
    missing = [f"  {program}: {remedy}" for program, remedy in dict.fromkeys(needs) if not shutil.which(program)]
    if missing:
        raise SystemExit("missing; benches/peers/setup installs everything, or\n" + "\n".join(missing))
