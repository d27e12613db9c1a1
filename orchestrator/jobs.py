"""What every job under jobs/ shares: compose with Hydra, run, report, exit code.

Exit codes: 0 all well; 1 the run failed, or its replicas did not share graphs or tokens; 2 the configuration is wrong.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from orchestrator import report, sweep
from orchestrator.config import load
from orchestrator.errors import ConfigError, OrchestratorError

CONF = str(Path(__file__).resolve().parents[1] / "conf")
JOBS = Path(CONF).with_name("jobs")
console = Console(stderr=True)
_cells: list[dict[str, Any]] = []
_interrupted = 0


def main(job: str = "run") -> None:
    """Run the job on the command line and exit.

    Args:
        job: "run", "bench", "warm", "serve" or "batch".
    """

    def task(cfg: DictConfig) -> None:
        _cell(job, cfg)

    for number in (signal.SIGINT, signal.SIGTERM):  # `ray job stop`, and containers, send the latter
        signal.signal(number, _on_interrupt)
    OmegaConf.register_new_resolver("pid", os.getpid, replace=True)
    wanted_full = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach us: we print one line instead of Hydra's several
    try:
        hydra.main(config_path=CONF, config_name="config", version_base="1.3")(task)()
    except KeyboardInterrupt:
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
            print(report.write_sweep(folder, _cells, console))
        else:
            results = [cell["result"] for cell in _cells]
            print("RESULT " + json.dumps({"ok": all(r["ok"] for r in results), "cells": results}))
    failed = {cell.get("code") or 1 for cell in _cells if not cell["result"]["ok"]}
    sys.exit(2 if failed == {2} else int(bool(failed)))


def _cell(job: str, cfg: DictConfig) -> None:
    """One run of Hydra's."""
    from orchestrator import bench, run, warm  # Ray only now: `--help` stays instant

    settings = HydraConfig.get()
    multirun = settings.mode is RunMode.MULTIRUN
    folder = Path(settings.runtime.output_dir)
    cell: dict[str, Any] = {
        "multirun": multirun,
        "folder": str(folder),
        "overrides": [o for o in settings.overrides.task if not o.startswith(("hydra.", "sweep."))],
    }
    if multirun:
        _in_a_process(job, cfg, cell)
        return
    with report.Progress(console) as progress:
        if job == "bench":
            cell["result"] = report.write_bench(folder, bench.execute(load(cfg), progress.say), console)
        elif job == "warm":
            cell["result"] = report.write_warm(folder, warm.execute(load(cfg), progress.say), console)
        elif job == "serve":
            from orchestrator.serve import job as serving

            cell["result"] = serving.execute(load(cfg), progress.say)
        elif job == "batch":
            from orchestrator.batch import job as batch

            cell["result"] = report.write_batch(batch.execute(load(cfg), progress.say, progress.bar), console)
        else:
            cell["result"] = report.write_run(folder, run.execute(load(cfg), progress.say), console)
    _cells.append(cell)
    print("RESULT " + json.dumps(cell["result"]))


def _in_a_process(job: str, cfg: DictConfig, cell: dict[str, Any]) -> None:
    """One cell of a sweep; its failure is recorded, and the others go on."""
    folder, name = Path(cell["folder"]), " ".join(cell["overrides"])
    console.print(f"[bold]{name or 'defaults'}[/]")
    try:
        cell |= sweep.run_cell(JOBS / f"{job}.py", cell["overrides"], folder, load(cfg).sweep)
    except ConfigError as error:
        cell |= {"result": {"ok": False, "error": str(error)}, "code": 2}
    if cell["code"]:
        line = cell["result"].setdefault("error", "its replicas did not share graphs or tokens")
        console.print(f"[red]failed:[/] {name}: {line}")
        if not (folder / "result.json").is_file() or "replicas" not in json.loads((folder / "result.json").read_text()):
            folder.mkdir(parents=True, exist_ok=True)
            failed = {**cell["result"], "overrides": cell["overrides"]}
            (folder / "result.json").write_text(json.dumps(failed, indent=2))
    _cells.append(cell)


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
