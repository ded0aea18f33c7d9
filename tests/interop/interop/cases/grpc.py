"""gRPC of Go (grpcurl) and of C++ (Python's grpcio), before grpcio."""

import contextlib
import json
import os
import sys
import time

from ..case import case, equal, holds
from ..process import run
from ..servers import HERE


def grpcurl(way, method, *messages, options=(), status=0, service="grpc"):
    command = ["grpcurl", "-plaintext", "-import-path", HERE, "-proto", "echo.proto", *options, "-d", "@",
               f"127.0.0.1:{way.front(service)}", f"interop.Echo/{method}"]
    return run(command, stdin="\n".join(map(json.dumps, messages)).encode(), status=status)


def answers(done):
    """The messages that grpcurl prints one after the other."""
    decoder, text, found = json.JSONDecoder(), done.stdout.decode().strip(), []
    while text:
        message, end = decoder.raw_decode(text)
        found.append(message)
        text = text[end:].strip()
    return found


def both(name):
    """The same with the port declared as gRPC, and with detection."""
    def register(check):
        for service in ("grpc", "grpc-detect"):
            case(f"grpc/{name}/{service}", [service], ["grpcurl"])(lambda way, service=service: check(way, service))
        return check
    return register


@both("grpcurl")
def with_grpcurl(way, service):
    equal(answers(grpcurl(way, "Unary", {"body": "aGVsbG8="}, service=service)),
          [{"body": "aGVsbG8=", "count": 1}], "unary")
    equal(answers(grpcurl(way, "Collect", {"body": "YQ=="}, {"body": "Yg=="}, service=service)),
          [{"body": "YWI=", "count": 2}], "client streaming")
    expanded = answers(grpcurl(way, "Expand", {"count": 5}, service=service))
    equal([one.get("count", 0) for one in expanded], [0, 1, 2, 3, 4], "server streaming")
    talk = answers(grpcurl(way, "Talk", *({"count": number} for number in range(1, 9)), service=service))
    equal([one["count"] for one in talk], list(range(1, 9)), "both")


@case("grpc/grpcurl/status", ["grpc"], ["grpcurl"])
def status(way):
    done = grpcurl(way, "Unary", {"code": 9}, options=["-v"], status=64 + 9)
    said = done.stderr + done.stdout
    holds(b"Code: FailedPrecondition" in said and "100 %, å".encode() in said, f"{said}")
    done = grpcurl(way, "Unary", {"body": "YWI="}, options=["-v"])
    holds(b"x-length: 2" in done.stdout, f"no trailing metadata: {done.stdout}")


@case("grpc/grpcurl/deadline", ["grpc"], ["grpcurl"])
def grpcurl_deadline(way):
    begun = time.monotonic()
    done = grpcurl(way, "Unary", {"wait_ms": 3000}, options=["-max-time", "0.5"], status=64 + 4)
    holds(b"DeadlineExceeded" in done.stderr, f"{done.stderr}")
    holds(time.monotonic() - begun < 2.5, "it waited for the answer")


@contextlib.contextmanager
def stub(way, service="grpc", **options):
    import grpc
    sys.path.insert(0, HERE)
    messages, services = grpc.protos_and_services("echo.proto")
    options = [("grpc.max_receive_message_length", 16 << 20), *options.items()]
    with grpc.insecure_channel(f"127.0.0.1:{way.front(service)}", options) as channel:
        yield messages.Message, services.EchoStub(channel)


@both("grpcio")
def with_grpcio(way, service):
    with stub(way, service) as (message, echo):
        answer, call = echo.Unary.with_call(message(body=b"hello"), timeout=20)
        equal(answer.body, b"hello", "unary")
        trailing = dict(call.trailing_metadata())
        equal((trailing["x-length"], trailing["x-length-bin"]), ("5", b"\0\0\0\5"), "trailing metadata")
        collected = echo.Collect(iter([message(body=bytes([n])) for n in range(100)]), timeout=20)
        equal((collected.body, collected.count), (bytes(range(100)), 100), "client streaming")
        expanded = echo.Expand(message(count=100, body=b"x" * 1000), timeout=20)
        equal([one.count for one in expanded], list(range(100)), "server streaming")


@case("grpc/grpcio/both ways at once", ["grpc"])
def talk(way):
    """Each message is sent when the answer to the one before has come."""
    import queue
    with stub(way) as (message, echo):
        ahead = queue.Queue()
        answers = echo.Talk(iter(ahead.get, None), timeout=20)
        for number in range(1, 51):
            ahead.put(message(count=number))
            equal(next(answers).count, number, "answer")
        ahead.put(None)
        equal(list(answers), [], "the end")


@case("grpc/grpcio/status and deadline", ["grpc"])
def statuses(way):
    import grpc
    with stub(way) as (message, echo):
        for code in range(1, 17):
            equal(ended(lambda: echo.Unary(message(code=code), timeout=20)), (code, "as you wish: 100 %, å"), "status")
        def stream():
            for number, one in enumerate(echo.Expand(message(count=3, code=8), timeout=20)):
                equal(one.count, number, "before the status")
        equal(ended(stream), (8, "after all"), "status after messages")
        begun = time.monotonic()
        code, _ = ended(lambda: echo.Unary(message(wait_ms=3000), timeout=0.5))
        equal(code, grpc.StatusCode.DEADLINE_EXCEEDED.value[0], "status after the deadline")
        holds(time.monotonic() - begun < 2.5, "it waited for the answer")
        call = echo.Expand(message(count=1000, wait_ms=20), timeout=20)
        next(call)
        call.cancel()
        equal(ended(lambda: list(call))[0], grpc.StatusCode.CANCELLED.value[0], "a call that was cancelled")


def ended(call):
    import grpc
    try:
        call()
    except grpc.RpcError as error:
        return error.code().value[0], error.details()
    return 0, ""


@case("grpc/grpcio/large messages", ["grpc"])
def large(way):
    body = os.urandom(8 << 20)
    with stub(way) as (message, echo):
        equal(echo.Unary(message(body=body), timeout=60).body, body, "8 MiB")
        collected = echo.Collect((message(body=body[:1 << 20]) for _ in range(12)), timeout=60)
        equal(collected.count, 12, "12 MiB in a stream")


@case("grpc/grpcio/identity of the caller", ["grpc"])
def identity(way):
    with stub(way) as (message, echo):
        _, call = echo.Unary.with_call(message(), timeout=20, metadata=[("x-isthmus-client-id", "spiffe://mine/me")])
        caller = dict(call.initial_metadata()).get("x-caller")
        wanted = "" if way.label == "one-hop" else "spiffe://west.example/ns/shop/sa/checkout"
        equal(caller, wanted, "who the application thinks it is")
