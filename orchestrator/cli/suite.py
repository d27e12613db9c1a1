"""Several benchmarks, one after the other, each in a process of its own; one page and one JSON for all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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


def execute(app: AppConfig, folder: Path, say: Say) -> dict[str, Any]:
    """Run `bench.suite`; a benchmark that fails leaves the others.

    Args:
        app: the checked configuration.
        folder: where the outputs go, each benchmark's into a folder of its own.
        say: told what happens.

    Returns:
        The job's RESULT line.
    """
    gpus, online = visible_gpus(), _hub_answers(app.bench.offline)
    found, ends = [], []
    for i, entry in enumerate(planned(app.bench.suite, app.bench.offline, gpus, online)):
        name = " ".join(entry.run)
        if entry.gpus > gpus:
            ends.append({"name": name, "ok": True, "skipped": f"it needs {entry.gpus} GPUs, there are {gpus}"})
            say("suite", f"skipped {name}: {ends[-1]['skipped']}")
            continue
        say("suite", name)
        cell = folder / str(i)
        words = [*entry.run, f"state_dir={sources.quoted(app.state_dir)}"]
        how = Processes().run(Cell("bench", words, cell, sources.flags(HydraConfig.get())), app.sweep)
        ends.append({"name": name, "ok": how["code"] == 0, "error": how["result"].get("error", "")})
        if (cell / "bench.json").is_file():
            found.append(json.loads((cell / "bench.json").read_text()))
    well = all(end["ok"] for end in ends)
    whole = {"schema": SCHEMA, "ok": well, "machine": provenance.machine(), "benches": ends, "results": found}
    (folder / "suite.json").write_text(json.dumps(whole, indent=2))
    (folder / "report.html").write_text(page.html("Benchmarks", [], benches=found))
    (folder / "RESULTS.md").write_text(results.markdown({str(i): result for i, result in enumerate(found)}))
    return {"ok": well, "benches": ends, "report": str(folder / "report.html")}


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
        found.setdefault(tuple(words), SuiteEntry(words, entry.gpus))
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
