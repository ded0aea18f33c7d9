"""Three small applications: HTTP that tells who called, gRPC that says back
what it hears, and lines over TCP.

    apps.py HTTP GRPC TCP        # ports on 127.0.0.1; 0 is any

gRPC is written out in bytes, so that nothing but Python is needed: it answers
every call with the messages of the request and grpc-status 0.
"""

import http.server
import socketserver
import struct
import sys
import threading


class Hello(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        caller = self.headers.get("x-isthmus-client-id", "nobody")
        body = f"hello {caller}, you asked {self.headers['Host']} for {self.path}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
ACK = END_STREAM = 1
END_HEADERS = 4


def literal(text):
    return bytes([len(text)]) + text


# RFC 7541: `:status: 200` and the name `content-type` are in the static table.
HEAD = b"\x88" + b"\x0f\x10" + literal(b"application/grpc")
TRAILERS = b"\x00" + literal(b"grpc-status") + literal(b"0")


class Grpc(socketserver.StreamRequestHandler):
    def frame(self, kind, flags, stream, payload=b""):
        self.wfile.write(struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload)

    def handle(self):
        if len(self.rfile.read(24)) < 24:  # The preface of RFC 9113.
            return
        self.frame(SETTINGS, 0, 0)
        bodies = {}
        while len(head := self.rfile.read(9)) == 9:
            length = int.from_bytes(head[:3], "big")
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            payload = self.rfile.read(length)
            if kind in (SETTINGS, PING) and not flags & ACK:
                self.frame(kind, ACK, 0, payload if kind == PING else b"")
            if kind == DATA:
                bodies[stream] = bodies.get(stream, b"") + payload
            if kind in (DATA, HEADERS) and flags & END_STREAM:
                self.frame(HEADERS, END_HEADERS, stream, HEAD)
                self.frame(DATA, 0, stream, bodies.pop(stream, b""))
                self.frame(HEADERS, END_HEADERS | END_STREAM, stream, TRAILERS)


class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(b"echo: " + line)


class Threading(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


http_port, grpc_port, tcp_port = map(int, sys.argv[1:])
servers = [http.server.ThreadingHTTPServer(("127.0.0.1", http_port), Hello),
           Threading(("127.0.0.1", grpc_port), Grpc),
           Threading(("127.0.0.1", tcp_port), Echo)]
print("ready", *(server.server_address[1] for server in servers), flush=True)
threads = [threading.Thread(target=server.serve_forever) for server in servers]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
