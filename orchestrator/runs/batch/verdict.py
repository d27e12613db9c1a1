"""What an answer, or the lack of one, means for its request. Only what is wrong with a request itself is final."""

from __future__ import annotations

import ssl
from enum import Enum
from typing import Any

import httpx


class Verdict(Enum):
    """What becomes of a request."""

    final = "its line is written"
    again = "asked again after a pause; after the last try as `later`"
    later = "left without a line: the same command asks it again"
    gone = "asked again after a pause; after the last try the run ends"
    end = "the run ends at once: no other request would fare better"


# A status, a hundred of them (the first digit), or an exception -> the verdict.
TABLE: dict[int | type[Exception], Verdict] = {
    401: Verdict.end,  # no key, or a wrong one
    403: Verdict.end,
    407: Verdict.end,  # the proxy's own
    402: Verdict.later,  # no money left
    404: Verdict.later,  # a wrong address, or no such model there
    405: Verdict.later,
    408: Verdict.again,
    409: Verdict.again,
    425: Verdict.again,
    429: Verdict.again,
    2: Verdict.final,
    3: Verdict.later,  # a redirect is not followed: the key is for the address that was given
    4: Verdict.final,  # the request itself
    5: Verdict.again,
    ssl.SSLCertVerificationError: Verdict.end,
    httpx.ProxyError: Verdict.gone,
    httpx.ConnectError: Verdict.gone,  # refused, no such host
    httpx.RequestError: Verdict.again,  # cut off, not HTTP, badly compressed
    TimeoutError: Verdict.again,
    OSError: Verdict.again,
}
# Where the body is no JSON object with what was asked for, no answer is final: it is a page of something in between.
_NO_JSON = {2: Verdict.again, 4: Verdict.later}


def of_answer(status: int, body: dict[str, Any] | None) -> Verdict:
    """For an answer with a body; None: that was no JSON object."""
    verdict = TABLE.get(status) or TABLE.get(status // 100, Verdict.again)
    broken = body is None or (status < 300 and bool(body.get("error")))
    return _NO_JSON[status // 100] if verdict is Verdict.final and broken else verdict


def of_error(error: BaseException) -> Verdict | None:
    """For an exception of a client's, by it and by what caused it; None: it is of another kind."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    if not isinstance(error, (httpx.RequestError, TimeoutError, OSError)):
        return None
    kinds = [kind for kind in TABLE if isinstance(kind, type)]
    return next(TABLE[kind] for kind in kinds if any(isinstance(one, kind) for one in chain))
