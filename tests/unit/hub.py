"""A hub of our own, on loopback, with one model: what huggingface_hub's file system asks of the real one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from orchestrator.bench.origin import part

COMMIT = "c0ffee" * 6 + "cafe"
ID = "someone/model"


@contextmanager
def running(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder as ID's; yields the address, and the ranges that are asked for, as they come."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._json([_entry(folder / p, folder) for p in body["paths"] if (folder / p).exists()])

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if path.startswith(f"/{ID}/resolve/{COMMIT}/"):
                return self._file(folder / path.removeprefix(f"/{ID}/resolve/{COMMIT}/"))
            if path.startswith(f"/api/models/{ID}/tree/"):
                return self._json([_entry(file, folder) for file in sorted(folder.rglob("*"))])
            if path in (f"/api/models/{ID}", f"/api/models/{ID}/revision/main", f"/api/models/{ID}/revision/{COMMIT}"):
                return self._json({"id": ID, "sha": COMMIT, "siblings": []})
            return self._json({"error": "Repository not found"}, 404)

        def _file(self, file: Path) -> None:
            data = file.read_bytes()
            if wanted := self.headers.get("Range"):
                asked.append(f"{file.name} {wanted}")
            status, first, last, headers = part(wanted, len(data))
            known = {"ETag": '"x"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            self._answer(status, data[first : last + 1], known | headers)

        def _json(self, found: Any, status: int = 200) -> None:
            more = {"X-Error-Code": "RepoNotFound"} if status == 404 else {}
            self._answer(status, json.dumps(found).encode(), {"Content-Type": "application/json", **more})

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def _entry(file: Path, folder: Path) -> dict[str, Any]:
    name = file.relative_to(folder).as_posix()
    if file.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    return {"type": "file", "path": name, "oid": "0" * 40, "size": file.stat().st_size}
