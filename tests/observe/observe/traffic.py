"""What calls what, a few times a second."""

import http.client
import socket
import struct
import threading
import time

from interop.process import Failed

from .mesh import ECHO_LISTENER, NODE1, PLAIN, PROXY, VM1

# Between two calls of one flow.
PAUSE = 0.05


def request(addr, url, headers=None):
    """Status of one request by way of a proxy's listener."""
    host, port = addr.split(":")
    conn = http.client.HTTPConnection(host, int(port), timeout=10)
    try:
        conn.request("GET", url, headers=headers or {})
        answer = conn.getresponse()
        answer.read()
        return answer.status
    finally:
        conn.close()


def pay():
    expect(request(VM1.at(PROXY), "http://payments.prod/pay"), 200)


def order():
    expect(request(NODE1.at(PROXY), "http://orders.shop/"), 200)


def unmeshed():
    expect(request(NODE1.at(PLAIN), "http://payments.prod/"), 200)


def echo(conn):
    conn.sendall(b"hello")
    expect(conn.recv(5, socket.MSG_WAITALL), b"hello")


def broken():
    """A client that goes away without a word."""
    with listener() as conn:
        echo(conn)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    time.sleep(0.5)


def listener():
    host, port = VM1.at(ECHO_LISTENER).split(":")
    return socket.create_connection((host, int(port)), 10)


def expect(got, wanted):
    if got != wanted:
        raise Failed(f"{got!r}, not {wanted!r}")


class Traffic:
    """Runs until stopped; the first problem is kept."""

    def __init__(self):
        self.stopping, self.problem = threading.Event(), None
        flows = [pay, order, unmeshed, broken]
        self.threads = [threading.Thread(target=self.repeat, args=[flow]) for flow in flows]
        self.threads.append(threading.Thread(target=self.hold))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def verdict(self):
        if self.problem:
            raise Failed(self.problem)

    def repeat(self, flow):
        try:
            while not self.stopping.wait(PAUSE):
                flow()
        except (OSError, Failed, http.client.HTTPException) as error:
            self.problem = self.problem or f"{flow.__name__}: {type(error).__name__}: {error}"

    def hold(self):
        """A connection that is open while we look."""
        try:
            with listener() as conn:
                while not self.stopping.wait(PAUSE):
                    echo(conn)
        except (OSError, Failed) as error:
            self.problem = self.problem or f"hold: {type(error).__name__}: {error}"
