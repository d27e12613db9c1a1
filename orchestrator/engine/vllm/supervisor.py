"""What a vLLM engine of ours runs in: its environment, a watch over its start, and nothing left of it afterwards."""

from __future__ import annotations

import importlib
import os
import time
from contextlib import suppress
from pathlib import Path

import ray

from orchestrator import compat, paths, timeline
from orchestrator.cluster import bytecode, machine
from orchestrator.engine.contract import EngineSpec
from orchestrator.engine.vllm import fork_context, overlap, reaper, short_profile
from orchestrator.errors import one_line
from orchestrator.graph_cache import kernel_caches
from orchestrator.vllm_plugin.settings import KERNELS_USED, logger

# vLLM may take ten minutes to notice a worker that failed in its start; we give it these seconds.
GRACE_S = 3.0
_LOGGING = ("VLLM_CONFIGURE_LOGGING", "VLLM_LOGGING_CONFIG_PATH")  # a user's
_MANAGER = "TRITON_CACHE_MANAGER"
_RECORDER = "orchestrator.vllm_plugin.triton_cache:RecordingCacheManager"
_COPIED = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"
_NAME = 36  # characters of a socket's name, a UUID


class Supervisor:
    """One engine's. Order of calls: enter, imported, begin, perhaps overdue, started, end.

    Args:
        spec: the engine's.
        remove: a folder to remove at the end, even if this process is killed.
    """

    def __init__(self, spec: EngineSpec, remove: str = "") -> None:
        self.spec, self.replica = spec, spec.replica
        self.events = timeline.EventLog(spec.events_file)
        self._marker = reaper.new_marker(spec.replica, forked=spec.preload and fork_context.available())
        self._reaper: reaper.Reaper | None = None
        self._remove = remove
        self._segments: set[Path] = set()
        self.logging_file = ""  # of vLLM's logging configuration, once entered
        self._deadline = float("inf")
        self._failed_at: float | None = None
        self._overdue_at: float | None = None

    def enter(self) -> None:
        """Set the environment that vLLM and its processes are to see. From here on nothing outlives this process."""
        self._watch()
        taken = [name for name in _LOGGING if os.environ.pop(name, None)]
        self._said = f"{' and '.join(taken)} gave way to our own, which reads vLLM's log" if taken else ""
        self.logging_file = timeline.write_logging_config(self.spec.events_file)
        os.environ.update(self.spec.env)
        if self._on_gpus:
            _keep_on_node(Path(self.spec.cache_root))
        if ray.is_initialized():  # EngineCore joins it, with vLLM's Ray executor; without an address it starts another
            os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        os.environ.update(
            {
                reaper.MARKER: self._marker,
                "SPT_NOENV": "1",  # or setproctitle writes the title that vLLM gives a process over its environment
                "VLLM_CACHE_ROOT": self.spec.cache_root,
                "VLLM_LOGGING_CONFIG_PATH": self.logging_file,
                "VLLM_CONFIGURE_LOGGING": "1",
            }
        )
        # vLLM leaves its sockets behind: there they go with the replica
        os.environ["VLLM_RPC_BASE_PATH"] = str(Path(paths.for_socket(f"{self.spec.scratch}/{'-' * _NAME}")).parent)
        if self.spec.cpu:
            _bind_threads(int(self.spec.args.get("tensor_parallel_size", 1)))

    def imported(self) -> None:
        """Say that vLLM is imported now."""
        fork_context.log_as_told()
        fork_context.offline_as_told()
        if self._said:
            logger.warning("%s%s", compat.PREFIX, self._said)
        if slow := bytecode.note():
            logger.warning("%s%s", compat.PREFIX, slow)
        self.events.mark("import")
        if not self.spec.stock:
            compat.check()
            compat.tell()
        if self._on_gpus and self.spec.share_kernels:
            self._record_kernels()
        if self.spec.preload or self._on_gpus:
            fork_context.inspect_models_here()
        if self.spec.overlap:
            overlap.in_client()

    def begin(self, *, restored: bool) -> None:
        """From here on the engine's start is under its deadline.

        Args:
            restored: graphs for the engine's compile key lie under its cache root.
        """
        if self.spec.cpu and self.spec.quick_cpu_probe:
            os.environ[fork_context.CPU_PROBE] = "known" if restored else "flags"
        if self.spec.cpu and self.spec.short_profile and restored:
            os.environ[short_profile.VARIABLE] = "1"
        if self.spec.overlap:
            os.environ[overlap.VARIABLE] = "1"
        if self._on_gpus and self.spec.share_kernels:
            kernel_caches.begin(Path(self.spec.cache_root))
        self._watch()
        self._deadline = time.monotonic() + self.spec.start_timeout_s

    def started(self) -> None:
        """The start is over."""
        self._deadline = float("inf")
        self.events.mark("handshake")
        self.note_segments()

    @property
    def timed_out(self) -> bool:
        """The start took longer than it may."""
        return time.monotonic() > self._deadline

    def overdue(self) -> bool:
        """The start has failed or timed out, whether or not vLLM has noticed."""
        if self._failed_at is None and timeline.root_cause(self.events.read()):
            self._failed_at = time.monotonic()
        if self.timed_out or (self._failed_at is not None and time.monotonic() > self._failed_at + GRACE_S):
            self._overdue_at = self._overdue_at or time.monotonic()
        return self._overdue_at is not None

    def unnoticed(self) -> bool:
        """The start is overdue, its processes are killed, and vLLM has not noticed for seconds."""
        return self._overdue_at is not None and time.monotonic() > self._overdue_at + 2 * GRACE_S

    def cause(self) -> str:
        """Why the engine failed, in vLLM's words; "" where it did not say."""
        cause = timeline.root_cause(self.events.read())
        if not cause and self.timed_out:
            cause = f"no answer within engine.start_timeout_s={self.spec.start_timeout_s:g}"
        return cause

    def phase(self) -> str:
        """How far the start came."""
        reached = timeline.phases(self.events.read(), 0.0)
        return f"after {reached[-1].name!r}" if reached else "start"

    def note_segments(self) -> None:
        """Note which shared memory the engine's processes use, while they live: vLLM leaves it behind."""
        self._segments |= reaper.shared_segments(self._marker)
        if self._reaper is not None:  # this process may be killed
            self._reaper.note(self._segments)

    def kill(self) -> None:
        """Kill the engine's processes."""
        reaper.kill_marked(self._marker)

    def end(self) -> None:
        """Kill what is left of the engine, and remove its shared memory."""
        self.note_segments()
        self.kill()
        left = reaper.remove_segments(self._segments)
        if self._remove:
            reaper.remove_folder(Path(self._remove))
        if self._reaper is not None and not left:  # else it removes, after this process, what this one has mapped
            self._reaper.over()  # last, for this process may be cut short at its exit
            self._reaper = None

    @property
    def _on_gpus(self) -> bool:
        """It is an engine of ours, on GPUs."""
        return not (self.spec.cpu or self.spec.stock)

    def _record_kernels(self) -> None:
        """Have Triton note which kernels this engine asks for, so that these travel with its graphs."""
        if os.environ.setdefault(_MANAGER, _RECORDER) != _RECORDER:
            logger.warning("%sTriton's kernels do not travel: %s is set already", compat.PREFIX, _MANAGER)
            return
        try:
            importlib.import_module(_RECORDER.partition(":")[0])
        except Exception as error:
            del os.environ[_MANAGER]
            logger.warning("%sTriton's kernels do not travel: %s", compat.PREFIX, one_line(error))
            return
        os.environ[KERNELS_USED] = f"{self.spec.cache_root}/{kernel_caches.USED}"

    def _watch(self) -> None:
        if self._reaper is None:
            self._reaper = reaper.start_reaper(self._marker, self._remove)


def _keep_on_node(root: Path) -> None:
    """Let a GPU's engines keep what they make besides graphs where stock vLLM has it, for all of the node.

    In a cache root of an engine's own it would be made again at each start: Triton's kernels of vLLM's model runner
    (20 s), DeepGEMM's, what FlashInfer has tuned, and what vLLM knows of model classes. Ranks that are Ray actors get
    these variables too, whichever of its executors vLLM takes.

    Args:
        root: what becomes VLLM_CACHE_ROOT; the environment still has the node's.
    """
    node = kernel_caches.vllms_own_cache()
    os.environ["TRITON_CACHE_DIR"] = str(kernel_caches.triton_folder())
    os.environ["DG_JIT_CACHE_DIR"] = str(kernel_caches.deep_gemm_folder())
    os.environ[kernel_caches.NODE_ROOT] = str(node)
    copied = [os.environ.get(_COPIED, ""), "TRITON_CACHE_DIR", "DG_JIT_CACHE_DIR", _MANAGER, KERNELS_USED]
    os.environ[_COPIED] = ",".join(dict.fromkeys(filter(None, ",".join(copied).split(","))))
    for name in ("modelinfos", "flashinfer_autotune_cache"):  # the latter's variable would lack FlashInfer's version
        with suppress(OSError):  # no home that one may write to
            (node / name).mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(node / name)


def _bind_threads(size: int) -> None:
    """vLLM gives each CPU rank the cores of a NUMA node.

    It gives up where ranks outnumber nodes: then the cores are split by hand. In a container that may use less than its
    cores, threads on all of them would wait for each other: then there are as many as it may, wherever Linux puts them.
    """
    variable = "VLLM_CPU_OMP_THREADS_BIND"
    if variable in os.environ:
        return
    if machine.cpus() < len(os.sched_getaffinity(0)):
        os.environ[variable] = "nobind"
        os.environ["OMP_NUM_THREADS"] = str(max(1, machine.cpus() // size))
        return
    if size == 1:
        return
    nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1
    cores = sorted(os.sched_getaffinity(0))
    if nodes < size <= len(cores):
        share = len(cores) // size
        groups = [cores[i * share : (i + 1) * share] for i in range(size)]
        os.environ[variable] = "|".join(",".join(map(str, group)) for group in groups)
