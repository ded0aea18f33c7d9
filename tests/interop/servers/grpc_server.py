"""The service of echo.proto, by grpcio: grpc_server.py <port>"""

import os
import sys
import time
from concurrent import futures

import grpc

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
messages, services = grpc.protos_and_services("echo.proto")
LARGEST = 16 << 20


class Echo(services.EchoServicer):
    def Unary(self, request, context):
        length = len(request.body)
        context.set_trailing_metadata((("x-length", str(length)), ("x-length-bin", length.to_bytes(4, "big"))))
        caller = dict(context.invocation_metadata()).get("x-isthmus-client-id", "")
        context.send_initial_metadata((("x-caller", caller),))
        time.sleep(request.wait_ms / 1000)
        if request.code:
            context.abort(grpc_status(request.code), "as you wish: 100 %, å")
        return messages.Message(body=request.body, count=1)

    def Collect(self, requests, context):
        bodies = [request.body for request in requests]
        return messages.Message(body=b"".join(bodies), count=len(bodies))

    def Expand(self, request, context):
        for number in range(request.count):
            time.sleep(request.wait_ms / 1000)
            yield messages.Message(body=request.body, count=number)
        if request.code:
            context.abort(grpc_status(request.code), "after all")

    def Talk(self, requests, context):
        for request in requests:
            yield messages.Message(body=request.body, count=request.count)


def grpc_status(number):
    return next(status for status in grpc.StatusCode if status.value[0] == number)


server = grpc.server(futures.ThreadPoolExecutor(16), options=[
    ("grpc.max_receive_message_length", LARGEST), ("grpc.max_send_message_length", LARGEST)])
services.add_EchoServicer_to_server(Echo(), server)
server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
server.start()
server.wait_for_termination()
