"""Both hosts of a start, over fakes, keep tests/start_contract.py."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import ray

from orchestrator import timeline
from orchestrator.config import EngineKind
from orchestrator.engine import CompileKey, EngineSpec, fake
from orchestrator.engine.start import Start
from orchestrator.engine.start_report import StartReport
from orchestrator.engine.vllm import reaper, serve_hook
from orchestrator.engine.vllm.supervisor import Supervisor
from orchestrator.errors import EngineStartError
from orchestrator.fleet import replica as fleet
from orchestrator.fleet.plan import ReplicaPlan
from orchestrator.graph_cache.restore_result import Outcome, Receipt
from orchestrator.serve import callback
from tests.start_contract import POINTS, Cache, Files, Others, Point, check, step_of
from tests.waiting import HANG_S


def spec(folder: Path) -> EngineSpec:
    root = folder / "scratch"
    args = {"fake_compile_s": 0.0}
    return EngineSpec("replica-0", "m", args, {}, str(root), str(root / "cache"), start_timeout_s=HANG_S)


class FleetHost:
    """A replica of a fleet with the fake engine; two bundles, so that it has other nodes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache, self.others, self.files = Cache(), Others(), Files()
        monkeypatch.setattr(fleet, "GraphCacheClient", lambda *_: self.cache)
        monkeypatch.setattr(fleet, "Arrival", lambda *_, **__: self.files)
        monkeypatch.setattr(fleet, "MultiNode", lambda *_: self.others)
        plan = ReplicaPlan("replica-0", spec(folder), EngineKind.fake, ({"CPU": 1}, {"CPU": 1}), "PACK", 1)
        self.replica = fleet.Replica(plan, None, self.files)
        self.events = self.replica._events

    def target(self, step: str) -> tuple[Any, str]:
        engine = self.replica._engine
        own = {
            "factors": (engine, "prepare"),
            "build": (fake, "_rank"),
            "token": (engine, "generate"),
        }
        return step_of(self, step, own)

    def start(self) -> StartReport:
        try:
            return asyncio.run(self.replica.start())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        asyncio.run(self.replica.stop())

    def left(self) -> list[str]:
        running = ["engine"] if self.replica._engine._running else []
        folders = [self.replica.plan.spec.scratch] if Path(self.replica.plan.spec.scratch).exists() else []
        return running + folders


class PlainLLM:
    """Stands for vLLM's AsyncLLM: it is started by being made."""

    made: ClassVar[list[PlainLLM]] = []

    def __init__(self, config: SimpleNamespace, stat_loggers: list[Any]) -> None:
        self.running, self.config, self.stat_loggers = False, config, stat_loggers
        PlainLLM.made.append(self)
        self.compile(config.events)
        self.running = True

    def compile(self, events: timeline.EventLog) -> None:
        for text in ("Starting torch.compile", "saved AOT compiled function to /graphs"):
            events.write(timeline.Event(0.0, "log", text))

    def shutdown(self, timeout: float | None = None) -> None:
        self.running = False


class ServeHost:
    """Ray Serve LLM's engine class, over one that starts nothing; the watch over processes is the real one."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache, self.others, self.files = Cache(), Others(), Files()
        self._spec = spec(folder)
        self._scratch = Path(self._spec.scratch)
        self._scratch.mkdir()
        PlainLLM.made.clear()
        self.supervisor = Supervisor(self._spec, remove=str(self._scratch))
        self.events = self.supervisor.events
        root = Path(self._spec.cache_root)
        self._start = Start("replica-0", self.cache, self.events, root, others=self.others, files=self.files)
        monkeypatch.setattr(serve_hook, "compile_key", lambda config: CompileKey({"model": "m"}))
        self.llm: Any = None

    def target(self, step: str) -> tuple[Any, str]:
        own = {
            "factors": (serve_hook, "compile_key"),
            "begin": (self.supervisor, "begin"),
            "build": (PlainLLM, "compile"),
            "started": (self.supervisor, "started"),
        }
        return step_of(self, step, own)

    def start(self) -> StartReport:
        # as Ray makes it for GPUs, in a process of its own: nothing in it knows of our log
        logging = SimpleNamespace(pylogging_config_file=None, configure_logging=False)
        config = SimpleNamespace(events=self.events, logging_config=logging)
        self.llm = serve_hook.hosting(PlainLLM, self.supervisor, self._start)(config)
        self._start.first_token()
        return self._start.report()

    def stop(self) -> None:
        self.llm.shutdown()

    def left(self) -> list[str]:
        processes = [str(p) for p in reaper.marked(self.supervisor._marker)]
        engines = ["engine" for llm in PlainLLM.made if llm.running]
        reapers = [str(self.supervisor._reaper)] if self.supervisor._reaper else []
        return processes + engines + reapers + ([str(self._scratch)] if self._scratch.exists() else [])


HOSTS = {"fleet": FleetHost, "serve": ServeHost}
# the fleet's fake engine has no processes to watch; Ray Serve LLM's server asks for the token and waits for the
# configuration, not its engine
NOT_STEPS = {"fleet": ("begin", "started"), "serve": ("token", "configuration")}
CASES = [(name, point) for name in HOSTS for point in POINTS if point.step not in NOT_STEPS[name]]


@pytest.mark.parametrize(("name", "point"), CASES, ids=[f"{name}-{point}" for name, point in CASES])
def test_a_start_ends_as_it_has_to(name: str, point: Point, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(lambda: HOSTS[name](tmp_path, monkeypatch), name, point, monkeypatch)


def test_the_suite_has_enough_points() -> None:
    faults = [(name, point) for name, point in CASES if point.step != "nothing"]
    assert len(faults) >= 20
    assert {name for name, _ in faults} == set(HOSTS)


def test_a_cache_that_cannot_even_be_told_leaves_the_error_as_it_is(tmp_path: Path, monkeypatch) -> None:
    host = ServeHost(tmp_path, monkeypatch)
    monkeypatch.setattr(host.cache, "abandon", lambda receipt: 1 / 0)
    monkeypatch.setattr(PlainLLM, "compile", lambda *_: 1 / 0)
    monkeypatch.setattr(host.supervisor, "phase", lambda: 1 / 0)
    with pytest.raises(EngineStartError, match="the engine did not start"):
        host.start()


def test_an_engine_logs_where_we_listen_wherever_its_configuration_was_made(tmp_path: Path, monkeypatch) -> None:
    """Else a start on GPUs in Ray Serve compiles, saves and fails unseen: nothing is published."""
    host = ServeHost(tmp_path, monkeypatch)
    host.supervisor.logging_file = "/scratch/logging.json"
    host.start()
    (llm,) = PlainLLM.made
    assert vars(llm.config.logging_config) == {
        "pylogging_config_file": "/scratch/logging.json",
        "configure_logging": True,
    }
    host.stop()


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_stays_on_other_nodes(fails: bool, tmp_path: Path, monkeypatch) -> None:
    for host in (FleetHost(tmp_path / "fleet", monkeypatch), ServeHost(tmp_path, monkeypatch)):
        if fails:
            monkeypatch.setattr(*host.target("build"), lambda *_: 1 / 0)
            with pytest.raises(EngineStartError):
                host.start()
        else:
            host.start()
            assert host.others.asked == ["prepare", "read_events", "gather"]
            host.stop()
        assert host.others.asked[-1] == "clean"


def test_vllm_is_told_which_ray_it_is_in(tmp_path: Path, monkeypatch) -> None:
    """Its own EngineCore process would start another cluster: vLLM tells it only where it spawns by its own means."""
    told = dict(os.environ)
    monkeypatch.setattr(os, "environ", told)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    supervisor = Supervisor(spec(tmp_path))
    Path(supervisor.spec.scratch).mkdir()
    supervisor.enter()
    assert told["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert json.loads(Path(told["VLLM_LOGGING_CONFIG_PATH"]).read_text())["handlers"]["events"]


def test_publishing_that_takes_long_does_not_keep_a_replica(tmp_path: Path, monkeypatch) -> None:
    from threading import Event

    from orchestrator.engine import start as module

    host, over = FleetHost(tmp_path, monkeypatch), Event()
    monkeypatch.setattr(module, "PUBLISH_WAIT_S", 0.1)
    monkeypatch.setattr(host.cache, "publish", lambda receipt, *_: over.wait(HANG_S) and receipt)
    report = host.start()
    over.set()
    assert report.receipt.reason == "still being published after 0.1 s"
    host.stop()


def test_a_report_is_completed_from_durations_of_another_clock() -> None:
    phases = (timeline.Phase("import", 0.0, 1.0), timeline.Phase("first token", 1.0, 2.0))
    here = StartReport("r", 3.0, Receipt(Outcome.hit), timeline.EngineFacts(), phases, 1, after_s=0.5)
    whole = here.since_request(placement_s=0.25, whole_s=8.0)
    assert [(p.name, p.start, p.seconds) for p in whole.phases] == [
        ("placement", 0.0, 0.25),
        ("process", 0.25, 4.25),
        ("import", 4.5, 1.0),
        ("first token", 5.5, 2.0),
    ]
    assert whole.first_token_s == 7.5
    late = here.since_request(placement_s=0.0, whole_s=1.0)  # less than its parts: nothing is negative
    assert [p.seconds for p in late.phases] == [0.0, 0.0, 1.0, 2.0]


def test_the_hosts_say_nothing_twice() -> None:
    """What both need is in engine/start.py: they have no six lines in common."""
    hosts = (fleet, serve_hook, callback)
    lines = [[line.strip() for line in Path(host.__file__).read_text().splitlines() if line.strip()] for host in hosts]
    runs = [{tuple(text[i : i + 6]) for i in range(len(text) - 5)} for text in lines]
    assert not runs[0] & (runs[1] | runs[2])
    assert not runs[1] & runs[2]


@pytest.mark.parametrize(
    ("outcome", "told"),
    [(Outcome.hit, True), (Outcome.compiled, False), (Outcome.failed, False), (Outcome.stock, None)],
)
def test_a_start_says_whether_its_graphs_are_there(outcome: Outcome, told: bool | None, tmp_path: Path) -> None:
    cache = SimpleNamespace(restore=lambda *_: Receipt(outcome))
    start = Start("r", cache, timeline.EventLog(tmp_path / "events"), tmp_path)  # type: ignore[arg-type]
    assert start.restored is None
    start.restore(lambda: CompileKey({"model": "m"}))
    assert start.restored is told
