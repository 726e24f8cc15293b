"""Servers that say their names, and calls to them over xDS channels.

Started with the names of the servers; prints their ports. Then each line of the input is a request in
JSON, answered by a line.
"""

import collections
import json
import sys
import threading
from concurrent import futures

import grpc

METHOD = "/test.Echo/Call"
LOCK = threading.Lock()
TRIES = collections.Counter()


class Echo(grpc.GenericRpcHandler):
    def __init__(self, name):
        self.name = name

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(self.call)

    def call(self, request, context):
        asked = json.loads(request)
        with LOCK:
            TRIES[asked["id"]] += 1
            tries = TRIES[asked["id"]]
        if tries <= asked["fail"]:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return self.name.encode()


class Caller:
    def __init__(self):
        self.channels = {}
        self.next = 0

    def call(self, target, metadata=(), fail=0):
        """The name of who answers, or None and why nobody does."""
        if target not in self.channels:
            self.channels[target] = grpc.insecure_channel(target)
        with LOCK:
            self.next += 1
            number = self.next
        request = json.dumps({"id": number, "fail": fail}).encode()
        try:
            answer = self.channels[target].unary_unary(METHOD)(request, metadata=metadata, timeout=20)
            return answer.decode(), None
        except grpc.RpcError as error:
            return None, f"{error.code().name}: {error.details()}"

    def calls(self, target, count, metadata=(), fail=0, vary=None):
        names, errors = collections.Counter(), []
        for number in range(count):
            sent = [tuple(pair) for pair in metadata]
            if vary:
                sent.append((vary, str(number)))
            name, error = self.call(target, sent, fail)
            if error:
                errors.append(error)
            else:
                names[name] += 1
        return {"names": names, "errors": errors}


class Load:
    """Calls without end, until it is stopped."""

    def __init__(self, caller, target):
        self.names, self.errors, self.going = collections.Counter(), [], True
        self.answered = threading.Condition()
        self.thread = threading.Thread(target=self.run, args=(caller, target))
        self.thread.start()

    def run(self, caller, target):
        while self.going:
            name, error = caller.call(target)
            with self.answered:
                if error:
                    self.errors.append(error)
                else:
                    self.names[name] += 1
                self.answered.notify()

    def take(self, count):
        """Who has answered since the last time, as soon as that many have, or a call has failed."""
        with self.answered:
            self.answered.wait_for(lambda: self.errors or sum(self.names.values()) >= count)
            names, self.names = self.names, collections.Counter()
            return {"names": names, "errors": list(self.errors)}

    def stop(self):
        self.going = False
        self.thread.join()
        return self.take(0)


def main():
    servers, ports = [], {}
    for name in sys.argv[1:]:
        server = grpc.server(futures.ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers([Echo(name)])
        ports[name] = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
    print(json.dumps(ports), flush=True)
    caller, load = Caller(), None
    for line in sys.stdin:
        request = json.loads(line)
        operation = request.pop("do")
        if operation == "calls":
            answer = caller.calls(**request)
        elif operation == "load":
            load, answer = Load(caller, **request), {}
        elif operation == "take":
            answer = load.take(**request)
        else:
            answer = load.stop()
        print(json.dumps(answer), flush=True)


main()
