"""Import vLLM once per node: replicas are forked from the node's zygote, and their engine's processes likewise.

vLLM spawns EngineCore, which spawns the workers, and each imports vLLM for several seconds, one after the other. A
replica that was forked from a zygote (see orchestrator/zygote) has imported it; at its birth, while it has one thread,
it forks a forkserver of its own, from which EngineCore and workers come in milliseconds.

No device is initialised before a fork. A fork does not see what its parent has put into the environment since, so each
process brings its parent's environment along; OpenMP has read its own part at load time, so thread counts and CPU sets
are applied by hand.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache, wraps
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.context import BaseContext, ForkServerContext, ForkServerProcess
from types import FunctionType
from typing import Any

from orchestrator import compat, paths, timeline
from orchestrator.compat import features, table
from orchestrator.engine.vllm import openmp, overlap, short_profile
from orchestrator.vllm_plugin.settings import logger

MODULE = "orchestrator.engine.vllm.zygote_imports"
# How Inductor learns what the CPU runs: "known" (graphs for this very CPU were restored), "flags" (ask the compiler).
CPU_PROBE = "ORCHESTRATOR_CPU_PROBE"
# What vLLM decides at import and forks cannot decide again, with its defaults. The first one vLLM sets by itself while
# it makes the configuration; it says whether attention is left out of CUDA graphs, and a fork's would be captured.
_AT_IMPORT = {"VLLM_USE_BREAKABLE_CUDAGRAPH": "0", "VLLM_BATCH_INVARIANT": "0", "VLLM_USE_LAYERNAME": "1"}


def _decided() -> dict[str, str]:
    return {name: os.environ.get(name, default) for name, default in _AT_IMPORT.items()}


_imported_with = _decided()  # this module is imported with vLLM, in the zygote


class _Process(ForkServerProcess):
    """A process that runs with its parent's environment and niceness as of `start`."""

    def start(self) -> None:
        forkserver.ensure_running()
        self._environment = dict(os.environ)
        self._niceness = os.getpriority(os.PRIO_PROCESS, 0)
        self._streams = [os.readlink(f"/proc/self/fd/{stream}") for stream in (1, 2)]
        self._server = _forkserver()._forkserver_address
        super().start()
        overlap.process_started()

    def run(self) -> None:
        # Python would start another server, without our imports, for the children of a forked process
        _forkserver()._forkserver_address = self._server
        _forkserver().ensure_running = lambda: None
        forkserver.ensure_running = _forkserver().ensure_running
        os.environ.clear()
        os.environ.update(self._environment)
        # Ray's workers are nice, and the forkserver was born before: engines would starve what brings them requests
        os.setpriority(os.PRIO_PROCESS, 0, self._niceness)
        _adopt_environment()
        for stream, target in enumerate(self._streams, start=1):  # Ray turned to log files meanwhile
            if os.path.isfile(target):
                log = os.open(target, os.O_WRONLY | os.O_APPEND)
                os.dup2(log, stream)
                os.close(log)
        super().run()


def _forkserver() -> Any:
    return forkserver._forkserver  # type: ignore[attr-defined]


class PreloadedContext(ForkServerContext):
    """What `multiprocessing.get_context` would return, had it a start method `preloaded`."""

    Process = _Process


def fork_server() -> None:
    """Fork this process's forkserver, where `multiprocessing` would start a new Python; call it before any thread."""
    server = _forkserver()
    resource_tracker.ensure_running()
    with socket.socket(socket.AF_UNIX) as listener:
        address = paths.for_socket(connection.arbitrary_address("AF_UNIX"))  # type: ignore[attr-defined]
        listener.bind(address)
        os.chmod(address, 0o600)
        listener.listen()
        alive_r, alive_w = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(alive_w)
            try:
                forkserver.main(listener.fileno(), alive_r, [])
            finally:
                os._exit(0)
        os.close(alive_r)
    server._forkserver_address, server._forkserver_alive_fd, server._forkserver_pid = address, alive_w, pid


def begin() -> None:
    """In each fork of the zygote: have what it starts forked too, where Python and vLLM are as we know them."""
    if compat.on(features.FORKS):
        use_in_this_process()
        fork_server()  # after that, so that what it forks uses it too


def available() -> bool:
    """Has this process got a forkserver that has imported vLLM?"""
    return getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None) is not None


def use_in_this_process() -> None:
    """Make vLLM start its processes from the server; called in the replica, and in every process forked for it."""
    compat.patch(table.MP_CONTEXT, lambda _: context)


def context() -> BaseContext:
    """What vLLM starts its processes with: forks, unless these would have decided otherwise than the engine wants."""
    differing = [f"{name}={now}" for name, now in _decided().items() if now != _imported_with[name]]
    if not differing:
        return PreloadedContext()
    _say_once(f"no forks: vLLM was imported without {', '.join(differing)}. The engine's processes import it anew.")
    return multiprocessing.get_context("spawn")


@cache
def _say_once(line: str) -> None:
    logger.warning(line)


def inspect_models_here() -> None:
    """Let vLLM look at a model class in this process: its subprocess, 9 s of imports, only shields CUDA.

    This process computes nothing, and its engine's processes are spawned, or forked from a server that has not looked.
    """
    compat.patch(table.MODEL_LOOK, lambda _: lambda inspect: inspect())


def log_as_told() -> None:
    """vLLM reads VLLM_LOGGING_CONFIG_PATH when it is imported: read it once more."""
    with suppress(compat.Gone):
        compat.get(table.CONFIGURE_LOG)()


def keep_log() -> None:
    """In the zygote: log as our engines do, so that a fork only changes the file that its events go to."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VLLM_LOGGING_CONFIG_PATH"] = timeline.write_logging_config(f"{folder}/events.jsonl")
        log_as_told()
        del os.environ["VLLM_LOGGING_CONFIG_PATH"]
    compat.patch(table.CONFIGURE_LOG, _redirected)


def _redirected(plain: Any) -> Any:
    @wraps(plain)
    def configure(config: Any = None) -> None:
        file = os.environ.get("VLLM_LOGGING_CONFIG_PATH") if config is None else config.pylogging_config_file
        if not (file and timeline.redirect(file)):
            plain() if config is None else plain(config)

    return configure


def offline_as_told() -> None:
    """The hub's library reads HF_HUB_OFFLINE when it is imported: read it once more."""
    from huggingface_hub import constants

    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE")
    constants.HF_HUB_OFFLINE = (said or "").upper() in ("1", "ON", "YES", "TRUE")


def forget_device() -> None:
    """What vLLM remembers of device 0 is of no use in a fork, whose device 0 may be another one."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("vllm.platforms", "vllm.utils")):
            own = (part for part in vars(module).values() if isinstance(part, type) and part.__module__ == name)
            for holder in (module, *own):
                for part in vars(holder).values():
                    plain: Any = part.__func__ if isinstance(part, (classmethod, staticmethod)) else part
                    if callable(plain) and _remembers(plain):
                        plain.cache_clear()


def _remembers(part: Any) -> bool:
    """Looked up without asking the object itself: vLLM's platform logs a warning for what it has not got."""
    return hasattr(type(part), "cache_clear") or (isinstance(part, FunctionType) and "cache_clear" in vars(part))


def _adopt_environment() -> None:
    """Apply what libgomp and Inductor would have found out at load time, which was too early.

    Inductor builds up to six programs and loads each in a subprocess, for 8 s, to learn whether the CPU features that
    it read run what the compiler makes. Restored graphs have answered that, for their key holds the CPU's instruction
    set; otherwise it is enough that the compiler takes the flags, since the first kernel is built with them right away.
    """
    log_as_told()
    offline_as_told()
    if compat.on(features.THREADS):
        # vLLM sets these at its import and in its CPU platform; Inductor read them before; the second is in vLLM's key
        threads, dynamic = compat.get(table.DECIDE_THREADS)(), os.environ.get("TORCHINDUCTOR_CPP_DYNAMIC_THREADS", "0")
        compat.patch(table.COMPILE_THREADS, lambda _: threads)
        compat.patch(table.DYNAMIC_THREADS, lambda _: dynamic == "1")
    probe = {"known": lambda isa, code: True, "flags": compiler_takes_flags}.get(os.environ.get(CPU_PROBE, ""))
    if probe is not None and compat.on(features.CPU_PROBE):
        compat.patch(table.CHECK_BUILD, lambda _: probe)  # not the setting vec_isa_ok: that is part of vLLM's key
    if os.environ.get(CPU_PROBE) == "known" and compat.on(features.HEADERS):
        compat.patch(table.PRECOMPILE, lambda _: no_header)
    if os.environ.get(short_profile.VARIABLE):
        short_profile.install()
    if os.environ.get(overlap.VARIABLE):
        overlap.in_core()
    openmp.adopt()


def no_header(header: str, hashable_cmd_line: str, **compile_command: Any) -> None:
    """Stands in for `_precompile_header`, which Inductor asks before it looks whether the library is there.

    It runs the preprocessor over torch's headers, for half a second, only to name what a compile would include. Where a
    library is missing after all, it is compiled without a precompiled header.
    """


def compiler_takes_flags(isa: Any, code: str) -> bool:
    """Stands in for `VecISA.check_build`: a syntax check of nothing, with the instruction set's flags."""
    flags = [f"-{flag.lstrip('-')}" for flag in isa.build_arch_flags().split()]
    command = [compat.get(table.COMPILER)(), *flags, "-fsyntax-only", "-x", "c++", "-"]
    return (
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60).returncode == 0
    )
