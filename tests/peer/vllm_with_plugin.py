"""A pytest plugin for vLLM's own tests: every engine and graph of theirs asks for the KV update that `KV_UPDATE` names.

`make peer VLLM_SOURCE=FOLDER` runs those of vLLM's source with and without it.
"""

from __future__ import annotations

import os
from typing import Any


def pytest_configure() -> None:
    from vllm.config import VllmConfig

    from orchestrator.vllm_plugin import register

    register()
    finish = VllmConfig.__post_init__

    def ask(self: Any) -> None:
        if not self.additional_config:
            self.additional_config = {"orchestrator": {"kv_update": os.environ["KV_UPDATE"]}}
        finish(self)

    VllmConfig.__post_init__ = ask
