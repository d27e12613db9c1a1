"""A service for batches that plays what a test tells it to, and is well otherwise."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from tests.waiting import HANG_S

Play = Callable[["Service"], None]


class Service(BaseHTTPRequestHandler):
    """Counts prompts; `busy-N` is overloaded N times, `bad` is refused, and `plays` come first, a play a question."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[Counter[str]] = Counter()
    plays: ClassVar[dict[str, list[Play]]] = {}
    seen: ClassVar[list[tuple[str, str | None, dict]]] = []  # (path, key, body)
    over: ClassVar[threading.Event] = threading.Event()  # ends what hangs

    def do_GET(self) -> None:
        self.send(200, json.dumps({"data": [{"id": "first"}, {"id": "second"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["prompt"]
        type(self).asked[prompt] += 1
        self.seen.append((self.path, self.headers.get("authorization"), body))
        plays = self.plays.get(prompt) or self.plays.get("*")
        if plays:
            (plays.pop(0) if len(plays) > 1 else plays[0])(self)
        elif prompt.startswith("busy-") and self.asked[prompt] <= int(prompt[5:]):
            self.send(503, json.dumps({"error": "no"}))
        elif prompt == "bad":
            self.send(400, json.dumps({"error": "no"}))
        else:
            well(self)

    def send(self, status: int, text: str, kind: str = "application/json", **headers: str) -> None:
        data = text.encode()
        self.send_response(status)
        given = {"content-type": kind, "content-length": str(len(data)), **headers}
        for name, value in given.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:  # clients that go are expected
        pass


class Server6(Server):
    address_family = socket.AF_INET6


def well(service: Service) -> None:
    service.send(200, json.dumps({"choices": [], "usage": {"completion_tokens": 2}}))


def says(status: int, body: object = None, **headers: str) -> Play:
    """JSON; text stays as it is."""
    text = body if isinstance(body, str) else json.dumps({"error": {"message": "why"}} if body is None else body)
    return lambda service: service.send(status, text, **headers)


def page(status: int) -> Play:
    """HTML, as what stands between a client and a service answers."""
    return lambda service: service.send(status, "<html>[bold]sign in[/nothing]</html>", "text/html")


def cut(service: Service) -> None:
    """Half of the body that was announced."""
    service.send(200, '{"choices": [', content_length="500")
    service.close_connection = True


def reset(service: Service) -> None:
    service.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    service.connection.close()
    service.close_connection = True


def hang(service: Service) -> None:
    service.over.wait(HANG_S)
    service.close_connection = True


def drip(service: Service) -> None:
    """A blank now and then, and never an answer: each piece is in time."""
    service.send_response(200)
    service.send_header("content-length", "1000000")
    service.end_headers()
    while not service.over.wait(0.02):
        service.wfile.write(b" ")
    service.close_connection = True


@contextmanager
def running(kind: type[Server] = Server, host: str = "127.0.0.1") -> Iterator[Server]:
    """The service; what it has seen before is forgotten."""
    Service.asked, Service.plays, Service.over = Counter(), {}, threading.Event()
    Service.seen = []
    server = kind((host, 0), Service)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        Service.over.set()
        server.shutdown()
        server.server_close()


def line(name: str, **body: object) -> str:
    request = {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": {"prompt": name, **body}}
    return json.dumps(request) + "\n"
