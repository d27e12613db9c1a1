"""What a GPU node's zygote does, step by step: `make gpu-rehearsal`, with the environment of `make setup DEVICE=gpu`.

Where there is a GPU, its driver is used. Elsewhere a driver stands in that writes down who calls it and says that there
are two H100s (tests/gpu/stubs, built with gcc): enough for imports, and for whoever asks what the GPUs are.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tests.gpu import kernels

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENGINE, SERVICE = "orchestrator.engine.vllm.zygote_imports", "orchestrator.serve.zygote_imports"
ASK_AT_IMPORT = {"flashinfer", "triton", "tvm_ffi"}
PLAIN = (bool, int, float, str, tuple, list, set, frozenset, Path)
LOG = "DRIVER_LOG"
STEP_S = 900


def main() -> int:
    """Print a table, step and result; returns how many steps went wrong."""
    if (built := _said("import torch; print(torch.version.cuda or '')")) == "":
        print("error: torch is not built for GPUs here. make setup DEVICE=gpu VENV=…", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        real = Path("/dev/nvidiactl").exists()
        environment = dict(os.environ) if real else {**os.environ, **stubs(Path(folder))}
        print(f"torch for CUDA {built}; the driver is {'this machine’s' if real else 'one that records calls'}")
        plain = imported(ENGINE, environment, "--plain")
        engine, service = (imported(module, environment) for module in (ENGINE, SERVICE))
    steps = [
        ("plain imports, for comparison", "kept" in plain, f"{plain['driver']}; {calls(plain)}"),
        *untouched("an engine's zygote", engine),
        *untouched("a service's zygote", service),
        ("what modules keep of the GPUs", *same(plain, engine)),
        ("a fork asks for itself", engine.get("fork", "") == plain.get("asked"), engine.get("fork", "")),
        ("Triton's digest is known to forks", engine.get("triton") == "remembered", engine.get("triton", "")),
        ("Triton's kernels travel", *kernels.travel()),
    ]
    for step, right, result in steps:
        print(f"{'ok   ' if right else 'WRONG'}  {step:32}  {result}")
    return sum(not right for _, right, _ in steps)


def stubs(folder: Path) -> dict[str, str]:
    """Build what stands in for the driver; returns the variables with which it is found."""
    headers = _said("import importlib.util as u; print(list(u.find_spec('nvidia').submodule_search_locations)[0])")
    for library, source, flags in (
        ("libcuda.so.1", "driver.c", ["-ldl"]),
        ("libnvidia-ml.so.1", "nvml.c", []),
        ("libruntime.so", "runtime.c", [f"-I{headers}/cu13/include", f"-L{folder}", "-l:libcuda.so.1"]),
    ):
        command = ["gcc", "-shared", "-fPIC", "-o", str(folder / library), str(HERE / "stubs" / source), *flags]
        subprocess.run(command, check=True)
    found = [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        "LD_LIBRARY_PATH": ":".join(filter(None, found)),
        "LD_PRELOAD": str(folder / "libruntime.so"),
        LOG: str(folder / "calls"),
    }


def imported(module: str, environment: dict[str, str], *flags: str) -> dict[str, Any]:
    """What a process finds that imports a zygote's module."""
    # as zygote/server.py sets them
    variables = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "HUMMING_DISABLE_PARALLEL_BUILD": "1"}
    command = [sys.executable, __file__, "--import", module, *flags]
    done = subprocess.run(
        command, env={**environment, **variables}, capture_output=True, text=True, timeout=STEP_S, check=False
    )
    try:
        found: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        lines = done.stderr.strip().splitlines()
        return {"driver": f"the process ended with {done.returncode}: {lines[-1] if lines else ''}", "calls": []}
    return found


def untouched(who: str, found: dict[str, Any]) -> list[tuple[str, bool, str]]:
    """Has a zygote let the driver alone?"""
    right = found["driver"] == "untouched" and not found["calls"] and not found["threads"]
    threads = ", ".join(found.get("threads", [])) or "none"
    return [(who, right, f"{found['driver']}; {calls(found)}; other threads: {threads}")]


def calls(found: dict[str, Any]) -> str:
    """The driver's calls, where they were written down."""
    counted = {name: found["calls"].count(name) for name in found["calls"]}
    return "calls: " + (", ".join(f"{name} {count}" for name, count in counted.items()) or "none seen")


def same(one: dict[str, Any], other: dict[str, Any]) -> tuple[bool, str]:
    """Do modules keep the same after both imports? And how many values are that."""
    before, after = one.get("kept", {}), other.get("kept", {})
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    of_flashinfer = sum(name.startswith("flashinfer.") for name in after)
    if names:
        return False, f"other values than after plain imports: {', '.join(names[:9])}"
    return bool(after), f"{len(after)} values as after plain imports, {of_flashinfer} of them FlashInfer's"


def in_this_process(module: str, plain: bool) -> dict[str, Any]:
    """Import, then look around."""
    from orchestrator.engine.vllm import cuda_driver, device_answers
    from orchestrator.zygote import server

    refused = ""
    if plain:
        device_answers._answers = nullcontext
    try:
        importlib.import_module(module)
    except SystemExit as refusal:
        refused = str(refusal)
    log = Path(os.environ.get(LOG, "/dev/null"))
    mine = [line.split()[1] for line in (log.read_text() if log.exists() else "").splitlines() if _is_mine(line)]
    driver = refused or cuda_driver.initialised() or "untouched"
    found = {"driver": driver, "calls": mine, "threads": server.other_threads(), "kept": kept()}
    return {**found, **({"asked": asked()} if plain else {"fork": in_a_fork(), "triton": triton_digest()})}


def kept() -> dict[str, str]:
    """Values in modules that ask for GPUs, and in their modules' objects; nothing is called."""
    values = {}
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] in ASK_AT_IMPORT:
            for attribute, value in vars(module).items():
                own = type(value).__module__.partition(".")[0] in ASK_AT_IMPORT and hasattr(value, "__dict__")
                parts = {f".{part}": held for part, held in vars(value).items()} if own else {"": value}
                for part, held in parts.items():
                    if isinstance(held, PLAIN) and not attribute.startswith("__"):
                        held = sorted(held, key=repr) if isinstance(held, (set, frozenset)) else held
                        values[f"{name}.{attribute}{part}"] = re.sub(r"0x[0-9a-f]+", "", repr(held))
    return values


def asked() -> str:
    """What torch says of the GPUs, and one computes, if there is one."""
    import torch

    said = f"{torch.cuda.device_count()} GPUs, {torch.cuda.get_device_name(0)} {torch.cuda.get_device_capability(0)}"
    return f"{said}, 1 + 1 = {(torch.ones(1, device='cuda') + 1).item():.0f}" if LOG not in os.environ else said


def triton_digest() -> str:
    """Is Triton's part of a compile key there without reading Triton's files?"""
    from torch._inductor import codecache
    from torch._inductor.runtime import triton_compat

    def reads() -> str:
        raise RuntimeError("a fork would read all of Triton")

    triton_compat.triton_key = reads
    try:
        codecache.triton_key()
    except RuntimeError as error:
        return str(error)
    return "remembered"


def in_a_fork() -> str:
    """The same, in a fork of this process."""
    readable, writable = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            said = asked()
        except Exception as error:
            said = repr(error)
        os.write(writable, said.encode())
        os._exit(0)
    os.close(writable)
    os.waitpid(pid, 0)
    return os.read(readable, 1 << 16).decode()


def _is_mine(line: str) -> bool:
    return line.startswith(f"{os.getpid()} ")


def _said(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--import"]:
        result = in_this_process(sys.argv[2], "--plain" in sys.argv)
        print(f"\n{json.dumps(result)}", flush=True)
        os._exit(0)  # threads that libraries have started do not matter any more
    if not Path("/dev/nvidiactl").exists() and not shutil.which("gcc"):
        sys.exit("error: there is no GPU here, and no gcc to build what stands in for its driver.")
    sys.exit(main())
