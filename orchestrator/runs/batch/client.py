"""One request of a batch and its answer: tries, pauses, proxies, and what is said when there is none."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

import httpx

from orchestrator.config import BatchConfig
from orchestrator.errors import ConfigError, ServeError, one_line
from orchestrator.progress import Say
from orchestrator.runs.batch.address import KEY, address, proxy
from orchestrator.runs.batch.requests import Request
from orchestrator.runs.batch.verdict import Verdict, of_answer, of_error

_PAUSE_S = 0.5  # before the second attempt; doubled for each one after it
_LONGEST_S = 30.0
_CONNECT_S = 30.0


@dataclass(frozen=True)
class Answer:
    """What the service said of a request, for good."""

    status: int
    body: dict[str, Any]


class Client:
    """Asks a service. Use it as an async context manager.

    Args:
        settings: concurrency, tries and deadlines.
        url: of the service, with or without `/v1`.
        key: its API key, or "".
        say: gets a line for each new trouble.

    Attributes:
        trouble: why a request was left last, or "".

    Raises:
        ConfigError: the address, the key or the proxy for it is not right.
    """

    def __init__(self, settings: BatchConfig, url: str, key: str, say: Say) -> None:
        self.trouble = ""
        self._tries, self._seconds, self._say, self._key = settings.retries + 1, settings.timeout_s, say, key
        self._said: set[str] = set()
        self._not_before = 0.0  # the service asked for a pause, of the monotonic clock
        base, through = address(url), proxy(address(url))
        shown = [str(part.copy_with(userinfo=b"")) for part in (base, through) if part]  # without passwords
        self._at = " through the proxy ".join(shown)
        self._served: str | None = None
        try:
            self._http = httpx.AsyncClient(
                base_url=base,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=httpx.Timeout(self._seconds, connect=min(_CONNECT_S, self._seconds)),
                limits=httpx.Limits(max_connections=settings.concurrency),
                verify=httpx.create_ssl_context(),  # SSL_CERT_FILE and SSL_CERT_DIR count
                proxy=through,
                trust_env=False,  # `proxy` reads the variables
            )
        except ValueError as error:
            raise ConfigError(f"{self._at}: {error}.", where="batch.url") from error

    async def __aenter__(self) -> Client:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ask(self, request: Request) -> Answer | None:
        """The answer; None if there is none this time: it can be asked again later.

        Raises:
            ServeError: no other request would get one.
        """
        verdict, said = Verdict.later, ""
        for attempt in range(self._tries):
            if attempt:
                self._tell(f"{said}; asking again")
            await self._pause(attempt)
            verdict, said, answer = await self._once(request)
            if answer is not None:
                return answer
            if verdict not in (Verdict.again, Verdict.gone):
                break
        if verdict is Verdict.gone:
            raise ServeError(f"No service at {self._at}: {said}.")
        if verdict is Verdict.end:
            raise ServeError(f"{self._at}: {said}.", hint=self._hint(said))
        if said.startswith("404"):
            said += await self._models()
        self.trouble = f"{self._at}: {said}"
        self._tell(f"left for later: {said}")
        return None

    async def _once(self, request: Request) -> tuple[Verdict, str, Answer | None]:
        """The verdict on one try, with what there is to say about it."""
        content = json.dumps(request.body).encode()
        try:
            async with asyncio.timeout(self._seconds):  # for the whole answer; httpx has one for each piece
                got = await self._http.post(request.url, content=content, headers={"Content-Type": "application/json"})
        except Exception as error:
            verdict = of_error(error)
            if verdict is None:
                raise
            return verdict, _reason(error, self._seconds), None
        body = _body(got)
        verdict = of_answer(got.status_code, body)
        if verdict is Verdict.final and body is not None:
            return verdict, "", Answer(got.status_code, body)
        self._not_before = max(self._not_before, time.monotonic() + _retry_after(got))
        return verdict, _shown(got, body), None

    async def _models(self) -> str:
        """What the service serves, as an end for a sentence; "" if it does not say."""
        if self._served is None:
            self._served = ""
            with suppress(httpx.HTTPError, OSError, ValueError, TypeError, KeyError):
                async with asyncio.timeout(_CONNECT_S):
                    listed = (await self._http.get("/v1/models")).json()
                self._served = f"; it serves {', '.join(str(model['id']) for model in listed['data'])}"
        return self._served

    async def _pause(self, attempt: int) -> None:
        backoff = min(_LONGEST_S, _PAUSE_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0) if attempt else 0.0
        asked = min(self._not_before - time.monotonic(), self._seconds)
        await asyncio.sleep(max(backoff, asked))

    def _tell(self, text: str) -> None:
        if text not in self._said and len(self._said) < 100:
            self._said.add(text)
            self._say("batch", text)

    def _hint(self, said: str) -> str:
        if said.startswith(("401", "403")):
            given = f"the key in {KEY} is not one that it takes" if self._key else f"set {KEY} to its key"
            return f"{given[0].upper()}{given[1:]}; the same command then asks what is left."
        if said.startswith("407"):
            return "The proxy wants a name and a password, as in http://NAME:PASSWORD@HOST:PORT."
        return "Set SSL_CERT_FILE to the certificates that you trust."


def _body(got: httpx.Response) -> dict[str, Any] | None:
    """A JSON object; None: it is something else. NaN, which JSON has not, becomes null."""

    def number(text: str) -> float | None:
        return found if math.isfinite(found := float(text)) else None

    try:
        found = json.loads(got.content, parse_constant=lambda _: None, parse_float=number)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _shown(got: httpx.Response, body: dict[str, Any] | None) -> str:
    """An answer that is none, in a few words."""
    if got.is_redirect:
        return f"{got.status_code}, a redirect to {got.headers.get('location')}"
    error = body.get("error", body) if body else None
    text = str(error.get("message") or error.get("detail") or error) if isinstance(error, dict) else str(error or "")
    if body is None:
        kind = got.headers.get("content-type", "").partition(";")[0] or "no content type"
        text = f"no JSON object ({kind}): {got.text}"
    return f"{got.status_code} {' '.join(text.split())[:200]}".rstrip(" .:")


def _reason(error: Exception, seconds: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within batch.timeout_s={seconds:g}"
    return one_line(error).rstrip(" .:")


def _retry_after(got: httpx.Response) -> float:
    """The seconds for which a service asks to be left alone; both forms of the header."""
    value = got.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return seconds if math.isfinite(seconds) else 0.0
