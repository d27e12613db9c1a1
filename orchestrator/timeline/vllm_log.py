"""vLLM's own log records become events, in every process that vLLM starts.

`VLLM_LOGGING_CONFIG_PATH` is vLLM's documented hook. The handler only reads, so it serves stock vLLM and ours alike.
vLLM loads this first thing in each of its processes: it imports the standard library, and what needs no more.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from orchestrator.timeline.events import Event, EventLog
from orchestrator.timeline.facts import is_fact
from orchestrator.timeline.phases import phase_end


class VllmLogHandler(logging.Handler):
    """Turns vLLM's log records into events."""

    def __init__(self, file: str) -> None:
        super().__init__(logging.INFO)
        self.write_to(file)

    def write_to(self, file: str) -> None:
        """Events go to that file from now on."""
        self._log = EventLog(file)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep errors, and the lines that this module knows."""
        try:
            text = record.getMessage()
            process = str(getattr(record, "vllm_process_name", record.processName))
            detail = ""
            if record.exc_info and (error := record.exc_info[1]) is not None:
                error = getattr(error, "cause", None) or error  # Ray wraps what another node raised, and its traceback
                detail = f"{type(error).__name__}: {error}"
            kind = "error" if record.levelno >= logging.ERROR else "log"
            cpu = sum(os.times()[:4])
            event = Event(time.monotonic(), kind, text, process, detail, record.process or 0, cpu)
            if kind == "error" or record.name == "vllm.orchestrator" or is_fact(text) or phase_end(event):
                self._log.write(event)
        except Exception:
            self.handleError(record)


def write_logging_config(events_file: str) -> str:
    """Write that configuration beside a replica's events, on each node that has ranks of it; returns the file."""
    file = Path(events_file).with_name("logging.json")
    file.write_text(json.dumps(vllm_logging_config(events_file)))
    return str(file)


def redirect(config_file: str) -> bool:
    """Point this process's handlers at the events file of a logging configuration of ours; False if it is another one.

    vLLM applies the configuration twice in each of its processes. Python then goes through all loggers once for each of
    vLLM's modules: a tenth of a second, and in a fork that has the zygote's handlers nothing but the file changes.
    """
    handlers = [h for h in logging.getLogger("vllm").handlers if isinstance(h, VllmLogHandler)]
    try:
        config = json.loads(Path(config_file).read_text())
        file = str(config["handlers"]["events"]["file"])
    except (OSError, ValueError, LookupError, TypeError):
        return False
    if not handlers or config != vllm_logging_config(file):
        return False
    for handler in handlers:
        handler.write_to(file)
    return True


class Named(logging.Filter):
    """Gives records the name of vLLM's process where vLLM does not: before 0.31."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let all pass."""
        record.vllm_process_name = getattr(record, "vllm_process_name", record.processName)
        return True


def vllm_logging_config(events_file: str) -> dict[str, Any]:
    """A logging configuration for `VLLM_LOGGING_CONFIG_PATH`: vLLM's usual console lines, and our handler."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "vllm": {
                "class": "vllm.logging_utils.NewLineFormatter",
                "datefmt": "%m-%d %H:%M:%S",
                "format": "(%(vllm_process_name)s pid=%(process)d) %(levelname)s %(asctime)s "
                "[%(fileinfo)s:%(lineno)d] %(message)s",
            }
        },
        "filters": {"named": {"()": "orchestrator.timeline.vllm_log.Named"}},
        "handlers": {
            "console": {
                "class": "logging.StreamHandler",
                "formatter": "vllm",
                "filters": ["named"],
                "stream": "ext://sys.stderr",
            },
            "events": {"()": "orchestrator.timeline.vllm_log.VllmLogHandler", "file": events_file},
        },
        "loggers": {"vllm": {"handlers": ["console", "events"], "level": "INFO", "propagate": False}},
    }
