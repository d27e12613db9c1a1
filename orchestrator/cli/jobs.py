"""What every job shares: compose with Hydra, run, report, exit code.

Exit codes: 0 all well; 1 the run failed, or its replicas did not share graphs or tokens; 2 the configuration is wrong.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from orchestrator.cli import sweep
from orchestrator.cli.progress import Progress
from orchestrator.config import CONF, AppConfig, BenchKind, ClusterKind, SweepConfig, load
from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.report import write

console = Console(stderr=True)
_cells: list[dict[str, Any]] = []
_pool: ThreadPoolExecutor | None = None
_uploads: list[tuple[Path, str]] = []
_interrupted = 0


def main(job: str) -> None:
    """Run the job on the command line and exit.

    Args:
        job: a name of `JOBS`, or "sweep": "run" as a multirun.
    """
    if job == "sweep":
        job = "run"
        if not {"-m", "--multirun"} & set(sys.argv):
            sys.argv.append("-m")
    try:
        _main(job)
    finally:
        for folder, uri in _uploads:
            from orchestrator.cli import upload

            try:
                console.print(f"Uploaded: {upload.upload(folder, uri)}")
            except (OSError, ConfigError) as error:
                _fail(f"{folder} was not uploaded: {error}", 1)


def _main(job: str) -> None:
    def task(cfg: DictConfig) -> float | None:
        return _cell(job, cfg)

    for number in (signal.SIGINT, signal.SIGTERM):  # `ray job stop`, and containers, send the latter
        signal.signal(number, _on_interrupt)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for each request
    OmegaConf.register_new_resolver("pid", os.getpid, replace=True)
    wanted_full = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach us: we print one line instead of Hydra's several
    try:
        hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(task)()
        if _pool is not None:
            _pool.shutdown()
    except KeyboardInterrupt:
        if _pool is not None:
            _pool.shutdown(wait=False, cancel_futures=True)
            sweep.stop()
        _fail("interrupted", 128 + (_interrupted or signal.SIGINT))
    except Exception as error:
        if _interrupted:
            _fail("interrupted", 128 + _interrupted)
        if wanted_full == "1":
            traceback.print_exc()
        _fail(_one_line(error), 2 if _is_config_error(error) else 1)
    if not _cells:  # --help, --cfg, --info
        return
    if _cells[0]["multirun"]:
        folder = Path(_cells[0]["folder"]).parent
        if job == "run":
            print(write.write_sweep(folder, _cells, console))
        else:
            results = [cell["result"] for cell in _cells]
            print("RESULT " + json.dumps({"ok": all(r["ok"] for r in results), "cells": results}))
    failed = {cell.get("code") or 1 for cell in _cells if not cell["result"]["ok"]}
    sys.exit(2 if failed == {2} else int(bool(failed)))


def _cell(job: str, cfg: DictConfig) -> float | None:
    """One run of Hydra's; returns what a sweeper that optimises asks for."""
    settings = HydraConfig.get()
    multirun = settings.mode is RunMode.MULTIRUN
    folder = Path(settings.runtime.output_dir)
    cell: dict[str, Any] = {
        "multirun": multirun,
        "folder": str(folder),
        "overrides": [o for o in settings.overrides.task if not o.startswith(("hydra.", "sweep.", "upload="))],
    }
    _upload(cfg, folder.parent if multirun else folder)
    if multirun:
        return _in_a_process(job, cfg, cell)
    app = load(cfg)  # what is wrong with it is told before anything is imported
    with Progress(console) as progress:
        cell["result"] = JOBS[job](app, folder, progress)
    _cells.append(cell)
    print("RESULT " + json.dumps(cell["result"]))
    return None


# Each imports what it needs when it runs: a driver that only sends requests loads neither Ray nor vLLM.


def _run_job(app: AppConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    from orchestrator.runs import run

    return write.write_run(folder, run.execute(app, progress.say), console)


def _bench_job(app: AppConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    if app.bench.kind is BenchKind.all:
        from orchestrator.cli import suite

        return suite.execute(app, folder, progress.say)
    from orchestrator import bench

    return write.write_bench(folder, bench.execute(app, progress.say), console)


def _warm_job(app: AppConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    from orchestrator.runs import warm

    return write.write_warm(folder, warm.execute(app, progress.say), console)


def _serve_job(app: AppConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    from orchestrator.serve import launch

    return launch.execute(app, progress.say)


def _batch_job(app: AppConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    from orchestrator.runs.batch import job

    return write.write_batch(job.execute(app, progress.say, progress.bar), console)


Job = Callable[[AppConfig, Path, Progress], dict[str, Any]]  # (configuration, its folder, ...) -> RESULT
JOBS: dict[str, Job] = {
    "run": _run_job,
    "bench": _bench_job,
    "warm": _warm_job,
    "serve": _serve_job,
    "batch": _batch_job,
}


def _upload(cfg: DictConfig, folder: Path) -> None:
    """To be done at the end, however the job ends; a storage that there is not is told now."""
    if cfg.upload and not _uploads:
        from orchestrator.cli import upload

        upload.check(cfg.upload)
        _uploads.append((folder, cfg.upload))


def _in_a_process(job: str, cfg: DictConfig, cell: dict[str, Any]) -> float | None:
    """One cell of a sweep, or its beginning where cells run in parallel."""
    global _pool
    _cells.append(cell)
    try:
        app = load(cfg)
        sweep.check_parallel(job, app)
    except ConfigError as error:
        _ended(cell, {"result": {"ok": False, "error": str(error)}, "code": 2})
        return math.nan
    settings = app.sweep
    if settings.parallel > 1:
        _pool = _pool or sweep.pool(settings.parallel, app.cluster.kind is ClusterKind.local)
        _pool.submit(_run, job, cell, settings)
        return None
    _run(job, cell, settings)
    return sweep.value(cell["result"], settings.objective) if settings.objective else None


def _run(job: str, cell: dict[str, Any], settings: SweepConfig) -> None:
    console.print(f"[bold]{' '.join(cell['overrides']) or 'defaults'}[/]")
    _ended(cell, sweep.run_cell(job, cell["overrides"], Path(cell["folder"]), settings))


def _ended(cell: dict[str, Any], how: dict[str, Any]) -> None:
    """A cell's failure is recorded, and the others go on."""
    cell |= how
    folder, name = Path(cell["folder"]), " ".join(cell["overrides"])
    if cell["code"]:
        line = cell["result"].setdefault("error", "its replicas did not share graphs or tokens")
        console.print(f"[red]failed:[/] {name}: {line}")
        if not (folder / "result.json").is_file() or "replicas" not in json.loads((folder / "result.json").read_text()):
            folder.mkdir(parents=True, exist_ok=True)
            failed = {**cell["result"], "overrides": cell["overrides"]}
            (folder / "result.json").write_text(json.dumps(failed, indent=2))


def _on_interrupt(number: int, _: object) -> None:
    """Ctrl-C reaches Ray's processes too, and what they then raise may be the first that we see."""
    global _interrupted
    _interrupted = number
    raise KeyboardInterrupt


def _is_config_error(error: BaseException) -> bool:
    return isinstance(error, ConfigError) or type(error).__module__.startswith(("hydra.", "omegaconf."))


def _one_line(error: BaseException) -> str:
    if isinstance(error, OrchestratorError):
        return str(error)
    text = " ".join(str(error).split())
    return text if _is_config_error(error) else f"{type(error).__name__}: {text}"


def _fail(line: str, code: int) -> None:
    print(f"error: {line}", file=sys.stderr)
    print("RESULT " + json.dumps({"ok": False, "error": line}))
    sys.exit(code)
