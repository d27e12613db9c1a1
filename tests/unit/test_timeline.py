"""Phases add up; what vLLM logs is what a receipt is judged by."""

from __future__ import annotations

import itertools
import json
import logging
import logging.config
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import timeline
from orchestrator.timeline import Event, EventLog
from orchestrator.timeline.vllm_log import VllmLogHandler


@given(st.lists(st.tuples(st.floats(0, 1000), st.sampled_from("abc")), min_size=1, max_size=30))
def test_phases_add_up_to_the_whole(marks: list[tuple[float, str]]) -> None:
    events = [Event(t, "mark", name) for t, name in sorted(marks)]
    cut = timeline.phases(events, 0.0)
    assert abs(sum(p.seconds for p in cut) - events[-1].t) < 1e-6
    assert all(a.name != b.name for a, b in itertools.pairwise(cut))


def test_vllms_own_log_becomes_events(tmp_path: Path) -> None:
    """Through the very configuration that vLLM reads, with records like vLLM's."""
    config = timeline.vllm_logging_config(str(tmp_path / "events.jsonl"))
    config["formatters"]["vllm"] = {"format": "%(message)s"}  # vLLM's formatter class needs vLLM
    logging.config.dictConfig(config)
    log = logging.getLogger("vllm.compilation")
    log.info("nothing that we know")
    log.info("%sStarting torch.compile", "[backbone] ")
    log.warning(
        "Compiling model again due to a load failure from %s, reason: %s", "/c/model", "Source code has changed"
    )
    log.info("%ssaved AOT compiled function to %s", "", "/c/model")
    log.info("%storch.compile took %.2f s in total", "[backbone] ", 26.28)
    log.info("Startup plan not applied: current free memory (%.2f GiB) is below", 1.0)
    log.info("CPU KV cache size: 23,296 tokens, Maximum concurrency for 1,024 tokens per request: 22.75x")
    try:
        raise ValueError("out of memory")
    except ValueError:
        log.exception("WorkerProc failed to start.")
    events = EventLog(tmp_path / "events.jsonl").read()
    facts = timeline.facts(events)
    assert (facts.loaded, facts.compiled, facts.compile_s, facts.kv_tokens) == (0, 1, 26.28, 23296)
    assert facts.saved == ["/c/model"]
    assert facts.no_plan == "current free memory (1.00 GiB) is below"
    assert facts.again == ["Source code has changed"]
    assert timeline.root_cause(events) == "ValueError: out of memory"
    assert "nothing that we know" not in {e.text for e in events}


@pytest.mark.parametrize("folder", ["/c", "/my (copy), josé #1", "/a, b"])
def test_a_loaded_artifact_is_told_from_a_compile(folder: str) -> None:
    """TMPDIR is where a user has it, with spaces too."""
    path = f"{folder}/rank_0_0/model"
    lines = [f"[backbone] Directly load AOT compilation from path {path}", f"saved AOT compiled function to {path}"]
    facts = timeline.facts([Event(1.0, "log", line) for line in lines])
    assert (facts.loaded, facts.compiled, facts.saved) == (1, 0, [path])
    again = f"Compiling model again due to a load failure from {path}, reason: x, y"
    assert timeline.facts([Event(1.0, "log", again)]).again == ["x, y"]


def test_a_half_written_line_is_left_for_later(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.mark("import")
    with log.file.open("a") as stream:
        stream.write('{"t": 1')
    assert [e.text for e in log.read()] == ["import"]


def test_another_nodes_events_count_for_facts_and_not_for_phases() -> None:
    """Its clock began on another day."""
    loaded = "Directly load AOT compilation from path /c/rank_{}_0/model"
    own = [Event(1.0, "log", loaded.format(0)), Event(2.0, "mark", "handshake")]
    far = [Event(1e6, "log", loaded.format(1), node="b"), Event(1e6, "error", "", detail="ValueError: b", node="b")]
    assert timeline.facts(own + far).loaded == 2
    assert timeline.root_cause(own + far) == "ValueError: b"
    assert timeline.phases(own + far, 0.0) == timeline.phases(own, 0.0)


def test_what_another_node_raised_is_told_without_rays_wrapping(tmp_path: Path) -> None:
    handler = VllmLogHandler(str(tmp_path / "events.jsonl"))
    wrapped = RuntimeError("ray::RayWorkerProc.initialize_worker() and a traceback of thirty lines")
    wrapped.cause = ValueError("out of memory")  # as Ray's RayTaskError
    record = logging.LogRecord("vllm", logging.ERROR, "", 0, "EngineCore failed", None, (None, wrapped, None))
    handler.emit(record)
    (event,) = EventLog(tmp_path / "events.jsonl").read()
    assert event.detail == "ValueError: out of memory"


@pytest.mark.parametrize("version", ["before 0.31", "since 0.31"])
def test_the_log_is_set_up_in_every_vllm(version: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """Before 0.31 the formatter takes no level, and records have no name of vLLM's process."""

    class Old(logging.Formatter):
        def __init__(self, fmt, datefmt=None, style="%"):
            super().__init__(fmt, datefmt, style)

    class New(logging.Formatter):
        def __init__(self, fmt, datefmt=None, style="%", *, log_level=None):
            super().__init__(fmt, datefmt, style)

    utilities = types.ModuleType("vllm.logging_utils")
    utilities.NewLineFormatter = Old if version.startswith("before") else New
    for name, module in {"vllm": types.ModuleType("vllm"), utilities.__name__: utilities}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys.modules["vllm"], "logging_utils", utilities, raising=False)
    named = {} if version.startswith("before") else {"vllm_process_name": "EngineCore"}
    logger = logging.getLogger("vllm")
    before = logger.handlers[:], logger.level, logger.propagate
    try:
        logging.config.dictConfig(timeline.vllm_logging_config(str(tmp_path / "events.jsonl")))
        logger.info("Loading weights took 1 s", extra={"fileinfo": "a.py", **named})
    finally:
        logger.handlers[:], logger.level, logger.propagate = before
    assert f"({named.get('vllm_process_name', 'MainProcess')} pid=" in capsys.readouterr().err
    assert [event.text for event in EventLog(tmp_path / "events.jsonl").read()] == ["Loading weights took 1 s"]


def test_a_fork_only_points_the_zygotes_handlers_at_its_own_file(tmp_path) -> None:
    """vLLM applies the same configuration twice in each process, and each time Python visits every logger."""
    pytest.importorskip("vllm")
    logger = logging.getLogger("vllm")
    before = logger.handlers[:], logger.level, logger.propagate
    mine, theirs = tmp_path / "events.jsonl", tmp_path / "theirs.json"
    own = timeline.write_logging_config(str(mine))
    theirs.write_text(json.dumps({**timeline.vllm_logging_config(str(mine)), "disable_existing_loggers": True}))
    try:
        logger.handlers[:] = []
        assert not timeline.redirect(own)  # no zygote's handlers: vLLM has to apply it
        logging.config.dictConfig(timeline.vllm_logging_config(str(tmp_path / "zygote.jsonl")))
        for other in (theirs, tmp_path / "none.json"):
            assert not timeline.redirect(str(other))
        assert timeline.redirect(own)
        logger.info("Loading weights took 1 s", extra={"fileinfo": "a.py"})
    finally:
        logger.handlers[:], logger.level, logger.propagate = before
    assert [event.text for event in EventLog(mine).read()] == ["Loading weights took 1 s"]
    assert not (tmp_path / "zygote.jsonl").exists()
