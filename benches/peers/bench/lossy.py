"""A wide-area link between the gateways that delays and drops packets.

A TUN device at each end, and a process between them that holds every packet
for DELAY and drops LOSS of them: what TCP and QUIC retransmit is real. Kernels
without `tc netem` can do it too. Besides the gateways it carries connections of
the client straight to the server, by routes that nothing else takes.
"""

import collections
import fcntl
import os
import random
import select
import struct
import sys
import time

from .process import Process
from .world import CLIENT, EAST, EAST_LAN, SERVER, WEST, WEST_LAN, inside, ip, write_sysctls

DELAY = 0.020  # seconds, one way
LOSS = 0.01  # of the packets, each way

WEST_IP, EAST_IP = "10.77.4.1", "10.77.4.2"
DEVICE = "lossy"

# Packets on their way, in each direction; more are dropped, as a router would.
QUEUE = 4096
# Packets taken at once from one end before those that are due are sent.
BATCH = 64
PACKET = 65536

# linux/if_tun.h
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def build():
    """The devices and the routes; what comes through needs `start`."""
    for host, address in (WEST, WEST_IP), (EAST, EAST_IP):
        ip("-n", host, "tuntap", "add", DEVICE, "mode", "tun")
        ip("-n", host, "address", "add", f"{address}/24", "dev", DEVICE)
        ip("-n", host, "link", "set", DEVICE, "up")
        inside(host, lambda: write_sysctls({"net.ipv4.ip_forward": "1"}))
    ip("-n", CLIENT, "route", "add", "10.77.3.0/24", "via", WEST_LAN)
    ip("-n", WEST, "route", "add", "10.77.3.0/24", "via", EAST_IP)
    ip("-n", EAST, "route", "add", "10.77.1.0/24", "via", WEST_IP)
    ip("-n", SERVER, "route", "add", "10.77.1.0/24", "via", EAST_LAN)


def start(directory, core):
    command = [sys.executable, "-m", "bench.lossy"]
    return Process("wide-area link", WEST, core, command, os.path.join(directory, "lossy.log"))


def attach(host):
    """This process's end of the device in `host`: a packet a read, a packet a write."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
    return device


class Direction:
    """Packets from one end to the other. All are held equally long, so they
    leave in the order in which they came."""

    def __init__(self, source, sink, delay, loss, chance):
        self.source, self.sink = source, sink
        self.delay, self.loss, self.chance = delay, loss, chance
        self.held = collections.deque()

    def take(self):
        for _ in range(BATCH):
            try:
                packet = os.read(self.source, PACKET)
            except BlockingIOError:
                return
            if self.chance.random() >= self.loss and len(self.held) < QUEUE:
                self.held.append((time.monotonic() + self.delay, packet))

    def send(self):
        while self.held and self.held[0][0] <= time.monotonic():
            try:
                os.write(self.sink, self.held.popleft()[1])
            except OSError:
                pass  # a queue that is full, a device that goes: lost, as others are


def carry(directions, until=float("inf")):
    while time.monotonic() < until:
        times = [direction.held[0][0] for direction in directions if direction.held]
        wait = max(0.0, min([*times, time.monotonic() + 1]) - time.monotonic())
        # Unlike epoll it waits for parts of a millisecond.
        ready, _, _ = select.select([direction.source for direction in directions], [], [], wait)
        for direction in directions:
            if direction.source in ready:
                direction.take()
            direction.send()


if __name__ == "__main__":
    west, east = (inside(host, lambda: attach(host)) for host in (WEST, EAST))
    carry([Direction(*ends, DELAY, LOSS, random.Random()) for ends in ((west, east), (east, west))])
