"""HTTP/1.1 requests of which some number is always on its way, each timed from
its beginning to the end of its answer: from `connect`, where each has a
connection of its own."""

import contextlib
import select
import socket
import time

# For answers that are late when the time is over; a SYN that is lost three
# times in a row takes 7 s.
GRACE = 10
ANSWER = 4096


class Exchange:
    """One request, and its connection."""

    def __init__(self, target, poll, kept=None):
        self.begun, self.answer, self.poll = time.monotonic(), b"", poll
        self.connection = kept or socket.socket()
        if kept is None:
            self.connection.setblocking(False)
            self.connection.connect_ex(target)
        # Writable says that it is connected, or has failed.
        (poll.modify if kept else poll.register)(self.connection.fileno(), select.EPOLLOUT)

    def advance(self, events, request, body):
        """Whether the whole answer is there; OSError if there will be none."""
        if events & select.EPOLLOUT:
            self.connection.sendall(request)
            self.poll.modify(self.connection.fileno(), select.EPOLLIN)
            return False
        part = self.connection.recv(ANSWER)
        self.answer += part
        if self.answer.endswith(body) and self.answer.startswith(b"HTTP/1.1 200"):
            return True
        if not part:
            raise ConnectionError(f"an answer that ends with {self.answer[-80:]!r}")
        return False


class Run:
    """What `drive` has seen."""

    def __init__(self):
        self.times, self.errors, self.problem = [], 0, ""


def drive(target, host, body, at_once, seconds, kept):
    """Begins requests for `seconds` and waits for those that were begun, so
    that slow ones count too. Times in milliseconds."""
    request = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    run, end = Run(), time.monotonic() + seconds
    with select.epoll() as poll, contextlib.ExitStack() as open_ones:
        going = {}

        def begin(connection=None):
            exchange = Exchange(target, poll, connection)
            going[exchange.connection.fileno()] = exchange

        open_ones.callback(lambda: [exchange.connection.close() for exchange in going.values()])
        for _ in range(at_once):
            begin()
        while going and time.monotonic() < end + GRACE:
            for number, events in poll.poll(1):
                exchange = going[number]
                done = finish(run, exchange, events, request, body)
                if done is None:
                    continue
                del going[number]
                again = time.monotonic() < end
                if not (done and kept and again):
                    exchange.connection.close()
                if again:
                    begin(exchange.connection if done and kept else None)
        run.errors += len(going)
    return run


def finish(run, exchange, events, request, body):
    """True: answered; False: failed; None: not yet."""
    try:
        if not exchange.advance(events, request, body):
            return None
    except OSError as error:
        run.errors += 1
        run.problem = f"{type(error).__name__}: {error}"
        return False
    run.times.append((time.monotonic() - exchange.begun) * 1000)
    return True
