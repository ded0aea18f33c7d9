"""Two applications: HTTP that tells who called, and a TCP echo."""

import http.server
import socketserver
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


class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(b"echo: " + line)


class Threading(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


echo = Threading(("127.0.0.1", 8082), Echo)
threading.Thread(target=echo.serve_forever, daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Hello).serve_forever()
