"""One job: compose its configuration with Hydra, run it, upload its outputs, and end once."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from orchestrator import paths
from orchestrator.cli import exit as endings
from orchestrator.cli import sweep, terminal
from orchestrator.cli.jobs import Job
from orchestrator.cli.progress import Progress
from orchestrator.config import CONF, load, places, sources
from orchestrator.errors import ConfigError, OrchestratorError

_FULL = "HYDRA_FULL_ERROR"  # set to 1: whole tracebacks, for us as for Hydra


class _Stop(BaseException):
    """Carries a job's error past Hydra, which would print lines of its own about an Exception."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Record(logging.LogRecord):
    """A line of a log, without the keys of a storage: Hydra tells each cell's overrides."""

    def getMessage(self) -> str:
        return paths.shown(super().getMessage())


class HydraApp:
    """One job on the command line; what has to be remembered until its end is here.

    Args:
        job: of the table.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._console = terminal.console(stderr=True)
        self._ending = endings.Ending()
        self._interrupts = endings.Interrupts()
        self._cells = sweep.Cells(job, self._console)
        self._upload_to: tuple[Path, str] | None = None
        self._full = os.environ.get(_FULL)
        multirun = job.multirun or {"-m", "--multirun"} & set(sys.argv)
        self._places = {"/": "hydra.sweep.dir" if multirun else "hydra.run.dir"}  # Hydra's own files come first

    def run(self) -> int:
        """Run it; returns the exit code, after the RESULT line."""
        logging.setLogRecordFactory(_Record)
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # else Ray's workers are `uv run …` too, and slow
        with self._interrupts.heard():
            try:
                for step in (self._work, self._upload):
                    self._do(step)
            except KeyboardInterrupt:  # once more, while the first was told
                self._ending.failed("interrupted", 128 + (self._interrupts.take() or signal.SIGINT))
            self._interrupts.ignore()
            return self._ending.finish()

    def _do(self, step: Callable[[], None]) -> None:
        """One step; its failure is one line, and the next step comes all the same."""
        error: BaseException | None = None
        try:
            step()
        except _Stop as stop:
            error = stop.error
        except (Exception, KeyboardInterrupt, SystemExit) as caught:
            error = caught
        signum = self._interrupts.take()
        if isinstance(error, SystemExit):
            if error.code == endings.WRONG:  # argparse has said what is wrong
                self._ending.failed("the command line is wrong", endings.WRONG)
            elif error.code:
                self._ending.failed(f"it ended with exit code {error.code}", endings.FAILED)
        elif isinstance(error, KeyboardInterrupt) or (error and signum):
            self._ending.failed("interrupted", 128 + (signum or signal.SIGINT))
        elif error:
            if self._full == "1":
                traceback.print_exception(error)
            error = paths.refusal(error, self._places) or error
            self._ending.failed(endings.one_line(error), endings.code_of(error))

    def _work(self) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for each request
        OmegaConf.register_new_resolver("pid", os.getpid, replace=True)
        if self._job.multirun and not {"-m", "--multirun"} & set(sys.argv):
            sys.argv.append("-m")

        def task(cfg: DictConfig) -> float | None:
            with _variable(_FULL, self._full):
                try:
                    return self._cell(cfg)
                except Exception as error:
                    raise _Stop(error) from error

        with self._cells.running(), _variable(_FULL, "1"):  # errors of Hydra's come to us instead of its several lines
            try:
                hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(task)()
            except ValueError as error:  # flags that do not go together, or a log file that cannot be written
                if isinstance(error.__cause__, OSError):
                    raise error.__cause__ from None
                raise ConfigError(endings.one_line(error), where="") from error
        self._cells.report(self._ending)

    def _cell(self, cfg: DictConfig) -> float | None:
        """One run of Hydra's; returns what a sweeper that optimises asks for."""
        settings = HydraConfig.get()
        multirun = settings.mode is RunMode.MULTIRUN
        folder = Path(settings.runtime.output_dir)
        whole = sweep.folder(settings) if multirun else folder
        _hide_keys(_written_by_hydra(settings, folder, whole))
        self._prepare_upload(cfg, whole)
        if multirun:
            return self._cells.add(cfg, settings)
        self._one(cfg, settings, folder)
        return None

    def _one(self, cfg: DictConfig, settings: HydraConf, folder: Path) -> None:
        app = load(cfg, sources.search_path(settings))  # what is wrong with it is told before anything is imported
        self._places = {tempfile.gettempdir(): "TMPDIR", **places(app), str(folder): "hydra.run.dir"}
        with Progress(self._console, folder / "progress.log") as progress:
            done = self._job.work(app, folder, progress)
            self._ending.done(done.figures)
            if done.write is not None:
                self._ending.done(done.write())

    def _prepare_upload(self, cfg: DictConfig, folder: Path) -> None:
        """It is done at the end, however the job ends; a storage that there is not is told now."""
        if cfg.upload and self._upload_to is None:
            from orchestrator.cli import upload

            upload.check(cfg.upload)
            self._upload_to = (folder, cfg.upload)

    def _upload(self) -> None:
        if self._upload_to is None:
            return
        from orchestrator.cli import upload

        folder, uri = self._upload_to
        try:
            self._console.print(f"Uploaded: {paths.shown(upload.upload(folder, uri))}", soft_wrap=True)
        except Exception as error:
            raise OrchestratorError(f"{folder} was not uploaded: {endings.one_line(error)}") from error


def _written_by_hydra(settings: HydraConf, folder: Path, whole: Path) -> Iterator[Path]:
    """The files in which Hydra keeps a run's configuration, and a sweep's."""
    if settings.output_subdir is not None:
        yield from (folder / settings.output_subdir / f"{name}.yaml" for name in ("config", "hydra", "overrides"))
    if settings.mode is RunMode.MULTIRUN:
        yield whole / "multirun.yaml"


def _hide_keys(files: Iterable[Path]) -> None:
    """What Hydra has written down of the configuration is for others to see, and may be uploaded."""
    for file in files:
        with suppress(FileNotFoundError):
            text = file.read_text()
            if (hidden := paths.shown(text)) != text:
                file.write_text(hidden)


@contextmanager
def _variable(name: str, value: str | None) -> Iterator[None]:
    """An environment variable for as long as this lasts; None: without it."""
    before = os.environ.pop(name, None)
    try:
        if value is not None:
            os.environ[name] = value
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before
