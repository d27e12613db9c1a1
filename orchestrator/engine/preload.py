"""Import vLLM once per replica: EngineCore and workers are forked from a server that has imported it already.

vLLM spawns EngineCore, which spawns the workers, and each imports vLLM for several seconds, one after the other. Here
a forkserver starts importing at the same time as the replica itself; when the replica has its configuration, EngineCore
and workers are there in milliseconds.

The server initialises no device and starts no threads of its own before a fork. A fork does not see what its parent
has put into the environment since, so each process brings its parent's environment along; OpenMP has read its own part
at load time, so thread counts and CPU sets are applied by hand.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

_MODULE = "orchestrator.engine.preloaded"
# How Inductor learns what the CPU runs: "known" (graphs for this very CPU were restored), "flags" (ask the compiler).
CPU_PROBE = "ORCHESTRATOR_CPU_PROBE"


class _Process(ForkServerProcess):
    """A process that runs with its parent's environment as of `start`."""

    def start(self) -> None:
        forkserver.ensure_running()
        self._environment = dict(os.environ)
        self._server = _forkserver()._forkserver_address
        super().start()

    def run(self) -> None:
        # Python would start another server, without our imports, for the children of a forked process
        _forkserver()._forkserver_address = self._server
        _forkserver().ensure_running = lambda: None
        forkserver.ensure_running = _forkserver().ensure_running
        os.environ.clear()
        os.environ.update(self._environment)
        _adopt_environment()
        super().run()


def _forkserver() -> Any:
    return forkserver._forkserver  # type: ignore[attr-defined]


class PreloadedContext(ForkServerContext):
    """What `multiprocessing.get_context` would return, had it a start method `preloaded`."""

    Process = _Process


def start_server(cpu: bool) -> None:
    """Start importing in the background; returns at once.

    Args:
        cpu: the engine will run on CPU, which wants its OpenMP and allocator loaded before anything else.
    """
    forkserver.set_forkserver_preload([_MODULE])
    with _preloaded_libraries(_cpu_libraries() if cpu else []):
        forkserver.ensure_running()


def wait_ready() -> None:
    """Return once the server has imported everything: it then forks a process that does nothing."""
    process = PreloadedContext().Process(target=_nothing)
    process.start()
    process.join()


def _nothing() -> None: ...


def forget_server() -> None:
    """Once the server was killed: let the next `start_server` start another."""
    server = _forkserver()
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
    server._forkserver_alive_fd = server._forkserver_pid = server._forkserver_address = None


def use_in_this_process() -> None:
    """Make vLLM start its processes from the server; called in the replica, and in every process forked for it."""
    from vllm.utils import system_utils
    from vllm.v1.engine import coordinator, utils
    from vllm.v1.executor import multiproc_executor

    for module in (system_utils, coordinator, utils, multiproc_executor):
        module.get_mp_context = PreloadedContext


def inspect_models_here() -> None:
    """On CPU, let vLLM look at a model class in this process: its subprocess, 9 s of imports, only shields CUDA."""
    from vllm.model_executor.models import registry
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        registry._run_in_subprocess = lambda inspect: inspect()


def _adopt_environment() -> None:
    """Apply what libgomp and Inductor would have found out at load time, which was too early.

    vLLM's CPU executor binds threads by GOMP_CPU_AFFINITY (`OMPProcessManager`). Inductor builds up to six programs
    and loads each in a subprocess, for 8 s, to learn whether the CPU features that it read run what the compiler makes.
    Restored graphs have answered that, for their key holds the CPU's instruction set; otherwise it is enough that the
    compiler takes the flags, since the first kernel is built with them right away.
    """
    import torch
    from torch._inductor.cpu_vec_isa import VecISA

    probe = {"known": lambda isa, code: True, "flags": compiler_takes_flags}.get(os.environ.get(CPU_PROBE, ""))
    if probe is not None:
        VecISA.check_build = probe  # not the setting vec_isa_ok: that is part of vLLM's key
    if cores := os.environ.get("GOMP_CPU_AFFINITY", "").split():
        os.sched_setaffinity(0, {int(core) for core in cores})
        torch.set_num_threads(len(cores))


def compiler_takes_flags(isa: Any, code: str) -> bool:
    """Stands in for `VecISA.check_build`: a syntax check of nothing, with the instruction set's flags."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    flags = [f"-{flag.lstrip('-')}" for flag in isa.build_arch_flags().split()]
    command = [get_cpp_compiler(), *flags, "-fsyntax-only", "-x", "c++", "-"]
    return (
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60).returncode == 0
    )


def _cpu_libraries() -> list[str]:
    """The libraries that vLLM's CPU platform puts into LD_PRELOAD: tcmalloc, and torch's own libgomp."""
    found = []
    for package, patterns in (
        ("vllm", ("libs/libtcmalloc_minimal*.so*", "libs/libtcmalloc.so*")),
        ("torch", ("../torch.libs/libgomp*.so*", "lib/libgomp*.so*")),
    ):
        spec = importlib.util.find_spec(package)
        folders = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
        files = [f for folder in folders for pattern in patterns for f in sorted(folder.glob(pattern))]
        found += [str(files[0].resolve())] if files else []
    return found


@contextmanager
def _preloaded_libraries(libraries: list[str]) -> Iterator[None]:
    before = os.environ.get("LD_PRELOAD")
    wanted = [lib for lib in libraries if Path(lib).name.partition(".so")[0] not in (before or "")]
    if wanted:
        os.environ["LD_PRELOAD"] = ":".join([*wanted, *([before] if before else [])])
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("LD_PRELOAD", None)
        else:
            os.environ["LD_PRELOAD"] = before
