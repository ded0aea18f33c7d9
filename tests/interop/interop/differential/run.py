"""One run of all requests through everybody."""

import functools
import time
from concurrent import futures

from . import client, compare, peers
from .origin import Origin
from .requests import all_requests

# A silence this long is an answer; longer where somebody differs.
PATIENCE, MORE_PATIENCE = 0.7, 3.0
LEAST = 700
ROUNDS = 2
# A proxy that has lost its client, or has closed, may still bring a request to its origin.
SETTLING = 0.1
# Of each peer, and of its origin.
PORTS = {"envoy": (7101, 7201), "haproxy": (7102, 7202)}
START = {"envoy": peers.start_envoy, "haproxy": peers.start_haproxy}
OWN_ORIGIN = 6020


class Lane:
    """A proxy and the origin behind it; requests go one after the other."""

    def __init__(self, port, origin):
        self.port, self.origin = port, origin
        self.outcomes = {}

    def carry(self, requests, patience):
        for request in requests:
            outcome = client.exchange(self.port, request, patience)
            if request.ends or not outcome.answers:
                time.sleep(SETTLING)
            outcome.seen = [one for one in self.origin.taken(0.3) if one.target != b"/probe"]
            self.outcomes[request.name] = outcome


@functools.cache
def origin_of_ours():
    return Origin(OWN_ORIGIN)


@functools.cache
def peer_lanes(directory):
    """The same for every way of ours."""
    lanes = {}
    for name, (port, target) in PORTS.items():
        START[name](directory, port, target)
        lanes[name] = Lane(port, Origin(target))
    return lanes


class Run:
    def __init__(self, way):
        self.requests = all_requests()
        self.ours = Lane(way.front("raw"), origin_of_ours())
        self.peers = peer_lanes(way.root)
        self.carry([lane for lane in (self.ours, *self.peers.values()) if not lane.outcomes], self.requests, PATIENCE)
        # Once more, with more patience, what is not as the table says: a busy machine is no difference.
        table = compare.Table(way.label)
        for _ in range(ROUNDS):
            again = [request for request in self.requests if self.surprises(request, table)]
            self.carry([self.ours, *self.peers.values()], again, MORE_PATIENCE)

    def carry(self, lanes, requests, patience):
        """Everybody at once, each for itself."""
        with futures.ThreadPoolExecutor() as pool:
            for done in [pool.submit(lane.carry, requests, patience) for lane in lanes]:
                done.result()

    def surprises(self, request, table):
        return any(set(self.differing(request, peer)) ^ table.expected(peer, request.name) for peer in self.peers)

    def differing(self, request, peer):
        ours, theirs = self.ours.outcomes[request.name], self.peers[peer].outcomes[request.name]
        return compare.differences(request, ours, theirs)

    def differences(self, peer):
        """(request's name, what differs)."""
        return [(request.name, what) for request in self.requests for what in self.differing(request, peer)]
