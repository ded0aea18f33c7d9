"""HTTP/1 as both ends of the test read it: leniently, with a list of all that
a strict reader would refuse."""

import re
from dataclasses import dataclass, field

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
REQUEST_LINE = re.compile(TOKEN + rb" [\x21-\x7e]+ HTTP/1\.[01]")
STATUS_LINE = re.compile(rb"HTTP/1\.[01] [1-9][0-9][0-9]( [\t\x20-\x7e\x80-\xff]*)?")
VISIBLE = rb"[\x21-\x7e\x80-\xff]"
FIELD = re.compile(TOKEN + rb":[ \t]*(" + VISIBLE + rb"([\t\x20-\x7e\x80-\xff]*" + VISIBLE + rb")?)?[ \t]*")
CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})")


@dataclass
class Message:
    first: bytes  # request line or status line
    fields: list  # (lower-case name, value)
    body: bytes = b""
    trailers: list = field(default_factory=list)
    complete: bool = False
    # What RFC 9112 does not allow.
    malformed: list = field(default_factory=list)
    # Ends with the connection; a protocol of its own follows.
    closes: bool = False
    tunnel: bool = False

    def all(self, name):
        return [value for key, value in self.fields if key == name]

    @property
    def status(self):
        found = re.match(rb"\S+ +(\d+)", self.first)
        return int(found[1]) if found else 0

    @property
    def method(self):
        return self.first.split(b" ")[0]

    @property
    def target(self):
        parts = self.first.split(b" ")
        return parts[1] if len(parts) > 1 else b""


def head(data):
    """(Message, what follows), or None if there is no end of a head yet."""
    end = re.search(rb"\r?\n\r?\n", data)
    if not end:
        return None
    lines = data[:end.start()].split(b"\n")
    message = Message(lines[0].rstrip(b"\r"), [])
    for place, line in enumerate(lines):
        if place < len(lines) - 1 and not line.endswith(b"\r"):
            message.malformed.append("bare LF")
        line = line.removesuffix(b"\r")
        if place == 0:
            if not (REQUEST_LINE.fullmatch(line) or STATUS_LINE.fullmatch(line)):
                message.malformed.append("first line")
            continue
        found = FIELD.fullmatch(line)
        if not found:
            message.malformed.append("obs-fold" if line[:1] in b" \t" else "field line")
        name, _, value = line.partition(b":")
        message.fields.append((name.strip().lower(), value.strip(b" \t")))
    if end[0] != b"\r\n\r\n":
        message.malformed.append("bare LF")
    return message, data[end.end():]


def body(message, rest, is_request, bodiless=False, ended=False):
    """Reads the body from the front of `rest`; returns what follows it.
    `message.complete` says whether it was all there."""
    lengths, encodings = message.all(b"content-length"), message.all(b"transfer-encoding")
    if len(lengths) > 1:
        message.malformed.append("several lengths")
    if lengths and encodings:
        message.malformed.append("length and encoding")
    if any(not value.isdigit() for value in lengths):
        message.malformed.append("length")
    if encodings and encodings != [b"chunked"]:
        message.malformed.append("encoding")
    if bodiless:
        message.complete = True
        return rest
    if encodings:
        return chunks(message, rest)
    if lengths and lengths[0].isdigit():
        length = int(lengths[0])
        message.body, message.complete = rest[:length], len(rest) >= length
        return rest[length:]
    if is_request:
        message.complete = True
        return rest
    message.body, message.complete, message.closes = rest, ended, True
    return b""


def chunks(message, rest):
    while True:
        line, found, after = rest.partition(b"\n")
        if not found:
            return rest
        size = CHUNK.match(line)
        if not size:
            message.malformed.append("chunk size")
            return rest
        if not line.endswith(b"\r") or CHUNK.fullmatch(line[:-1]) is None:
            message.malformed.append("chunk line")
        length = int(size[1], 16)
        if length == 0:
            return trailers(message, after)
        if len(after) < length + 2:
            message.body += after[:length]
            return b""
        message.body += after[:length]
        if after[length:length + 2] != b"\r\n":
            message.malformed.append("chunk end")
            return after[length:]
        rest = after[length + 2:]


def trailers(message, rest):
    while True:
        line, found, after = rest.partition(b"\n")
        if not found:
            return rest
        line = line.removesuffix(b"\r")
        if not line:
            message.complete = True
            return after
        if not FIELD.fullmatch(line):
            message.malformed.append("trailer line")
        name, _, value = line.partition(b":")
        message.trailers.append((name.strip().lower(), value.strip(b" \t")))
        rest = after
