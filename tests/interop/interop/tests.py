"""What needs no proxy: python3 -m unittest interop.tests"""

import os
import tempfile
import unittest

from .differential import compare, message
from .differential.client import Outcome
from .differential.requests import Request, all_requests


def read(data, is_request=True, ended=False):
    found, rest = message.head(data)
    rest = message.body(found, rest, is_request, ended=ended)
    return found, rest


class Messages(unittest.TestCase):
    def test_what_is_well_formed(self):
        cases = [
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest", b"", b"rest"),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhellorest", b"hello", b"rest"),
            (b"POST / HTTP/1.1\r\nX-Empty:\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T: 1\r\n\r\nrest",
             b"hello", b"rest"),
        ]
        for data, body, rest in cases:
            found, left = read(data)
            self.assertEqual((found.malformed, found.body, left, found.complete), ([], body, rest, True), data)

    def test_what_is_not(self):
        first, end = b"POST / HTTP/1.1\r\n", b"\r\n\r\n"
        chunked = first + b"Transfer-Encoding: chunked" + end
        for data, problem in [
            (b"GET /\r\n\r\n", "first line"),
            (b"GET  / HTTP/1.1\r\n\r\n", "first line"),
            (first + b"A: 1\nB: 2" + end, "bare LF"),
            (first + b"A: 1\n\n", "bare LF"),
            (first + b"A: 1\r\n 2" + end, "obs-fold"),
            (first + b"A : 1" + end, "field line"),
            (first + b"A: \x00" + end, "field line"),
            (first + b"Content-Length: 1\r\nContent-Length: 1" + end + b"x", "several lengths"),
            (first + b"Content-Length: 1\r\nTransfer-Encoding: chunked" + end + b"0\r\n\r\n", "length and encoding"),
            (first + b"Content-Length: +1" + end + b"x", "length"),
            (first + b"Transfer-Encoding: gzip, chunked" + end + b"0\r\n\r\n", "encoding"),
            (chunked + b"5;x\r\nhello\r\n0\r\n\r\n", "chunk line"),
            (chunked + b"5\nhello\r\n0\r\n\r\n", "chunk line"),
            (chunked + b"x\r\nhello\r\n0\r\n\r\n", "chunk size"),
            (chunked + b"5\r\nhelloXX0\r\n\r\n", "chunk end"),
            (chunked + b"0\r\nno colon\r\n\r\n", "trailer line"),
        ]:
            self.assertIn(problem, read(data)[0].malformed, data)

    def test_an_answer_may_end_with_its_connection(self):
        data = b"HTTP/1.1 200 OK\r\n\r\nsome"
        self.assertFalse(read(data, is_request=False)[0].complete)
        self.assertTrue(read(data, is_request=False, ended=True)[0].complete)


class Differences(unittest.TestCase):
    request = Request("some/name", (b"",))

    def outcome(self, *answers, seen=(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n",), connection="kept"):
        found = Outcome([read(data, is_request=False, ended=True)[0] for data in answers], connection=connection)
        found.seen = [read(data)[0] for data in seen]
        return found

    def test_what_differs_is_named(self):
        ok = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 2\r\n\r\nok"
        ours = self.outcome(ok)
        smuggled = (b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /y HTTP/1.1\r\nHost: a\r\n\r\n")
        for theirs, wanted in [
            (self.outcome(ok), []),
            (self.outcome(ok, connection="closed"), ["connection: kept, not closed"]),
            (self.outcome(ok, seen=()), ["verdict: forwarded, not refused"]),
            (self.outcome(ok.replace(b"200", b"404")), ["status: 200, not 404"]),
            (self.outcome(ok.replace(b"X-A: 1", b"X-A: 2")), ["answer field x-a: differs"]),
            (self.outcome(ok.replace(b"ok", b"no")), ["answer body"]),
            (self.outcome(ok, seen=smuggled), ["requests: 1, not 2"]),
            (self.outcome(ok, seen=(b"GET /x HTTP/1.1\r\nHost: b\r\n\r\n",)), ["field host: differs"]),
            (self.outcome(ok, seen=(b"PUT /z HTTP/1.1\r\nHost: a\r\n\r\n",)), ["method", "target"]),
        ]:
            self.assertEqual(compare.differences(self.request, ours, theirs), wanted)

    def test_the_table_excuses_what_it_names_only(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "table.toml")
            with open(path, "w") as file:
                file.write('[[reason]]\nwhy = "RFC 0: so"\n[reason.both]\n"body" = ["a/*", "b/x"]\n')
            table = compare.Table("one-hop", path)
        self.assertTrue(table.explains("envoy", "body", "a/1"))
        for other in [("envoy", "body", "b/y"), ("envoy", "method", "a/1"), ("nginx", "body", "a/1")]:
            self.assertFalse(table.explains(*other), other)
        self.assertEqual(table.unused("envoy"), ["body · b/x"])
        self.assertEqual(table.unused("haproxy"), ["body · a/*", "body · b/x"])

    def test_the_table_is_in_order(self):
        table, names = compare.Table("one-hop"), [request.name for request in all_requests()]
        for _, what, pattern, _ in table.patterns:
            self.assertTrue(any(compare.matches(name, pattern) for name in names), f"{what} · {pattern}")


if __name__ == "__main__":
    unittest.main()
