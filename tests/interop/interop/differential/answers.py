"""What the application answers: `/a/NAME` asks for the answer of that name."""

from dataclasses import dataclass

from .client import PROBED

OK = b"HTTP/1.1 200 OK\r\n"


@dataclass(frozen=True)
class Answer:
    raw: bytes
    # Closes the connection after it.
    closes: bool = False
    # Comes before the request's body has.
    early: bool = False
    # Sends 100 where it is expected.
    continues: bool = True

    def parts(self, asked):
        # What has a body has none for HEAD, unless that is what is tested.
        head, found, body = self.raw.partition(b"\r\n\r\n")
        if asked.method == b"HEAD" and found and not asked.target.startswith(b"/a/head-"):
            return [head + found]
        return [self.raw]


def whole(body, *fields):
    lines = b"".join(field + b"\r\n" for field in (*fields, b"Content-Length: %d" % len(body)))
    return OK + lines + b"\r\n" + body


def chunked(body, *fields, trailers=b""):
    lines = b"".join(field + b"\r\n" for field in (*fields, b"Transfer-Encoding: chunked"))
    return OK + lines + b"\r\n" + body + b"0\r\n" + trailers + b"\r\n"


DEFAULT = Answer(whole(b"fine", b"X-Answer: default"))
PROBE = Answer(whole(PROBED))


def find(asked):
    path = asked.target
    if path == b"/probe":
        return PROBE
    if path.startswith(b"/a/"):
        return ANSWERS.get(path[3:].decode(errors="replace"), DEFAULT)
    return DEFAULT


def simple(status, *fields, body=b""):
    return b"\r\n".join([b"HTTP/1.1 " + status, *fields, b"", body])


CHUNKS = b"5\r\nhello\r\n"
ANSWERS = {
    # --- ordinary
    "length": Answer(whole(b"hello")),
    "empty": Answer(whole(b"")),
    "chunked": Answer(chunked(CHUNKS)),
    "chunked-empty": Answer(chunked(b"")),
    "chunked-many": Answer(chunked(b"1\r\na\r\n" * 200)),
    "chunked-upper-hex": Answer(chunked(b"A\r\n0123456789\r\n")),
    "chunked-zeros": Answer(chunked(b"00005\r\nhello\r\n")),
    "chunked-extension": Answer(chunked(b"5;a=b;c=\"d\"\r\nhello\r\n")),
    "trailers": Answer(chunked(CHUNKS, b"Trailer: x-sum", trailers=b"X-Sum: 1\r\n")),
    "trailers-unannounced": Answer(chunked(CHUNKS, trailers=b"X-Sum: 1\r\n")),
    "trailers-forbidden": Answer(chunked(CHUNKS, trailers=b"Content-Length: 7\r\nX-Sum: 1\r\n")),
    "until-close": Answer(OK + b"\r\nuntil the end", closes=True),
    "until-close-empty": Answer(OK + b"\r\n", closes=True),
    "connection-close": Answer(whole(b"bye", b"Connection: close"), closes=True),
    "http10": Answer(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold", closes=True),
    "http10-keep-alive": Answer(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nold"),
    "http10-until-close": Answer(b"HTTP/1.0 200 OK\r\n\r\nold", closes=True),
    "large": Answer(whole(b"x" * 300000)),
    "cookies": Answer(whole(b"", b"Set-Cookie: a=1", b"Set-Cookie: b=2; Expires=Wed, 09 Jun 2027 10:18:14 GMT")),
    "many-fields": Answer(whole(b"", *(b"X-F%d: %d" % (n, n) for n in range(80)))),
    "repeated-field": Answer(whole(b"", b"X-A: 1", b"X-B: 2", b"X-A: 3")),
    "empty-value": Answer(whole(b"", b"X-Empty:", b"X-Spaces:   ")),
    "obs-text": Answer(whole(b"", b"X-Obs: caf\xe9")),
    "no-reason": Answer(b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok"),
    "odd-reason": Answer(b"HTTP/1.1 200 All (is) w\xe9ll\r\nContent-Length: 2\r\n\r\nok"),
    "early-hints-fields": Answer(b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n" + whole(b"hinted")),
    "no-reason-no-space": Answer(b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok"),
    # --- statuses
    **{f"status-{code}": Answer(simple(b"%d Some" % code, b"Content-Length: 4", body=b"some"))
       for code in (201, 202, 203, 206, 207, 226, 299, 300, 301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 408,
                    409,
                    410, 411, 412, 413, 414, 415, 416, 417, 418, 421, 422, 425, 426, 428, 429, 431, 451, 499, 500,
                    501, 502,
                    503, 504, 505, 511, 599)},
    **{f"status-{code}": Answer(simple(b"%d Odd" % code, b"Content-Length: 3", body=b"odd"), closes=True)
       for code in (600, 700, 999)},
    "status-099": Answer(simple(b"099 Odd", b"Content-Length: 3", body=b"odd"), closes=True),
    "status-1000": Answer(simple(b"1000 Odd", b"Content-Length: 3", body=b"odd"), closes=True),
    "status-20": Answer(simple(b"20 Odd", b"Content-Length: 3", body=b"odd"), closes=True),
    "status-minus": Answer(simple(b"-200 Odd", b"Content-Length: 3", body=b"odd"), closes=True),
    "status-letters": Answer(simple(b"2x0 Odd", b"Content-Length: 3", body=b"odd"), closes=True),
    # --- without a body
    "204": Answer(simple(b"204 No Content")),
    "204-length-0": Answer(simple(b"204 No Content", b"Content-Length: 0")),
    "204-length-5": Answer(simple(b"204 No Content", b"Content-Length: 5"), closes=True),
    "204-body": Answer(simple(b"204 No Content", b"Content-Length: 5", body=b"hello"), closes=True),
    "204-chunked": Answer(simple(b"204 No Content", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), closes=True),
    "204-bare-body": Answer(simple(b"204 No Content", body=b"hello"), closes=True),
    "205-empty": Answer(simple(b"205 Reset Content", b"Content-Length: 0")),
    "205-body": Answer(simple(b"205 Reset Content", b"Content-Length: 5", body=b"hello")),
    "304": Answer(simple(b"304 Not Modified", b"ETag: \"x\"")),
    "304-length": Answer(simple(b"304 Not Modified", b"Content-Length: 1234")),
    "304-body": Answer(simple(b"304 Not Modified", b"Content-Length: 5", body=b"hello"), closes=True),
    "304-chunked": Answer(simple(b"304 Not Modified", b"Transfer-Encoding: chunked")),
    "head-length": Answer(OK + b"Content-Length: 1234\r\n\r\n"),
    "head-chunked": Answer(OK + b"Transfer-Encoding: chunked\r\n\r\n"),
    "head-nothing": Answer(OK + b"\r\n"),
    "head-body": Answer(whole(b"hello"), closes=True),
    # --- interim
    **{f"interim-{code}": Answer(b"HTTP/1.1 %d Soon\r\nX-Soon: 1\r\n\r\n" % code + whole(b"late")) for code in (100,
        102, 103, 110, 199)},
    "interim-two": Answer(b"HTTP/1.1 103 Soon\r\nX-Soon: 1\r\n\r\nHTTP/1.1 103 Soon\r\nX-Soon: 2\r\n\r\n"
                          + whole(b"late")),
    "interim-twenty": Answer(b"HTTP/1.1 103 Soon\r\n\r\n" * 20 + whole(b"late")),
    "interim-thousand": Answer(b"HTTP/1.1 103 Soon\r\n\r\n" * 1000 + whole(b"late"), closes=True),
    "interim-length": Answer(b"HTTP/1.1 103 Soon\r\nContent-Length: 5\r\n\r\n" + whole(b"late")),
    "interim-only": Answer(b"HTTP/1.1 103 Soon\r\n\r\n", closes=True),
    "101-unasked": Answer(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
                          + whole(b"not http"), closes=True),
    # --- framing that two readers could understand differently
    "two-lengths-equal": Answer(OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", closes=True),
    "two-lengths-differ": Answer(OK + b"Content-Length: 5\r\nContent-Length: 3\r\n\r\nhello", closes=True),
    "length-list-equal": Answer(OK + b"Content-Length: 5, 5\r\n\r\nhello", closes=True),
    "length-list-differ": Answer(OK + b"Content-Length: 5, 3\r\n\r\nhello", closes=True),
    "length-plus": Answer(OK + b"Content-Length: +5\r\n\r\nhello", closes=True),
    "length-minus": Answer(OK + b"Content-Length: -5\r\n\r\nhello", closes=True),
    "length-hex": Answer(OK + b"Content-Length: 0x5\r\n\r\nhello", closes=True),
    "length-letters": Answer(OK + b"Content-Length: five\r\n\r\nhello", closes=True),
    "length-empty": Answer(OK + b"Content-Length:\r\n\r\nhello", closes=True),
    "length-huge": Answer(OK + b"Content-Length: 99999999999999999999\r\n\r\nhello", closes=True),
    "length-zeros": Answer(OK + b"Content-Length: 0005\r\n\r\nhello"),
    "length-spaces": Answer(OK + b"Content-Length:   5  \r\n\r\nhello"),
    "length-and-chunked": Answer(OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS
                                 + b"0\r\n\r\n", closes=True),
    "chunked-and-length": Answer(OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + CHUNKS
                                 + b"0\r\n\r\n", closes=True),
    "encoding-gzip": Answer(OK + b"Transfer-Encoding: gzip\r\n\r\nhello", closes=True),
    "encoding-gzip-chunked": Answer(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS + b"0\r\n\r\n",
                                    closes=True),
    "encoding-chunked-gzip": Answer(OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + CHUNKS + b"0\r\n\r\n",
                                    closes=True),
    "encoding-chunked-twice": Answer(OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + CHUNKS + b"0\r\n\r\n",
                                     closes=True),
    "encoding-two-fields": Answer(OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS
                                  + b"0\r\n\r\n", closes=True),
    "encoding-identity": Answer(OK + b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello", closes=True),
    "encoding-upper": Answer(OK + b"Transfer-Encoding: CHUNKED\r\n\r\n" + CHUNKS + b"0\r\n\r\n"),
    "encoding-empty": Answer(OK + b"Transfer-Encoding:\r\n\r\nhello", closes=True),
    "encoding-vtab": Answer(OK + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + CHUNKS + b"0\r\n\r\n", closes=True),
    "http10-chunked": Answer(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS + b"0\r\n\r\n",
                             closes=True),
    # --- chunks
    **{f"chunk-{name}": Answer(OK + b"Transfer-Encoding: chunked\r\n\r\n" + raw, closes=True) for name, raw in {
        "letters": b"xyz\r\nhello\r\n0\r\n\r\n", "prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
        "minus": b"-5\r\nhello\r\n0\r\n\r\n",
        "plus": b"+5\r\nhello\r\n0\r\n\r\n", "empty-size": b"\r\nhello\r\n0\r\n\r\n",
        "space-before": b" 5\r\nhello\r\n0\r\n\r\n",
        "space-after": b"5 \r\nhello\r\n0\r\n\r\n", "bare-lf": b"5\nhello\n0\n\n", "no-end": b"5\r\nhello0\r\n\r\n",
        "too-long": b"5\r\nhello!\r\n0\r\n\r\n", "too-short": b"5\r\nhell\r\n0\r\n\r\n",
        "huge": b"ffffffffffffffff1\r\nhello\r\n0\r\n\r\n",
        "cut-in-data": b"5\r\nhel", "cut-in-size": b"5", "cut-before-last": b"5\r\nhello\r\n",
        "cut-in-trailers": b"5\r\nhello\r\n0\r\nX-A: 1\r\n",
        "extension-long": b"5;" + b"x" * 20000 + b"\r\nhello\r\n0\r\n\r\n",
        "extension-lf": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        "trailer-bad": b"5\r\nhello\r\n0\r\nno colon\r\n\r\n"}.items()},
    # --- lines
    "lf-only": Answer(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", closes=True),
    "lf-in-fields": Answer(b"HTTP/1.1 200 OK\r\nX-A: 1\nContent-Length: 2\r\n\r\nok", closes=True),
    "cr-in-value": Answer(whole(b"", b"X-A: 1\r2"), closes=True),
    "nul-in-value": Answer(whole(b"", b"X-A: 1\x002"), closes=True),
    "control-in-value": Answer(whole(b"", b"X-A: 1\x012"), closes=True),
    "del-in-value": Answer(whole(b"", b"X-A: 1\x7f2"), closes=True),
    "obs-fold": Answer(whole(b"", b"X-A: 1\r\n 2"), closes=True),
    "space-before-colon": Answer(whole(b"", b"X-A : 1"), closes=True),
    "no-colon": Answer(whole(b"", b"X-A"), closes=True),
    "empty-name": Answer(whole(b"", b": 1"), closes=True),
    "odd-name": Answer(whole(b"", b"X(A): 1"), closes=True),
    "space-first": Answer(OK + b" X-A: 1\r\nContent-Length: 2\r\n\r\nok", closes=True),
    "empty-lines-first": Answer(b"\r\n\r\n" + whole(b"late"), closes=True),
    "garbage": Answer(b"\x16\x03\x01 what is this\r\n\r\n", closes=True),
    "http09": Answer(b"just text", closes=True),
    "icy": Answer(b"ICY 200 OK\r\nContent-Length: 2\r\n\r\nok", closes=True),
    "http2-version": Answer(b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok", closes=True),
    "http12": Answer(b"HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nok", closes=True),
    "lower-version": Answer(b"http/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", closes=True),
    "two-spaces": Answer(b"HTTP/1.1  200 OK\r\nContent-Length: 2\r\n\r\nok", closes=True),
    "tab-in-line": Answer(b"HTTP/1.1\t200\tOK\r\nContent-Length: 2\r\n\r\nok", closes=True),
    # --- ends, sizes, more than was asked for
    "nothing": Answer(b"", closes=True),
    "half-line": Answer(b"HTTP/1.1 20", closes=True),
    "half-head": Answer(b"HTTP/1.1 200 OK\r\nX-A: 1\r\n", closes=True),
    "half-body": Answer(OK + b"Content-Length: 10\r\n\r\nhello", closes=True),
    "more-than-length": Answer(OK + b"Content-Length: 5\r\n\r\nhello, and more", closes=True),
    "two-answers": Answer(whole(b"one") + whole(b"two"), closes=True),
    "two-answers-kept": Answer(whole(b"one") + whole(b"two")),
    "field-32k": Answer(whole(b"", b"X-Long: " + b"x" * 32000), closes=True),
    "field-100k": Answer(whole(b"", b"X-Long: " + b"x" * 100000), closes=True),
    "fields-300": Answer(whole(b"", *(b"X-F%d: 1" % n for n in range(300))), closes=True),
    "early": Answer(simple(b"413 Too Much", b"Content-Length: 8", body=b"too much"), early=True),
    "early-close": Answer(simple(b"413 Too Much", b"Content-Length: 8", b"Connection: close", body=b"too much"),
                          early=True, closes=True),
    "early-200": Answer(whole(b"before"), early=True),
    "expect-417": Answer(simple(b"417 No", b"Content-Length: 0"), early=True, continues=False),
    "expect-silent": Answer(whole(b"late"), continues=False),
    # --- of the connection
    "hop-by-hop": Answer(whole(b"", b"Connection: x-mine", b"X-Mine: 1", b"X-Other: 2", b"Keep-Alive: timeout=5",
                               b"Proxy-Connection: x")),
    "connection-length": Answer(whole(b"hello", b"Connection: content-length")),
    "proxy-authenticate": Answer(simple(b"407 No", b"Proxy-Authenticate: Basic", b"Content-Length: 0")),
    "upgrade-offer": Answer(whole(b"", b"Connection: upgrade", b"Upgrade: h2c")),
    "upgrade": Answer(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
                      b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n", closes=True),
    "upgrade-other": Answer(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n",
                            closes=True),
}
