"""What is sent: ordinary, odd and hostile requests, from tables."""

from dataclasses import dataclass

from .answers import ANSWERS

HOST = b"Host: origin.test"
CHUNKED = b"Transfer-Encoding: chunked"
BODY = b"5\r\nhello\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Request:
    name: str
    # Sent one after the other, with a pause between them.
    parts: tuple
    # Answers that an honest reader gives, and which of them are to HEAD.
    count: int = 1
    heads: tuple = (False,)
    # The client says that nothing more comes.
    ends: bool = False


def raw(name, *parts, **more):
    return Request(name, tuple(parts), **more)


def head(line, *fields):
    return b"\r\n".join([line, *fields, b"", b""])


def get(name, *fields, line=b"GET /x HTTP/1.1", **more):
    return raw(name, head(line, HOST, *fields), **more)


def post(name, *fields, body=b"", line=b"POST /x HTTP/1.1", **more):
    return raw(name, head(line, HOST, *fields) + body, **more)


def methods():
    for method in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"PROPFIND", b"MKCOL",
                   b"LOCK", b"REPORT", b"M-SEARCH", b"X-OWN", b"QUERY", b"get", b"GeT", b"A", b"X" * 40,
                   b"!#$%&'*+-.^_`|~"):
        name, heads = method.decode(), (method == b"HEAD",)
        line = method + b" /m?a=1 HTTP/1.1"
        yield get(f"method/{name}", line=line, heads=heads)
        if method in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"X-OWN"):
            yield post(f"method/{name} with length", b"Content-Length: 5", line=line, body=b"hello", heads=heads)
            yield post(f"method/{name} with length 0", b"Content-Length: 0", line=line, heads=heads)
            yield post(f"method/{name} with chunks", CHUNKED, line=line, body=BODY, heads=heads)
    for name, method in {"parenthesis": b"GE(T", "colon": b"GE:T", "slash": b"GE/T", "nul": b"G\x00T",
                         "high": b"G\xc9T",
                         "quote": b'"GET"', "space first": b" GET", "tab": b"GE\tT", "empty": b"",
                         "comma": b"GET,POST"}.items():
        yield get(f"method/bad: {name}", line=method + b" /m HTTP/1.1")


def targets():
    for target in (b"/", b"//", b"//a//b", b"/a/../b", b"/a/./b", b"/..", b"/%2e%2e/x", b"/%2F", b"/%2f..%2f",
                   b"/a%00b", b"/%zz", b"/%", b"/a;b=c",
                   b"/a?", b"/a??b", b"/a?b=c&d=%20+e", b"/a?b#c", b"/a#c", b"/~a", b"/a|b", b"/a{b}", b"/a[b]",
                   b"/a^b", b"/a`b", b"/a\"b",
                   b"/a<b>", b"/a\\b", b"/caf\xc3\xa9", b"/\xff", b"/a\x7fb", b"/a'b", b"/a,b", b"/a:b@c", b"/a*b",
                   b"/" + b"p" * 5000,
                   b"/?" + b"q" * 5000):
        shown = target[:40].decode("latin1").encode("unicode_escape").decode()
        yield get(f"target/{shown}", line=b"GET " + target + b" HTTP/1.1")
    bad = {"empty": b"", "relative": b"x", "query only": b"?a", "dots": b"..", "asterisk": b"*", "nul": b"/a\x00b",
           "tab": b"/a\tb",
           "space": b"/a b", "two spaces": b" /a", "scheme only": b"http:", "authority": b"origin.test:80",
           "backslash": b"\\a",
           "ftp": b"ftp://origin.test/x", "https": b"https://origin.test/x", "userinfo": b"http://me@origin.test/x",
           "no host": b"http:///x", "bad port": b"http://origin.test:x/y", "port 99999": b"http://origin.test:99999/",
           "fragment": b"http://origin.test/x#y", "two slashes": b"http:/x"}
    for name, target in bad.items():
        yield get(f"target/odd: {name}", line=b"GET " + target + b" HTTP/1.1")
    for name, target, host in (
            ("same host", b"http://origin.test/x?y", HOST), ("other host", b"http://other.test/x", HOST), ("no path",
                b"http://origin.test", HOST),
            ("query", b"http://origin.test?y", HOST), ("upper scheme", b"HTTP://origin.test/x", HOST), ("upper host",
                b"http://ORIGIN.test/x", HOST),
            ("default port", b"http://origin.test:80/x", HOST), ("other port", b"http://origin.test:81/x", HOST),
            ("empty port", b"http://origin.test:/x", HOST), ("no Host", b"http://origin.test/x", b"X-A: 1"),
            ("empty Host", b"http://origin.test/x", b"Host:")):
        yield raw(f"target/absolute: {name}", head(b"GET " + target + b" HTTP/1.1", host))
    yield get("target/OPTIONS *", line=b"OPTIONS * HTTP/1.1")
    yield get("target/OPTIONS absolute", line=b"OPTIONS http://origin.test HTTP/1.1")
    for name, target in {"authority": b"origin.test:80", "no port": b"origin.test", "path": b"/x",
                         "port 0": b"origin.test:0",
                         "absolute": b"http://origin.test/", "userinfo": b"me@origin.test:80"}.items():
        yield get(f"target/CONNECT {name}", line=b"CONNECT " + target + b" HTTP/1.1")
    yield post("target/CONNECT with length", b"Content-Length: 5", line=b"CONNECT origin.test:80 HTTP/1.1",
               body=b"hello")


def versions():
    for version in (b"HTTP/1.0", b"HTTP/1.2", b"HTTP/1.9", b"HTTP/2.0", b"HTTP/3.0", b"HTTP/0.9", b"HTTP/1.10",
                    b"HTTP/1", b"HTTP/11", b"HTTP/1.", b"HTTP/.1",
                    b"HTTP/01.1", b"http/1.1", b"HTTP /1.1", b"HTTP/1,1", b"HTTP/1.1x", b"HTTP/1.1 ", b"HTTP/1.1\t",
                    b"HTTQ/1.1", b"HTTP/1.\xb1", b""):
        yield get(f"version/{version.decode('latin1')!a}", line=b"GET /v " + version)
    yield raw("version/none", b"GET /v\r\n", b"\r\n")
    yield raw("version/0.9 simple", b"GET /v\r\n\r\n")
    old = b"GET /old HTTP/1.0"
    yield raw("1.0/no Host", head(old))
    yield get("1.0/Host", line=old)
    yield get("1.0/keep-alive", b"Connection: keep-alive", line=old)
    yield get("1.0/close", b"Connection: close", line=old)
    yield get("1.0/connection names a field", b"Connection: keep-alive, x-mine", b"X-Mine: 1", line=old)
    yield post("1.0/POST with length", b"Content-Length: 5", body=b"hello", line=b"POST /old HTTP/1.0")
    yield post("1.0/POST without length", line=b"POST /old HTTP/1.0", ends=True)
    yield post("1.0/POST with body until the end", line=b"POST /old HTTP/1.0", body=b"hello", ends=True)
    yield post("1.0/chunks", CHUNKED, line=b"POST /old HTTP/1.0", body=BODY)
    yield post("1.0/chunks, keep-alive", CHUNKED, b"Connection: keep-alive", line=b"POST /old HTTP/1.0", body=BODY)
    yield post("1.0/length and chunks", b"Content-Length: 5", CHUNKED, line=b"POST /old HTTP/1.0", body=BODY)
    yield post("1.0/expect", b"Expect: 100-continue", b"Content-Length: 5", line=b"POST /old HTTP/1.0", body=b"hello")
    for name in ("chunked", "trailers", "interim-103", "until-close", "204", "large"):
        yield get(f"1.0/answer {name}", line=f"GET /a/{name} HTTP/1.0".encode())


def hosts():
    line = b"GET /h HTTP/1.1"
    values = {"port": b"origin.test:8080", "upper": b"ORIGIN.TEST", "dot": b"origin.test.", "address": b"127.0.0.1",
              "v6": b"[::1]", "v6 with port": b"[::1]:80",
              "underscore": b"a_b.test", "long": b"a" * 300 + b".test", "empty": b"", "empty port": b"origin.test:",
              "spaces around": b"  origin.test  ",
              "port 0": b"origin.test:0", "port 99999": b"origin.test:99999", "port letters": b"origin.test:x",
              "two ports": b"origin.test:80:80",
              "space": b"origin .test", "tab": b"origin\ttest", "comma": b"origin.test,other.test",
              "slash": b"origin.test/x", "userinfo": b"me@origin.test",
              "question": b"origin.test?x", "hash": b"origin.test#x", "backslash": b"origin.test\\x",
              "v6 open": b"[::1", "v6 bare": b"::1",
              "high": b"\xe9.test", "percent": b"a%2eb", "scheme": b"http://origin.test", "nul": b"origin\x00test",
              "quote": b"\"origin.test\"",
              "angle": b"<origin>", "star": b"*"}
    for name, value in values.items():
        yield raw(f"host/{name}", head(line, b"Host: " + value))
    yield raw("host/missing", head(line))
    yield raw("host/twice the same", head(line, HOST, HOST))
    yield raw("host/twice", head(line, HOST, b"Host: other.test"))
    yield raw("host/upper name", head(line, b"HOST: origin.test"))
    yield raw("host/last", head(line, b"X-A: 1", HOST))
    yield raw("host/space before colon", head(line, b"Host : origin.test"))
    yield raw("host/folded", head(line, b"Host:\r\n origin.test"))
    yield raw("host/second folded", head(line, HOST, b"X-A: 1\r\n Host: other.test"))


def fields():
    shapes = {
        "plain": b"X-A: 1", "no space": b"X-A:1", "spaces": b"X-A:    1   ", "tabs": b"X-A:\t1\t", "empty": b"X-A:",
        "only spaces": b"X-A:     ", "inner spaces": b"X-A: a   b",
        "inner tab": b"X-A: a\tb", "colon in value": b"X-A: a:b", "obs-text": b"X-A: caf\xe9",
        "utf-8": b"X-A: caf\xc3\xa9", "quoted": b'X-A: "a, b"', "lower": b"x-a: 1",
        "mixed": b"x-A: 1", "underscore": b"X_A: 1", "dot": b"X.A: 1", "digits": b"123: 1",
        "all token characters": b"!#$%&'*+-.^_`|~aZ9: 1", "one letter": b"x: 1",
        "long name": b"X" * 300 + b": 1", "long value": b"X-A: " + b"v" * 8000,
        "very long value": b"X-A: " + b"v" * 50000, "cookie": b"Cookie: a=b; c=d",
        "date": b"Date: Tue, 15 Nov 1994 08:12:31 GMT", "authorization": b"Authorization: Basic YTpi",
        "pragma": b"Pragma: no-cache", "max-forwards": b"Max-Forwards: 0",
        "forwarded": b"Forwarded: for=1.2.3.4", "via": b"Via: 1.0 other",
        "x-forwarded-for": b"X-Forwarded-For: 1.2.3.4", "accept-encoding": b"Accept-Encoding: gzip",
        "identity of a caller": b"X-Isthmus-Client-Id: spiffe://west.example/ns/a/sa/b",
        "content-encoding": b"Content-Encoding: gzip",
        # --- bad ones
        "space before colon": b"X-A : 1", "tab before colon": b"X-A\t: 1", "no colon": b"X-A", "empty name": b": 1",
        "space in name": b"X A: 1", "parenthesis in name": b"X(A): 1",
        "high in name": b"X-\xe9: 1", "nul in name": b"X-\x00: 1", "control in name": b"X-\x01: 1",
        "nul in value": b"X-A: 1\x002", "control in value": b"X-A: 1\x012",
        "escape in value": b"X-A: 1\x1b[2J", "del in value": b"X-A: 1\x7f2", "vertical tab": b"X-A: 1\x0b2",
            "cr in value": b"X-A: 1\r2", "cr last": b"X-A: 1\r",
        "lf in value": b"X-A: 1\n2", "lf field": b"X-A: 1\nX-B: 2", "lf last": b"X-A: 1\n", "cr cr lf": b"X-A: 1\r\r",
        "obs-fold space": b"X-A: 1\r\n 2",
        "obs-fold tab": b"X-A: 1\r\n\t2", "obs-fold empty": b"X-A: 1\r\n ", "obs-fold of nothing": b"X-A:\r\n 2",
        "slash in name": b"X/A: 1", "quote in name": b'"X-A": 1',
        "brackets in name": b"[X]: 1", "at in name": b"X@A: 1", "pseudo": b":path: /y", "comma in name": b"X,A: 1",
        "equals": b"X=1", "semicolon": b"X;A: 1"}
    for name, shape in shapes.items():
        yield get(f"field/{name}", shape)
    yield raw("field/fold first", head(b"GET /x HTTP/1.1", b" X-A: 1", HOST))
    yield raw("field/tab first", head(b"GET /x HTTP/1.1", b"\tX-A: 1", HOST))
    yield get("field/repeated", b"X-A: 1", b"X-B: 2", b"X-A: 3")
    yield get("field/repeated cookies", b"Cookie: a=1", b"Cookie: b=2")
    yield get("field/a hundred", *(b"X-F%d: %d" % (n, n) for n in range(95)))
    yield get("field/three hundred", *(b"X-F%d: %d" % (n, n) for n in range(300)))
    yield get("field/100 KiB in all", *(b"X-F%d: %s" % (n, b"v" * 2000) for n in range(50)))
    yield get("field/one of 100 KiB", b"X-A: " + b"v" * 100000)
    yield get("field/name of 70 KiB", b"X" * 70000 + b": 1")
    yield get("field/target of 40 KiB", line=b"GET /" + b"p" * 40000 + b" HTTP/1.1")
    yield get("field/target of 70 KiB", line=b"GET /" + b"p" * 70000 + b" HTTP/1.1")


def lines():
    yield raw("line/lf only", b"GET /x HTTP/1.1\nHost: origin.test\n\n")
    yield raw("line/lf after the first line", b"GET /x HTTP/1.1\nHost: origin.test\r\n\r\n")
    yield raw("line/lf at the end", b"GET /x HTTP/1.1\r\nHost: origin.test\r\n\n")
    yield raw("line/lf then crlf", b"GET /x HTTP/1.1\r\nHost: origin.test\n\r\n")
    yield raw("line/cr only", b"GET /x HTTP/1.1\rHost: origin.test\r\r")
    yield raw("line/lf cr", b"GET /x HTTP/1.1\n\rHost: origin.test\n\r\n\r")
    yield raw("line/crlf first", b"\r\n" + head(b"GET /x HTTP/1.1", HOST))
    yield raw("line/five crlf first", b"\r\n" * 5 + head(b"GET /x HTTP/1.1", HOST))
    yield raw("line/lf first", b"\n" + head(b"GET /x HTTP/1.1", HOST))
    yield raw("line/space first", b" " + head(b"GET /x HTTP/1.1", HOST))
    yield raw("line/nul first", b"\x00" + head(b"GET /x HTTP/1.1", HOST))
    yield get("line/tabs", line=b"GET\t/x\tHTTP/1.1")
    yield get("line/two spaces", line=b"GET  /x  HTTP/1.1")
    yield get("line/space last", line=b"GET /x HTTP/1.1 ")
    yield get("line/cr in it", line=b"GET /x\r HTTP/1.1")
    yield get("line/four words", line=b"GET /x /y HTTP/1.1")
    yield get("line/form feed", line=b"GET\x0c/x HTTP/1.1")
    yield raw("line/nothing but crlf", b"\r\n\r\n", ends=True)
    yield raw("line/cut in the line", b"GET /x HT", ends=True)
    yield raw("line/cut in the fields", b"GET /x HTTP/1.1\r\nHost: orig", ends=True)
    yield raw("line/cut before the end", b"GET /x HTTP/1.1\r\nHost: origin.test\r\n", ends=True)
    yield raw("line/tls", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + b"\x00" * 100)
    yield raw("line/garbage", b"\xde\xad\xbe\xef" * 10 + b"\r\n\r\n")
    yield raw("line/every byte apart", *(bytes([byte]) for byte in head(b"GET /b HTTP/1.1", HOST)[:12]),
              head(b"GET /b HTTP/1.1", HOST)[12:])
    yield raw("line/ends after it", head(b"GET /x HTTP/1.1", HOST), ends=True)


def framing():
    length = b"Content-Length: "
    lengths = {"zeros": b"0005", "spaces": b"  5  ", "tab": b"\t5", "plus": b"+5", "minus": b"-5",
               "minus zero": b"-0", "hex": b"0x5", "octal": b"0o5", "float": b"5.0", "exponent": b"5e0",
               "letters": b"five", "empty": b"", "comma": b"5,", "list of equals": b"5, 5", "list of others": b"5, 6",
               "space inside": b"5 5", "semicolon": b"5;a", "quoted": b'"5"',
               "underscore": b"1_0", "huge": b"99999999999999999999", "2^64": b"18446744073709551616",
               "2^64+5": b"18446744073709551621", "2^63": b"9223372036854775808",
               "vertical tab": b"\x0b5", "nul": b"5\x00", "form feed": b"5\x0c", "high digit": b"\xb5"}
    for name, value in lengths.items():
        yield post(f"length/{name}", length + value, body=b"hello")
    yield post("length/twice the same", length + b"5", length + b"5", body=b"hello")
    yield post("length/twice", length + b"5", length + b"6", body=b"hello!")
    yield post("length/twice with zero", length + b"0", length + b"5", body=b"hello")
    yield post("length/thrice", length + b"5", length + b"5", length + b"5", body=b"hello")
    yield post("length/lower name", b"content-length: 5", body=b"hello")
    yield post("length/space before colon", b"Content-Length : 5", body=b"hello")
    yield post("length/underscore in the name", b"Content_Length: 5", body=b"")
    yield post("length/folded", b"Content-Length:\r\n 5", body=b"hello")
    yield post("length/lf before", b"X-A: 1\nContent-Length: 5", body=b"hello")
    yield post("length/cut", length + b"10", body=b"hello", ends=True)
    yield post("length/none with a body", body=b"hello")
    yield post("length/a mebibyte", length + b"1048576", body=b"x" * 1048576)
    yield post("length/apart from the body", length + b"5")
    yield raw("length/body in parts", head(b"POST /x HTTP/1.1", HOST, length + b"10"), b"hello", b"world")
    encodings = {
        "chunked": b"chunked", "upper": b"CHUNKED", "mixed": b"Chunked", "spaces": b"  chunked  ",
        "tab": b"\tchunked", "gzip": b"gzip", "gzip, chunked": b"gzip, chunked",
        "chunked, gzip": b"chunked, gzip", "chunked, chunked": b"chunked, chunked", "identity": b"identity",
        "identity, chunked": b"identity, chunked", "chunked, identity": b"chunked, identity",
        "empty": b"", "comma": b",chunked", "comma last": b"chunked,", "quoted": b'"chunked"',
        "parameter": b"chunked;a=b", "xchunked": b"xchunked", "chunkedx": b"chunkedx", "chunk": b"chunk",
        "vertical tab": b"\x0bchunked", "nul": b"chunked\x00", "form feed": b"\x0cchunked", "cr": b"\rchunked",
        "two words": b"chunked chunked", "high": b"chunked\xff", "trailers": b"trailers"}
    for name, value in encodings.items():
        yield post(f"encoding/{name}", b"Transfer-Encoding: " + value, body=BODY)
    yield post("encoding/twice", CHUNKED, CHUNKED, body=BODY)
    yield post("encoding/gzip then chunked", b"Transfer-Encoding: gzip", CHUNKED, body=BODY)
    yield post("encoding/identity then chunked", b"Transfer-Encoding: identity", CHUNKED, body=BODY)
    yield post("encoding/chunked then identity", CHUNKED, b"Transfer-Encoding: identity", body=BODY)
    yield post("encoding/space before colon", b"Transfer-Encoding : chunked", body=BODY)
    yield post("encoding/underscore in the name", b"Transfer_Encoding: chunked", body=b"")
    yield post("encoding/folded", b"Transfer-Encoding:\r\n chunked", body=BODY)
    yield post("encoding/folded in another", b"X-A: 1\r\n Transfer-Encoding: chunked", body=b"")
    yield post("encoding/no space", b"Transfer-Encoding:chunked", body=BODY)
    yield post("encoding/GET", CHUNKED, line=b"GET /x HTTP/1.1", body=BODY)
    smuggled = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: origin.test\r\n\r\n"
    both = {
        "length first": [length + b"%d" % len(smuggled), CHUNKED], "encoding first": [CHUNKED,
            length + b"%d" % len(smuggled)], "length 0": [length + b"0", CHUNKED],
        "length 4": [length + b"4", CHUNKED], "odd encoding": [length + b"%d" % len(smuggled),
            b"Transfer-Encoding: xchunked"],
        "encoding with space": [length + b"%d" % len(smuggled), b"Transfer-Encoding : chunked"],
        "encoding folded": [length + b"%d" % len(smuggled), b"Transfer-Encoding:\r\n chunked"],
        "encoding with vertical tab": [length + b"%d" % len(smuggled), b"Transfer-Encoding: \x0bchunked"],
        "encoding after lf": [length + b"%d" % len(smuggled), b"X-A: 1\nTransfer-Encoding: chunked"],
        "encoding after cr": [length + b"%d" % len(smuggled), b"X-A: 1\rTransfer-Encoding: chunked"],
        "identity": [length + b"%d" % len(smuggled), b"Transfer-Encoding: identity"],
        "length in a list": [length + b"%d, 0" % len(smuggled), CHUNKED],
        "connection names the length": [length + b"%d" % len(smuggled), b"Connection: content-length"]}
    for name, given in both.items():
        yield post(f"smuggling/{name}", *given, body=smuggled)
    yield post("smuggling/two lengths", length + b"0", length + b"%d" % len(smuggled), body=smuggled)
    yield raw("smuggling/GET with a length", head(b"GET /x HTTP/1.1", HOST,
                                                  length + b"%d" % len(smuggled[5:])) + smuggled[5:])
    yield raw("smuggling/HEAD with a length", head(b"HEAD /x HTTP/1.1", HOST,
                                                   length + b"%d" % len(smuggled[5:])) + smuggled[5:], heads=(True,))


def chunks():
    bodies = {
        "one": BODY, "two": b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", "none": b"0\r\n\r\n",
        "upper hex": b"A\r\n0123456789\r\n0\r\n\r\n", "lower hex": b"a\r\n0123456789\r\n0\r\n\r\n",
        "zeros": b"00005\r\nhello\r\n0\r\n\r\n",
        "many zeros": b"0" * 40 + b"5\r\nhello\r\n0\r\n\r\n", "zeros last": b"5\r\nhello\r\n0000\r\n\r\n",
        "extension": b"5;a\r\nhello\r\n0\r\n\r\n", "extension with value": b"5;a=b\r\nhello\r\n0\r\n\r\n",
        "extension quoted": b'5;a="b;c"\r\nhello\r\n0\r\n\r\n',
        "extension with spaces": b"5 ; a = b\r\nhello\r\n0\r\n\r\n",
        "extension of the last": b"5\r\nhello\r\n0;a\r\n\r\n",
        "extension without a name": b"5;\r\nhello\r\n0\r\n\r\n", "extension with lf": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        "extension with cr": b"5;a\rb\r\nhello\r\n0\r\n\r\n", "extension with nul": b"5;a\x00\r\nhello\r\n0\r\n\r\n",
        "extension long": b"5;" + b"x" * 20000 + b"\r\nhello\r\n0\r\n\r\n",
        "quoted with crlf": b'5;a="\r\nhello\r\n0\r\n\r\n', "size letters": b"xyz\r\nhello\r\n0\r\n\r\n",
        "size prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
        "size plus": b"+5\r\nhello\r\n0\r\n\r\n", "size minus": b"-5\r\nhello\r\n0\r\n\r\n",
        "size empty": b"\r\nhello\r\n0\r\n\r\n", "size space before": b" 5\r\nhello\r\n0\r\n\r\n",
        "size space after": b"5 \r\nhello\r\n0\r\n\r\n",
        "size tab after": b"5\t\r\nhello\r\n0\r\n\r\n", "size underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
        "size 2^64": b"10000000000000000\r\nhello\r\n0\r\n\r\n",
        "size 2^64+5": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        "size 2^32+5": b"100000005\r\nhello\r\n0\r\n\r\n", "size 2^63": b"8000000000000000\r\nhello\r\n0\r\n\r\n",
        "size comma": b"5,\r\nhello\r\n0\r\n\r\n", "size dot": b"5.0\r\nhello\r\n0\r\n\r\n",
        "size nul": b"5\x00\r\nhello\r\n0\r\n\r\n",
        "size vertical tab": b"5\x0b\r\nhello\r\n0\r\n\r\n", "lf only": b"5\nhello\n0\n\n",
        "lf after the size": b"5\nhello\r\n0\r\n\r\n", "lf after the data": b"5\r\nhello\n0\r\n\r\n",
        "lf last": b"5\r\nhello\r\n0\r\n\n",
        "cr only": b"5\rhello\r0\r\r", "cr after the size": b"5\rhello\r\n0\r\n\r\n",
        "no end": b"5\r\nhello0\r\n\r\n", "data too long": b"5\r\nhello!\r\n0\r\n\r\n",
        "data too short": b"5\r\nhell\r\n0\r\n\r\n",
        "two bytes instead of the end": b"5\r\nhelloXX0\r\n\r\n", "trailer": b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
        "trailers": b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-B: 2\r\n\r\n",
        "trailer lf": b"5\r\nhello\r\n0\r\nX-Sum: 1\n\r\n",
        "trailer folded": b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n 2\r\n\r\n",
        "trailer no colon": b"5\r\nhello\r\n0\r\nX-Sum\r\n\r\n",

        "trailer length": b"5\r\nhello\r\n0\r\nContent-Length: 9\r\n\r\n",
        "trailer encoding": b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "trailer host": b"5\r\nhello\r\n0\r\nHost: other.test\r\n\r\n",
        "trailer authorization": b"5\r\nhello\r\n0\r\nAuthorization: x\r\n\r\n",
        "trailer connection": b"5\r\nhello\r\n0\r\nConnection: close\r\n\r\n",
        "trailer of the caller's identity": b"5\r\nhello\r\n0\r\nX-Isthmus-Client-Id: spiffe://a/b\r\n\r\n",
        "trailer nul": b"5\r\nhello\r\n0\r\nX-Sum: 1\x002\r\n\r\n",
        "trailers of 40 KiB": b"5\r\nhello\r\n0\r\n" + b"X-Sum: " + b"1" * 40000 + b"\r\n\r\n",
        "many trailers": b"5\r\nhello\r\n0\r\n" + b"X-Sum: 1\r\n" * 300 + b"\r\n", "cut in the size": b"5",
        "cut in the data": b"5\r\nhel",
        "cut before the last": b"5\r\nhello\r\n", "cut after the last": b"5\r\nhello\r\n0\r\n",
        "cut in the trailers": b"5\r\nhello\r\n0\r\nX-Su",
        "thousand of one byte": b"1\r\na\r\n" * 1000 + b"0\r\n\r\n",
        "large": b"40000\r\n" + b"x" * 0x40000 + b"\r\n0\r\n\r\n"}
    for name, body in bodies.items():
        yield post(f"chunk/{name}", CHUNKED, body=body, ends=name.startswith("cut"))
    yield post("chunk/trailer announced", CHUNKED, b"Trailer: X-Sum", b"TE: trailers", b"Connection: TE",
               body=bodies["trailer"])
    yield raw("chunk/in parts", head(b"POST /x HTTP/1.1", HOST, CHUNKED), b"5\r", b"\nhel", b"lo\r\n0", b"\r\n\r",
              b"\n")


def pipelining():
    one, two = head(b"GET /one HTTP/1.1", HOST), head(b"GET /two HTTP/1.1", HOST)
    with_body = head(b"POST /one HTTP/1.1", HOST, b"Content-Length: 5") + b"hello"
    in_chunks = head(b"POST /one HTTP/1.1", HOST, CHUNKED) + BODY
    pairs = {"two": one + two, "body first": with_body + two, "chunks first": in_chunks + two,
             "two bodies": with_body + with_body, "crlf between": one + b"\r\n" + two,
             "crlf after a body": with_body + b"\r\n" + two,
             "slow first": head(b"GET /a/chunked-many HTTP/1.1", HOST) + two,
             "error first": head(b"GET /a/status-500 HTTP/1.1", HOST) + two, "204 first": head(b"GET /a/204 HTTP/1.1",
                 HOST) + two,
             "304 first": head(b"GET /a/304-length HTTP/1.1", HOST) + two,
             "empty first": head(b"GET /a/empty HTTP/1.1", HOST) + two,
             "interim first": head(b"GET /a/interim-103 HTTP/1.1", HOST) + two}
    for name, both in pairs.items():
        yield raw(f"pipelining/{name}", both, count=2, heads=(False, False))
    yield raw("pipelining/HEAD first", head(b"HEAD /a/head-length HTTP/1.1", HOST) + two, count=2, heads=(True,
        False))
    yield raw("pipelining/ten", one * 10, count=10, heads=(False,) * 10)
    yield raw("pipelining/a hundred", one * 100, count=100, heads=(False,) * 100)
    named = head(b"POST /one HTTP/1.1", HOST, CHUNKED, b"Connection: transfer-encoding") + BODY
    yield raw("pipelining/Connection names the encoding", named + two, count=2, heads=(False, False))
    yield raw("pipelining/close first", head(b"GET /one HTTP/1.1", HOST, b"Connection: close") + two)
    yield raw("pipelining/answer closes", head(b"GET /a/connection-close HTTP/1.1", HOST) + two, count=2,
              heads=(False, False))
    yield raw("pipelining/bad second", one + b"NONSENSE\r\n\r\n", count=2, heads=(False, False))
    yield raw("pipelining/bad first", b"NONSENSE\r\n\r\n" + two)
    yield raw("pipelining/lf between", one + b"\n" + two, count=2, heads=(False, False))
    yield raw("pipelining/split in the second", one + two[:10], two[10:], count=2, heads=(False, False))
    yield raw("pipelining/early answer", head(b"POST /a/early HTTP/1.1", HOST, b"Content-Length: 5") + b"hello" + two,
              count=2, heads=(False, False))


def expect():
    wait = b"Expect: 100-continue"
    for name, path in (("granted", b"/x"), ("refused", b"/a/expect-417"), ("silent", b"/a/expect-silent"),
                       ("early 413", b"/a/early-close")):
        yield raw(f"expect/{name}", head(b"POST " + path + b" HTTP/1.1", HOST, wait, b"Content-Length: 5"), b"hello")
    yield raw("expect/chunks", head(b"POST /x HTTP/1.1", HOST, wait, CHUNKED), BODY)
    yield post("expect/with the body at once", wait, b"Content-Length: 5", body=b"hello")
    yield post("expect/upper", b"Expect: 100-CONTINUE", b"Content-Length: 5", body=b"hello")
    yield get("expect/without a body", wait)
    yield post("expect/length 0", wait, b"Content-Length: 0")
    yield post("expect/unknown", b"Expect: other", b"Content-Length: 5", body=b"hello")
    yield post("expect/list", b"Expect: 100-continue, other", b"Content-Length: 5", body=b"hello")
    yield post("expect/twice", wait, wait, b"Content-Length: 5", body=b"hello")
    yield post("expect/empty", b"Expect:", b"Content-Length: 5", body=b"hello")


def upgrades():
    key = (b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", b"Sec-WebSocket-Version: 13")
    offer = (b"Connection: Upgrade", b"Upgrade: websocket", *key)
    yield get("upgrade/websocket accepted", *offer, line=b"GET /a/upgrade HTTP/1.1")
    yield get("upgrade/websocket ignored", *offer)
    yield get("upgrade/websocket refused", *offer, line=b"GET /a/status-403 HTTP/1.1")
    yield get("upgrade/websocket upper", b"Connection: UPGRADE", b"Upgrade: WebSocket", *key,
              line=b"GET /a/upgrade HTTP/1.1")
    yield get("upgrade/websocket and keep-alive", b"Connection: keep-alive, Upgrade", b"Upgrade: websocket", *key,
              line=b"GET /a/upgrade HTTP/1.1")
    yield get("upgrade/without Connection", b"Upgrade: websocket", *key)
    yield get("upgrade/without Upgrade", b"Connection: upgrade", *key)
    yield get("upgrade/h2c", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c",
              b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
    yield get("upgrade/h2c accepted by 101 of other", b"Connection: Upgrade", b"Upgrade: other",
              line=b"GET /a/upgrade-other HTTP/1.1")
    yield get("upgrade/unknown", b"Connection: Upgrade", b"Upgrade: other/1")
    yield get("upgrade/list", b"Connection: Upgrade", b"Upgrade: websocket, h2c", *key)
    yield get("upgrade/unasked 101", line=b"GET /a/101-unasked HTTP/1.1")
    yield post("upgrade/with a body", *offer, b"Content-Length: 5", body=b"hello")
    yield post("upgrade/POST", *offer)
    yield get("upgrade/1.0", *offer, line=b"GET /a/upgrade HTTP/1.0")
    yield raw("upgrade/preface of HTTP/2 later", head(b"GET /x HTTP/1.1", HOST) + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
              count=2, heads=(False, False))


def connection():
    for name, given in {
            "close": [b"Connection: close"], "keep-alive": [b"Connection: keep-alive"],
            "both": [b"Connection: close, keep-alive"], "upper": [b"Connection: CLOSE"],
            "names a field": [b"Connection: x-mine", b"X-Mine: 1"], "names two": [b"Connection: x-mine, x-yours",
                b"X-Mine: 1", b"X-Yours: 2"],
            "two fields": [b"Connection: x-mine", b"Connection: close", b"X-Mine: 1"], "named before": [b"X-Mine: 1",
                b"Connection: x-mine"], "names Host": [b"Connection: host"],
            "names Cookie": [b"Connection: cookie", b"Cookie: a=b"],
            "names Authorization": [b"Connection: authorization", b"Authorization: x"],
            "names nothing there": [b"Connection: x-absent"],
            "empty": [b"Connection:"], "commas": [b"Connection: , ,close,"], "not a token": [b"Connection: x(y)"],
            "many names": [b"Connection: " + b", ".join(b"x%d" % n for n in range(200))],
            "Keep-Alive": [b"Keep-Alive: timeout=5"], "Proxy-Connection": [b"Proxy-Connection: keep-alive"],
            "Proxy-Authorization": [b"Proxy-Authorization: Basic YTpi"],
            "Proxy-Authenticate": [b"Proxy-Authenticate: Basic"], "TE: trailers": [b"TE: trailers",
                b"Connection: TE"], "TE: gzip": [b"TE: gzip", b"Connection: TE"], "TE alone": [b"TE: trailers"],
            "Trailer": [b"Trailer: X-Sum"], "X-Forwarded-For is named": [b"Connection: x-forwarded-for",
                b"X-Forwarded-For: 1.2.3.4"],
            "identity is named": [b"Connection: x-isthmus-client-id"]}.items():
        yield get(f"connection/{name}", *given)


def answered():
    for name in ANSWERS:
        if name.startswith("head-"):
            yield raw(f"answer/{name}", head(f"HEAD /a/{name} HTTP/1.1".encode(), HOST), heads=(True,))
        elif name.startswith(("early", "expect")):
            yield raw(f"answer/{name}", head(f"POST /a/{name} HTTP/1.1".encode(), HOST,
                                             b"Content-Length: 5") + b"hello")
        elif name not in ("upgrade", "upgrade-other"):
            yield get(f"answer/{name}", line=f"GET /a/{name} HTTP/1.1".encode())
    # Only what is idempotent may be sent once more after these.
    for name in ("nothing", "half-line", "half-head", "garbage", "two-lengths-differ", "obs-fold", "interim-only"):
        yield post(f"answer/POST {name}", b"Content-Length: 5", line=f"POST /a/{name} HTTP/1.1".encode(),
                   body=b"hello")
    for name in ("length", "chunked", "until-close", "204", "304-length", "status-500"):
        yield raw(f"answer/HEAD {name}", head(f"HEAD /a/{name} HTTP/1.1".encode(), HOST), heads=(True,))
        yield post(f"answer/POST {name}", b"Content-Length: 5", line=f"POST /a/{name} HTTP/1.1".encode(),
                   body=b"hello")


def all_requests():
    tables = (methods, targets, versions, hosts, fields, lines, framing, chunks, pipelining, expect, upgrades,
              connection, answered)
    found = [request for table in tables for request in table()]
    names = [request.name for request in found]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice, f"these names are given twice: {twice}"
    return found
