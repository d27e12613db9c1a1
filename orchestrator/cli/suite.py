"""Several benchmarks, one after the other, each in a process of its own; one page and one JSON for all of them."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from orchestrator.cli.cell import Cell, Processes
from orchestrator.cluster import provenance
from orchestrator.cluster.shape import visible_gpus
from orchestrator.config import AppConfig, SuiteEntry, sources
from orchestrator.progress import Say
from orchestrator.report import page, results

SCHEMA = "orchestrator.suite/1"
ARCHIVE = "suite.tar.gz"
_ARCHIVE_BYTES = 16 << 20  # what a mail or an issue takes
_LOG_BYTES = 256 << 10  # of each log, its end


def execute(app: AppConfig, folder: Path, say: Say) -> dict[str, Any]:
    """Run `bench.suite`; a benchmark that fails leaves the others, and `bench.minutes` ends what takes longer.

    Args:
        app: the checked configuration.
        folder: where the outputs go, each benchmark's into a folder of its own.
        say: told what happens.

    Returns:
        The job's RESULT line.
    """
    gpus, online = visible_gpus(), _hub_answers(app.bench.offline)
    found, ends = [], []
    entries = planned(app.bench.suite, app.bench.offline, gpus, online)
    for line in plan(entries, app.bench.minutes):
        say("plan", line)
    began = time.monotonic()
    for i, entry in enumerate(entries):
        name = " ".join(entry.run)
        left = began + 60 * app.bench.minutes - time.monotonic() if app.bench.minutes else None
        if reason := left_out(entry, gpus, left):
            ends.append({"name": name, "ok": True, "skipped": reason})
            say("suite", f"skipped {name}: {reason}")
            continue
        say("suite", name)
        cell = folder / str(i)
        words = [*entry.run, f"state_dir={sources.quoted(app.state_dir)}"]
        settings = replace(app.sweep, deadline_s=min(filter(None, (left, app.sweep.deadline_s)), default=None))
        how = Processes().run(Cell("bench", words, cell, sources.flags(HydraConfig.get())), settings)
        ends.append({"name": name, "ok": how["code"] == 0, "error": how["result"].get("error", "")})
        if (cell / "bench.json").is_file():
            found.append(json.loads((cell / "bench.json").read_text()))
    well = all(end["ok"] for end in ends)
    whole = {"schema": SCHEMA, "ok": well, "machine": provenance.machine(), "benches": ends, "results": found}
    (folder / "suite.json").write_text(json.dumps(whole, indent=2))
    (folder / "report.html").write_text(page.html("Benchmarks", [], benches=found))
    (folder / "RESULTS.md").write_text(results.markdown({str(i): result for i, result in enumerate(found)}))
    archive = pack(folder)
    return {"ok": well, "benches": ends, "report": str(folder / "report.html"), "archive": str(archive)}


def plan(entries: Sequence[SuiteEntry], minutes: float | None) -> Iterator[str]:
    """What is to be run, and what it takes, for who waits for it."""
    for i, entry in enumerate(entries, start=1):
        takes = f", about {entry.minutes} minutes" if entry.minutes else ""
        yield f"{i}. {' '.join(entry.run)}{takes}"
    known, unknown = sum(entry.minutes for entry in entries), sum(not entry.minutes for entry in entries)
    parts = [f"about {known} minutes"] if known else []
    parts += [f"{unknown} of unknown length"] if unknown else []
    bound = f"; no longer than bench.minutes={minutes:g}" if minutes else ""
    yield f"{len(entries)} benchmarks: {' and '.join(parts)}{bound}"
    yield "if it is stopped, the same command with sweep.resume=true and this hydra.run.dir goes on"


def left_out(entry: SuiteEntry, gpus: int, left_s: float | None) -> str:
    """Why a benchmark is not run; "": it is.

    Args:
        entry: the benchmark.
        gpus: of this machine.
        left_s: seconds of the suite's time; None: it has no end.
    """
    if entry.gpus > gpus:
        return f"it needs {entry.gpus} GPUs, there are {gpus}"
    if left_s is not None and left_s <= 60 * entry.minutes:
        takes = f", it takes about {entry.minutes}" if entry.minutes else ""
        return f"{max(left_s, 0) / 60:.0f} minutes of bench.minutes are left{takes}"
    return ""


def pack(folder: Path) -> Path:
    """All results of a suite, and the ends of its logs, in one archive that can be sent: less than 16 MiB.

    What does not fit is left out, the logs first.
    """
    results = [folder / name for name in ("suite.json", "RESULTS.md", "report.html")]
    results += sorted(folder.glob("*/*.json"))
    logs = sorted(folder.glob("*/*.log"))
    archive, written = folder / ARCHIVE, io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as tar:
        for file in (*results, *logs):
            with suppress(OSError):  # none was written
                content = file.read_bytes()[-_LOG_BYTES if file in logs else 0 :]
                if written.tell() + len(content) < _ARCHIVE_BYTES:
                    member = tarfile.TarInfo(f"{folder.name}/{file.relative_to(folder)}")
                    member.size, member.mtime = len(content), int(file.stat().st_mtime)
                    tar.addfile(member, io.BytesIO(content))
    archive.write_bytes(written.getvalue())
    return archive


def planned(entries: Sequence[SuiteEntry], offline: Mapping[str, str], gpus: int, online: bool) -> list[SuiteEntry]:
    """What is to be run here: `{gpus}` filled in, models of the hub replaced where it does not answer, nothing twice.

    Args:
        entries: as configured.
        offline: for a model of the hub, the one that stands in for it.
        gpus: of this machine.
        online: the hub answers.
    """
    most = 1 << max(0, gpus.bit_length() - 1)  # tensor parallel sizes are powers of two
    found: dict[tuple[str, ...], SuiteEntry] = {}
    for entry in entries:
        words = [word.replace("{gpus}", str(most)) for word in entry.run]
        if not online:
            stands_in = {f"model={model}": f"model={other}" for model, other in offline.items()}
            words = [stands_in.get(word, word) for word in words]
        found.setdefault(tuple(words), replace(entry, run=words))
    return list(found.values())


def _hub_answers(offline: Mapping[str, str]) -> bool:
    if not offline:
        return True
    from huggingface_hub import HfApi

    try:
        next(iter(HfApi().list_models(limit=1)))
    except Exception:
        return False
    return True
