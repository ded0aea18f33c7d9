"""One measurement: start the proxies, warm them up, measure, end them."""

import os
import time
from dataclasses import dataclass

from . import load, lossy
from .load import LoadFailed
from .process import Process, core_times

# Until everything on the path answers; a gateway's link needs the longest.
READY = 20
# Idle processes settle: buffers and pages are given back, timers have run.
SETTLE = 22


class NotMeasured(Exception):
    """A proxy ended, or the path did not answer; says why."""


@dataclass
class Settings:
    duration: float
    warm_up: float
    proxy_core: int
    load_core: int
    directory: str
    certs: str
    headers: dict


class Path:
    """The proxies of one contender for one row, running."""

    def __init__(self, contender, row, settings, wrap=lambda spec: spec.command, ready=True):
        self.row, self.settings = row, settings
        self.address = contender.virtual_address(row)
        self.host = "orders.shop"
        self.load = load.LOADS[row.load](settings.load_core, settings.headers)
        self.processes, self.backend, self.link = [], None, None
        try:
            if row.lossy:
                self.link = lossy.start(settings.directory, settings.load_core)
            if row.load == "iperf3":
                self.backend = load.start_iperf3(settings.directory, settings.load_core)
            specs = contender.specs(row, settings.directory, settings.certs)
            for spec in specs:
                log = os.path.join(settings.directory, f"{spec.role}.log".replace(" ", "-"))
                self.processes.append(Process(spec.role, spec.host, settings.proxy_core, wrap(spec), log))
            if ready:
                self.wait()
        except BaseException:
            self.stop()
            raise

    def wait(self):
        """Until the whole path answers."""
        deadline = time.monotonic() + READY
        while True:
            try:
                return self.probe()
            except LoadFailed as error:
                for process in filter(None, [*self.processes, self.link]):
                    if process.ended():
                        raise NotMeasured(f"{process.role} ended: {process.tail()}") from error
                if time.monotonic() > deadline:
                    said = "; ".join(filter(None, (process.tail() for process in self.processes)))
                    raise NotMeasured(f"no answer in {READY} s: {error} {said}") from error
                time.sleep(0.05)

    def probe(self):
        """One request over the whole path, or LoadFailed."""
        self.load.probe(self.row, self.address, self.host)

    def drive(self, seconds):
        try:
            return self.load.drive(self.row, self.address, self.host, seconds)
        except LoadFailed as error:
            raise NotMeasured(f"{self.load.tool}: {error}") from error

    def window(self, *args):
        try:
            return self.load.window(self.row, self.address, self.host, *args)
        except LoadFailed as error:
            raise NotMeasured(f"{self.load.tool}: {error}") from error

    def cpu(self):
        """By role: (all, of it in user space), seconds."""
        return {process.role: process.cpu() for process in self.processes}

    def resident(self):
        return {process.role: process.resident() for process in self.processes}

    def stop(self):
        for process in [*self.processes, self.backend, self.link]:
            if process:
                process.stop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def measure(contender, row, settings):
    """The figures of one repetition; see `report` for their units."""
    with Path(contender, row, settings) as path:
        if row.load == "idle":
            return memory(path, row)
        if settings.warm_up:
            path.drive(settings.warm_up)
        if row.excess:
            return overload(path, settings)
        before, core_before = path.cpu(), core_times(settings.proxy_core)
        outcome = path.drive(settings.duration)
        after, core_after = path.cpu(), core_times(settings.proxy_core)
    scale = (1 if row.unit == "CPU s/GiB" else 1e6) / outcome.units
    used = {role: [(now - then) for now, then in zip(after[role], before[role])] for role in after}
    total = sum(all for all, _ in used.values())
    busy = core_after[0] - core_before[0]
    wall = busy + core_after[1] - core_before[1]
    figures = {
        "value": total * scale,
        "split": {role: all * scale for role, (all, _) in used.items()},
        "user": sum(user for _, user in used.values()) * scale,
        "rate": outcome.units / outcome.seconds,
        "errors": outcome.errors,
        "latency_ms": outcome.latencies,
        # Of the proxies' core: what the proxies used, and others.
        "core_used": total / wall if wall else 0.0,
        "core_others": max(0.0, busy - total) / wall if wall else 0.0,
    }
    if row.percentile:
        figures["cpu"], figures["value"] = figures["value"], outcome.latencies[row.percentile]
    return figures


def overload(path, settings):
    """What good answers cost at twice the peak, in times of what they cost
    there."""
    peak, fair, _ = counted(path, settings)
    over, cost, split = counted(path, settings, 2 * peak.units / peak.seconds)
    rate = over.units / over.seconds
    return {"value": cost / fair, "split": split, "rate": rate, "errors": 0,
            "peak_rate": peak.units / peak.seconds, "peak_latency_ms": peak.latencies,
            "peak_cpu_us": fair * 1e6, "goodput": rate / (peak.units / peak.seconds),
            "refused": over.errors / over.seconds, "latency_ms": over.latencies}


def counted(path, settings, rate=0):
    """(outcome, CPU seconds per good answer, of it by role)"""
    seen = []
    outcome = path.window(settings.duration, lambda: seen.append(path.cpu()), rate)
    before, after = seen
    split = {role: (after[role][0] - before[role][0]) / outcome.units for role in after}
    return outcome, sum(split.values()), {role: cost * 1e6 for role, cost in split.items()}


def memory(path, row):
    time.sleep(SETTLE)
    started = path.resident()
    try:
        held = load.hold(row.connections, path.address, path.host)
    except LoadFailed as error:
        raise NotMeasured(str(error)) from error
    time.sleep(SETTLE)
    idle = path.resident()
    for connection in held:
        connection.close()
    # Source first: it is the one with the clients.
    return {"value": idle["source"], "start": started["source"], "idle": idle["source"],
            "split": idle, "errors": 0}
