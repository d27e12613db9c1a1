"""What a request has to pass before anything looks at it: API key and size. Errors have OpenAI's form."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse

from orchestrator.errors import ConfigError

_OPEN = frozenset({"/health", "/ping"})  # they tell nothing


def read_keys(file: str | None, host: str) -> list[str]:
    """SHA-256 digests of the API keys in a file, a key a line; keys themselves travel nowhere.

    Raises:
        ConfigError: the file cannot be read or has no key; or there is none, and the host is not loopback.
    """
    if file is None:
        if host not in ("127.0.0.1", "::1", "localhost"):
            raise ConfigError(
                f"serve.host={host} is open to others, and there are no API keys.",
                where="serve.api_keys_file",
                hint="Name a file with a key a line, or stay on 127.0.0.1.",
            )
        return []
    try:
        keys = [line.strip() for line in Path(file).read_text().splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"serve.api_keys_file={file}: {error.strerror}.", where="serve.api_keys_file") from error
    if not keys:
        raise ConfigError(f"serve.api_keys_file={file} has no key in it.", where="serve.api_keys_file")
    return [_digest(key) for key in keys]


def error(status: int, message: str, kind: str = "invalid_request_error", **more: Any) -> JSONResponse:
    """An error in OpenAI's form."""
    body = {"message": message, "type": kind, "param": more.get("param"), "code": more.get("code")}
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"error": body}, status_code=status, headers=headers)


class Gate:
    """ASGI middleware.

    Args:
        app: what comes after it.
        keys: digests of the keys that open it; none: it is open.
        max_body: of a request, in bytes.
    """

    def __init__(self, app: Any, keys: Sequence[str], max_body: int) -> None:
        self._app, self._keys, self._max_body = app, list(keys), max_body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request pass, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        if self._keys and path not in _OPEN and not self._known(headers.get("authorization", "")):
            refusal = error(401, "Incorrect API key provided.", code="invalid_api_key")
            await refusal(scope, receive, send)
            return
        body = await self._body(headers, receive)
        if body is None:
            refusal = error(413, f"The request is larger than {self._max_body} bytes.", code="request_too_large")
            await refusal(scope, receive, send)
            return
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, replay, send)

    def _known(self, header: str) -> bool:
        """Compares with every key, in a time that tells nothing about them."""
        kind, _, key = header.partition(" ")
        given = _digest(key.strip())
        same = [hmac.compare_digest(given, known) for known in self._keys]  # all of them, whichever it is
        return kind.lower() == "bearer" and any(same)

    async def _body(self, headers: dict[str, str], receive: Any) -> bytes | None:
        """The whole body, or None if it is too large."""
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._max_body:
            return None
        parts, size = [], 0
        while True:
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body:
                return None
            if not message.get("more_body"):
                return b"".join(parts)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
