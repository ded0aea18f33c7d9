"""The application: records what it gets, and answers as its path asks."""

import contextlib
import socket
import threading

from . import answers, message

# Bytes of a request that nobody here sends.
TOO_MUCH = 4 << 20


class Origin:
    """Listens on one port; `taken` hands out what came since it last did."""

    def __init__(self, port):
        self.lock = threading.Condition()
        # Connections, and whether a request is under way on each.
        self.requests, self.connections = [], {}
        self.server = socket.create_server(("127.0.0.1", port), backlog=128)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        self.busy(connection, False)
        with contextlib.suppress(OSError), connection:
            data = b""
            while True:
                data = self.request(connection, data)
                if data is None:
                    break
        with self.lock:
            del self.connections[connection]
            self.lock.notify_all()

    def request(self, connection, data):
        """One request and its answer; what follows it, or None at the end."""
        while not (found := message.head(data)):
            self.busy(connection, bool(data))
            more = connection.recv(65536)
            if not more or len(data) > TOO_MUCH:
                return None
            data += more
        self.busy(connection, True)
        asked, rest = found
        answer = answers.find(asked)
        if answer.early:
            self.respond(connection, asked, answer)
        elif b"100-continue" in asked.all(b"expect") and not rest and answer.continues:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        after = self.body(connection, asked, rest)
        with self.lock:
            self.requests.append(asked)
        if not asked.complete:
            return None
        # Before the answer: whoever has it may look at once.
        if not answer.early:
            self.respond(connection, asked, answer)
        self.busy(connection, False)
        return None if answer.closes else after

    def body(self, connection, asked, rest):
        data = rest
        while True:
            asked.body, asked.trailers, asked.complete = b"", [], False
            marks = len(asked.malformed)
            after = message.body(asked, data, True)
            if asked.complete or len(data) > TOO_MUCH:
                return after
            del asked.malformed[marks:]
            try:
                more = connection.recv(65536)
            except OSError:
                more = b""
            if not more:
                return None
            data += more

    def respond(self, connection, asked, answer):
        for part in answer.parts(asked):
            connection.sendall(part)

    def busy(self, connection, is_busy):
        with self.lock:
            self.connections[connection] = is_busy
            self.lock.notify_all()

    def taken(self, patience):
        """The requests so far. What is under way has `patience` to end, and
        does not get into the next turn."""
        with self.lock:
            self.lock.wait_for(lambda: not any(self.connections.values()), patience)
            for connection, is_busy in self.connections.items():
                if is_busy:
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
            self.lock.wait_for(lambda: not any(self.connections.values()), 1)
            found, self.requests = self.requests, []
        return found
