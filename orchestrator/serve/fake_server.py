"""A replica without vLLM's engine, behind the real ingress: for tests, and for trying a service or a batch out."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.openai_api_models import ChatCompletionResponse, CompletionResponse

from orchestrator.engine import fake


class FakeServer(LLMServer):
    """Answers with tokens that depend on the prompt alone; it does not stream.

    `engine.extra.fake_log` names a file that gets a line for each prompt that was asked; `engine.extra.fake_answer_s`
    is how long an answer takes, and `fake_token_s` each token of it; `fake_slots` answers are made at a time.
    A start takes `fake_start_s`; `fake_fail=start` lets it fail.
    """

    async def start(self) -> None:
        """There is no engine to start.

        Raises:
            RuntimeError: it was told to fail.
        """
        given = self._llm_config.experimental_configs
        if given.get("fake_fail") == "start":
            raise RuntimeError("this fake engine was told to fail")
        await asyncio.sleep(float(given.get("fake_start_s", 0.0)))
        log, self._answer_s = given.get("fake_log"), float(given.get("fake_answer_s", 0.0))
        self._token_s, slots = float(given.get("fake_token_s", 0.0)), int(given.get("fake_slots", 0))
        self._slots = asyncio.Semaphore(slots) if slots else nullcontext()
        self._log = os.open(Path(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log else None

    async def completions(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        """One answer."""
        choice = {"text": self._answer(request.prompt, request.max_tokens)}
        return self._one(CompletionResponse, "text_completion", choice, request.max_tokens)

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        """One answer."""
        tokens = request.max_completion_tokens or request.max_tokens
        said = {"role": "assistant", "content": self._answer(request.messages[-1]["content"], tokens)}
        return self._one(ChatCompletionResponse, "chat.completion", {"message": said}, tokens)

    def _answer(self, prompt: Any, tokens: int | None) -> str:
        if self._log is not None:
            os.write(self._log, f"{prompt}\n".encode())
        return "".join(f" {fake.token(str(prompt), i)}" for i in range(tokens or fake.TOKENS))

    async def _one(self, kind: Any, name: str, choice: dict[str, Any], tokens: int | None) -> AsyncGenerator[Any, None]:
        usage = {
            "prompt_tokens": 1,
            "completion_tokens": tokens or fake.TOKENS,
            "total_tokens": 1 + (tokens or fake.TOKENS),
        }
        async with self._slots:
            await asyncio.sleep(self._answer_s + self._token_s * usage["completion_tokens"])
        yield kind(
            object=name, created=int(time.time()), model=self._llm_config.model_id, usage=usage,
            choices=[{"index": 0, "finish_reason": "length", **choice}],
        )  # fmt: skip
