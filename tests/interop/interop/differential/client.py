"""Sends bytes and reads what comes back."""

import contextlib
import socket
import time
from dataclasses import dataclass, field

from . import message

# Sent after the answers: who answers it has understood all before it.
PROBE = b"GET /probe HTTP/1.1\r\nHost: origin.test\r\n\r\n"
PROBED = b"this is the probe"


@dataclass
class Outcome:
    """What became of one request."""

    answers: list = field(default_factory=list)  # final ones
    interim: list = field(default_factory=list)  # statuses
    # kept: the probe was answered; closed; tunnel; stuck: nothing more came;
    # confused: something else than the probe's answer did.
    connection: str = ""
    seen: list = field(default_factory=list)  # by the origin

    @property
    def verdict(self):
        if self.connection == "closed" and not self.answers:
            # Whether the origin had seen it by then is chance.
            return "closed"
        if any(one.complete for one in self.seen):
            return "forwarded"
        if self.connection == "tunnel":
            return "connected"
        if self.answers:
            return "refused" if self.answers[0].status < 500 else "failed"
        return "closed" if self.connection == "closed" else "silent"


def exchange(port, request, patience):
    outcome = Outcome()
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = Reader(connection, request, outcome)
        for place, part in enumerate(request.parts):
            if place:
                # The parts are to be read one by one; answers may come between.
                reader.read(until=0, patience=0.05)
            with contextlib.suppress(OSError):
                connection.sendall(part)
        if request.ends:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        reader.read(until=request.count, patience=patience)
        outcome.connection = conclude(connection, reader, request, patience)
    return outcome


def conclude(connection, reader, request, patience):
    outcome = reader.outcome
    if reader.ended:
        return "closed"
    if any(one.tunnel for one in outcome.answers):
        return "tunnel"
    if len(outcome.answers) < request.count or request.ends:
        reader.read(until=1 << 20, patience=0.1)
        return "closed" if reader.ended else "stuck"
    before = len(outcome.answers)
    with contextlib.suppress(OSError):
        connection.sendall(PROBE)
    reader.heads = (*reader.heads[:before], False)
    reader.read(until=before + 1, patience=patience)
    more = outcome.answers[before:]
    if more and more[-1].body == PROBED:
        outcome.answers.pop()
        return "kept"
    if reader.ended:
        return "closed"
    return "confused" if more else "stuck"


class Reader:
    def __init__(self, connection, request, outcome):
        self.connection, self.heads, self.outcome = connection, request.heads, outcome
        self.connects = request.parts[0].startswith(b"CONNECT ")
        self.data, self.ended = b"", False

    def read(self, until, patience):
        """Until so many final answers have come, the end, or nothing for so long."""
        deadline = time.monotonic() + patience
        while not self.ended:
            self.parse()
            left = deadline - time.monotonic()
            if (until and len(self.outcome.answers) >= until) or left <= 0:
                return
            self.connection.settimeout(left)
            try:
                more = self.connection.recv(65536)
            except TimeoutError:
                return
            except OSError:
                more = b""
            self.data += more
            self.ended = not more
            if more:
                deadline = time.monotonic() + patience
        self.parse()

    def parse(self):
        while self.data and not any(one.tunnel for one in self.outcome.answers):
            found = message.head(self.data)
            if not found:
                return
            answer, rest = found
            if 100 <= answer.status < 200 and answer.status != 101:
                self.outcome.interim.append(answer.status)
                self.data = rest
                continue
            place = len(self.outcome.answers)
            is_head = place < len(self.heads) and self.heads[place]
            connects = place == 0 and self.connects and 200 <= answer.status < 300
            answer.tunnel = answer.status == 101 or connects
            bodiless = is_head or answer.tunnel or answer.status in (204, 304)
            rest = message.body(answer, rest, False, bodiless, self.ended)
            if not answer.complete and not self.ended:
                return
            self.outcome.answers.append(answer)
            self.data = rest
            if not answer.complete:
                return
