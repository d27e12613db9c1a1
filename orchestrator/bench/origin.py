"""A model's origin for measurements: a bucket on loopback that sends so many bytes a second, and counts them.

It speaks as much of S3 as pyarrow's client needs to list a bucket and to read ranges of its objects.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

_CHUNK = 64 << 10  # small, so that a slow origin trickles: a client gives up after seconds without a byte
_WHEN = "2026-01-01T00:00:00.000Z"
_WHEN_HTTP = "Thu, 01 Jan 2026 00:00:00 GMT"
BUCKET = "models"


class Origin:
    """What it serves, how fast, and what it has sent.

    Args:
        folder: its files are the bucket's objects.
        bytes_per_s: for all readers together; 0: as fast as it goes.
    """

    def __init__(self, folder: Path, bytes_per_s: float) -> None:
        self.folder = folder
        self.sent = 0  # bytes of objects
        self._rate, self._free_at = bytes_per_s, 0.0
        self._lock = threading.Lock()

    def pace(self, count: int) -> None:
        """Wait until `count` bytes may be sent."""
        with self._lock:
            self.sent += count
            now = time.monotonic()
            at = max(now, self._free_at)
            self._free_at = at + (count / self._rate if self._rate else 0.0)
        time.sleep(max(0.0, at - now))


@contextmanager
def serving(origin: Origin) -> Iterator[str]:
    """Serve it; yields a URI for `model.id`."""

    class Bucket(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            name = unquote(asked.path).removeprefix(f"/{BUCKET}").strip("/")
            file = origin.folder / name
            if not name:
                self._list(parse_qs(asked.query).get("prefix", [""])[0])
            elif file.is_file():
                self._object(file)
            else:
                self._head(404, {"Content-Length": "0"})

        def _list(self, prefix: str) -> None:
            files = [f for f in sorted(origin.folder.rglob("*")) if f.is_file()]
            named = [(f.relative_to(origin.folder).as_posix(), f.stat().st_size) for f in files]
            found = [
                f"<Contents><Key>{escape(name)}</Key><LastModified>{_WHEN}</LastModified><Size>{size}</Size></Contents>"
                for name, size in named
                if name.startswith(prefix)
            ]
            inner = f"<Name>{BUCKET}</Name><KeyCount>{len(found)}</KeyCount><IsTruncated>false</IsTruncated>"
            body = f'<?xml version="1.0"?><ListBucketResult>{inner}{"".join(found)}</ListBucketResult>'.encode()
            self._head(200, {"Content-Length": str(len(body)), "Content-Type": "application/xml"})
            self.wfile.write(body)

        def _object(self, file: Path) -> None:
            size = file.stat().st_size
            status, first, last, headers = part(self.headers.get("Range"), size)
            known = {"Last-Modified": _WHEN_HTTP, "ETag": '"x"', "Content-Length": str(last + 1 - first)}
            self._head(status, known | headers)
            if self.command == "HEAD":
                return
            with file.open("rb") as stream:
                stream.seek(first)
                left = last + 1 - first
                while left:
                    data = stream.read(min(_CHUNK, left))
                    origin.pace(len(data))
                    self.wfile.write(data)
                    left -= len(data)

        def _head(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = quote(f"127.0.0.1:{server.server_port}", safe="")
    try:
        yield f"s3://access:secret@{BUCKET}?scheme=http&endpoint_override={address}&region=us-east-1"
    finally:
        server.shutdown()
        server.server_close()


def part(wanted: str | None, size: int) -> tuple[int, int, int, dict[str, str]]:
    """What an HTTP request's `Range` asks of `size` bytes: status, first byte, last byte, and headers of the answer."""
    if not wanted:
        return 200, 0, size - 1, {}
    begin, end = wanted.removeprefix("bytes=").split("-")
    first, last = int(begin), min(int(end or size - 1), size - 1)
    return 206, first, last, {"Content-Range": f"bytes {first}-{last}/{size}"}
