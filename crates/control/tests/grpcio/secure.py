"""A server whose TLS and permissions come over xDS, or a client of one.

Started with `serve PORT` it serves there until its input ends. Started with `call` each line of the
input is a request in JSON, answered by a line: how many calls ended with which status.
"""

import collections
import json
import sys
from concurrent import futures

import grpc
import grpc.experimental


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(self.call)

    def call(self, request, context):
        """Says who calls, by the names in the certificate."""
        return b",".join(context.auth_context().get("x509_subject_alternative_name", []))


def serve(port):
    server = grpc.server(futures.ThreadPoolExecutor(4), xds=True)
    server.add_generic_rpc_handlers([Echo()])
    credentials = grpc.xds_server_credentials(grpc.insecure_server_credentials())
    server.add_secure_port(f"127.0.0.1:{port}", credentials)
    server.start()
    print("{}", flush=True)
    sys.stdin.read()
    server.stop(None)


def call():
    print("{}", flush=True)
    channels = {}
    for line in sys.stdin:
        request = json.loads(line)
        target = request["target"]
        if target not in channels:
            fallback = grpc.experimental.insecure_channel_credentials()
            channels[target] = grpc.secure_channel(target, grpc.xds_channel_credentials(fallback))
        ends, peers = collections.Counter(), set()
        for _ in range(request["count"]):
            try:
                answer = channels[target].unary_unary(request["method"])(b"", timeout=20)
                ends["OK"] += 1
                peers.add(answer.decode())
            except grpc.RpcError as error:
                ends[error.code().name] += 1
                peers.add(error.details())
        print(json.dumps({"ends": ends, "peers": sorted(peers)}), flush=True)


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    call()
