"""What a request may ask for, looked at before a replica is: bounds, and what vLLM would stumble over."""

from __future__ import annotations

import math
from typing import Any

from orchestrator.config import ServeConfig
from orchestrator.serve.openai_errors import OpenAIHTTPException


def check(body: Any, served: ServeConfig) -> None:
    """Look at a request, and make it one that can travel to a replica.

    Args:
        body: the request, as vLLM's protocol reads it.
        served: the bounds.

    Raises:
        OpenAIHTTPException: 400: it asks for too much, or for what cannot be read.
    """
    _bounds(body, served)
    for name in body.model_fields_set:
        value = getattr(body, name, None)
        if isinstance(value, float) and not math.isfinite(value):
            raise _refused(f"{name} has to be a finite number.")
    for number, message in enumerate(getattr(body, "messages", None) or []):
        _message(message, f"messages[{number}]")


def _bounds(body: Any, served: ServeConfig) -> None:
    """What vLLM would take for an instruction to work for hours."""
    answers = 1
    for name in ("n", "best_of"):
        value = getattr(body, name, None)
        if value is not None and not 1 <= value <= served.max_n:
            raise _refused(f"{name}={value} has to be in 1..{served.max_n}.")
        answers = max(answers, value or 1)
    answers *= sum(_prompts(getattr(body, name, None)) for name in ("prompt", "prompt_embeds")) or 1
    if answers > served.max_choices:
        raise _refused(f"{answers} answers to one request, prompts times n, are more than {served.max_choices}.")


def _prompts(value: Any) -> int:
    """How many there are: a text, a list of tokens, or a list of either."""
    if not value:
        return 0
    return len(value) if isinstance(value, list) and not isinstance(value[0], int) else 1


def _message(message: Any, where: str) -> None:
    """Pydantic checks lists of parts only when they are read, and until then they cannot be pickled
    (https://github.com/pydantic/pydantic/issues/9467)."""
    for name, value in message.items() if isinstance(message, dict) else ():
        if value is None or isinstance(value, (str, int, float, list, dict)):
            continue
        try:
            message[name] = list(value)
        except (TypeError, ValueError) as error:
            raise _refused(f"{where}.{name} has to be a text or a list of parts.") from error


def _refused(text: str) -> OpenAIHTTPException:
    return OpenAIHTTPException(400, text, "invalid_request_error")
