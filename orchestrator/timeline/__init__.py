"""A start's timeline: events of several processes, cut into phases, and what vLLM said about its graphs."""

from orchestrator.timeline.events import Event, EventLog
from orchestrator.timeline.facts import EngineFacts, facts, notes, root_cause
from orchestrator.timeline.phases import COMPILE_PHASES, Phase, phases
from orchestrator.timeline.vllm_log import redirect, vllm_logging_config, write_logging_config

__all__ = [
    "COMPILE_PHASES",
    "EngineFacts",
    "Event",
    "EventLog",
    "Phase",
    "facts",
    "notes",
    "phases",
    "redirect",
    "root_cause",
    "vllm_logging_config",
    "write_logging_config",
]
