"""A sweep: its cells one after the other or side by side, and what they come to together."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from hydra.conf import HydraConf
from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text

from orchestrator.cli.cell import RESULT, Cell, Processes, environment
from orchestrator.cli.exit import FAILED, WRONG, Ending
from orchestrator.cli.jobs import Job
from orchestrator.cluster import machine
from orchestrator.config import AppConfig, ClusterKind, Device, SweepConfig, load, sources
from orchestrator.errors import ConfigError

_OWN = ("hydra.", "sweep.", "upload=")  # overrides that are the sweep's, not its cells'


class Cells:
    """A multirun's cells.

    Args:
        job: whose multirun it is.
        console: where each cell's beginning and failure is told.
    """

    def __init__(self, job: Job, console: Console) -> None:
        self._job, self._console = job, console
        self._processes = Processes()
        self._pool: ThreadPoolExecutor | None = None
        self._cells: list[dict[str, Any]] = []
        self._folder = Path()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within, cells are added; at its end all have ended, by themselves or, after an error, because they had to."""
        try:
            yield
            if self._pool is not None:
                self._pool.shutdown()
        except BaseException:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._processes.stop()
            raise

    def add(self, cfg: DictConfig, settings: HydraConf) -> float | None:
        """One cell, or its beginning where cells run in parallel; returns what a sweeper that optimises asks for."""
        overrides = [o for o in settings.overrides.task if not o.lstrip("+~").startswith(_OWN)]
        place = Path(settings.runtime.output_dir)
        cell = Cell(self._job.cell, overrides, place, sources.flags(settings), environment())
        found: dict[str, Any] = {"folder": str(place), "overrides": cell.shown}
        others = [cell["folder"] for cell in self._cells]
        self._cells.append(found)
        self._folder = folder(settings)
        try:
            if found["folder"] in others:
                raise ConfigError(
                    f"An earlier cell's folder is {found['folder']} too.",
                    where="hydra.sweep.subdir",
                    hint="Set hydra.sweep.subdir='${hydra.job.num}', or name in it all that the sweep varies.",
                )
            app = load(cfg, sources.search_path(settings))
            check_parallel(self._job, app)
        except ConfigError as error:
            self._ended(found, {"result": {"ok": False, "error": str(error)}, "code": WRONG})
            return math.nan
        if app.sweep.parallel > 1:
            self._pool = self._pool or pool(app.sweep.parallel, app.cluster.kind is ClusterKind.local)
            self._pool.submit(self._run, cell, found, app.sweep)
            return None
        self._run(cell, found, app.sweep)
        return value(found["result"], app.sweep.objective) if app.sweep.objective else None

    def report(self, ending: Ending) -> None:
        """Tell how the cells ended, if there are any, and write the comparison that a sweep has."""
        if not self._cells:
            return
        results = [cell["result"] for cell in self._cells]
        failed = {cell.get("code") or FAILED for cell in self._cells if not cell["result"]["ok"]}
        code = WRONG if failed == {WRONG} else FAILED if failed else 0
        ending.done({"ok": not failed, "cells": results}, code)
        if self._job.compared:
            from orchestrator.report import write

            ending.done(write.write_sweep(self._folder, self._cells, self._console), code)

    def _run(self, cell: Cell, found: dict[str, Any], settings: SweepConfig) -> None:
        self._console.print(" ".join(cell.shown) or "defaults", style="bold", soft_wrap=True)
        self._ended(found, self._processes.run(cell, settings))

    def _ended(self, found: dict[str, Any], how: dict[str, Any]) -> None:
        """A cell's failure is recorded, and the others go on."""
        found |= how
        file, data = Path(found["folder"]) / RESULT, None
        if "attempts" in how:  # else it did not run, and what is there is another's
            with suppress(OSError, ValueError):
                data = json.loads(file.read_text())
        if found["code"]:
            line = found["result"].setdefault("error", "its replicas did not share graphs or tokens")
            name = " ".join(found["overrides"])
            self._console.print(Text.assemble(("failed:", "red"), f" {name}: {line}"), soft_wrap=True)
            if data is None:
                data = {**found["result"], "overrides": found["overrides"]}
                with suppress(OSError), file.open("x") as new:
                    json.dump(data, new, indent=2)
        found["data"] = data or found["result"]


def folder(settings: HydraConf) -> Path:
    """A multirun's own folder: its cells' are below, by whatever names."""
    return Path(settings.runtime.cwd, settings.sweep.dir)


def check_parallel(job: Job, app: AppConfig) -> None:
    """May cells of this configuration run side by side?

    Raises:
        ConfigError: they would disturb each other, or what is measured.
    """
    wanted, where = app.sweep.parallel, "sweep.parallel"
    if wanted == 1:
        return
    if not job.parallel:
        raise ConfigError("Benchmarks side by side measure each other.", where=where, hint="Set sweep.parallel=1.")
    if app.sweep.objective:
        raise ConfigError("A sweeper that optimises waits for each cell.", where=where, hint="Set sweep.parallel=1.")
    if app.cluster.kind is ClusterKind.existing:
        return  # its placement groups keep replicas apart
    if app.engine.device is Device.gpu:
        raise ConfigError("Cells on one machine would share its GPUs.", where=where, hint="Set cluster=existing.")
    cores = machine.cpus()
    if wanted > cores:
        raise ConfigError(f"sweep.parallel={wanted} cells do not each find a core: there are {cores}.", where=where)


def pool(parallel: int, apart: bool) -> ThreadPoolExecutor:
    """Threads for cells; with `apart` each thread, and so what it starts, has cores of its own."""
    cores = sorted(os.sched_getaffinity(0))
    shares: SimpleQueue[list[int]] = SimpleQueue()
    for i in range(parallel):
        shares.put(cores[i * len(cores) // parallel : (i + 1) * len(cores) // parallel])
    begin = (lambda: os.sched_setaffinity(0, shares.get())) if apart else None
    return ThreadPoolExecutor(parallel, thread_name_prefix="cell", initializer=begin)


def value(result: Mapping[str, Any], objective: str) -> float:
    """The figure that a sweeper asks for; not a number where the cell failed.

    Raises:
        ConfigError: a cell that ran well has no such figure.
    """
    found: Any = result
    for part in objective.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, (int, float)) and result["ok"]:
        return float(found)
    if result["ok"]:
        raise ConfigError(f"RESULT has no figure {objective!r}.", where="sweep.objective")
    return math.nan
