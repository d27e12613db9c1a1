"""What tests/unit/test_compat.py looks at with vLLM imported: each scenario in a fork, one JSON line each."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import vllm.compilation.backends
import vllm.compilation.caching
import vllm.engine.arg_utils
import vllm.v1.engine.async_llm
import vllm.v1.engine.core
import vllm.v1.executor.multiproc_executor
import vllm.v1.worker.cpu_model_runner
import vllm.v1.worker.gpu_model_runner
from vllm.compilation.passes.utility.fix_functionalization import FixFunctionalizationPass
from vllm.config import CompilationMode
from vllm.platforms.cpu import CpuPlatform

from orchestrator import compat, vllm_plugin
from orchestrator.compat import features, lookup, table

ASKED = {"orchestrator": {"kv_update": "layer_index"}}
CPU = vllm.platforms.current_platform.is_cpu()


def pinned() -> dict[str, Any]:
    """As the zygote of a service: everything imported, everything patched."""
    import orchestrator.serve.zygote_imports  # noqa: F401

    began = time.perf_counter()
    found = compat.check()
    seconds = time.perf_counter() - began
    untouched = [str(name) for name in table.TABLE if lookup.fault(name, load=True)]
    return {"found": found, "notes": compat.notes(), "seconds": seconds, "with all imported": untouched}


def removed() -> dict[str, Any]:
    from orchestrator.engine.vllm import short_profile

    del vllm.v1.worker.gpu_model_runner.GPUModelRunner.profile_run  # the CPU's runner inherits it
    found = compat.check()
    short_profile.install()
    patched = "profile_run" in vars(vllm.v1.worker.cpu_model_runner.CPUModelRunner)
    return {"found": found, "patched": patched, "trace once": compat.on(features.TRACE_ONCE)}


def changed() -> dict[str, Any]:
    from orchestrator.vllm_plugin import compiler_hooks, kv_pass

    def split_graph(graph: Any, ops: Any) -> None: ...

    vllm.compilation.backends.split_graph = split_graph
    vllm_plugin.register()
    try:
        compiler_hooks._require_supported("layer_index")
    except kv_pass.CannotRewrite as reason:
        falls_back = str(reason)
    return {
        "found": compat.check(),
        "left alone": vllm.compilation.backends.split_graph is split_graph,
        "falls back": falls_back,
        "trace once": compat.on(features.TRACE_ONCE) and table.AOT_COMPILE in lookup.originals,
    }


def imported_early() -> dict[str, Any]:
    """vLLM's own modules hold these by name; all of them get ours."""
    from vllm.v1.engine import coordinator, utils
    from vllm.v1.executor import multiproc_executor

    from orchestrator.engine.vllm import fork_context

    fork_context.use_in_this_process()
    vllm_plugin.register()
    modules = (coordinator, utils, multiproc_executor)
    backends, codegen = vllm.compilation.backends, vllm.compilation.codegen
    return {
        "processes": [m.get_mp_context is fork_context.context for m in modules],
        "stitching": backends.generate_execution_code is codegen.generate_execution_code,
        "ours": backends.generate_execution_code.__module__,
        "notes": compat.notes(),
    }


def overlapped() -> dict[str, Any]:
    """What was patched first still looks to a later check as vLLM has it."""
    from orchestrator.engine.vllm import fork_context, overlap

    fork_context.keep_log()
    overlap.in_client()
    overlap.in_core()
    patched = (
        table.HANDSHAKE, table.ASYNC_LLM_INIT, table.RENDERER, table.CORE_CLIENT, table.TOKENIZER_OF, table.CORE_INIT,
        table.CONFIGURE_LOG,
    )  # fmt: skip
    return {
        "patched": all(name in lookup.originals for name in patched),
        "on": compat.on(features.OVERLAP) and compat.on(features.SERVE_HOOK) and compat.on(features.LOG),
        "notes": compat.notes(),
    }


def stock() -> dict[str, Any]:
    """With the plugin at work in the process, an engine that did not ask gets vLLM's own; one that asked gets ours."""
    vllm_plugin.register()
    found: dict[str, Any] = {"cpu": CPU}
    for who, additional in (("stock", {}), ("asked", ASKED)):
        config = SimpleNamespace(
            additional_config=additional,
            compilation_config=SimpleNamespace(
                splitting_ops=[], use_inductor_graph_partition=False, pass_config=SimpleNamespace()
            ),
            model_config=None,
            device_config=None,
        )
        its_pass = FixFunctionalizationPass(config)
        own = object.__new__(FixFunctionalizationPass)
        own.__dict__.update(its_pass.__dict__)
        graph = torch.fx.Graph()
        found[f"{who} pass"] = _outcome(FixFunctionalizationPass.__call__, its_pass, graph)
        found["vLLM's pass"] = _outcome(
            lookup.originals.get(table.FIX_PASS, FixFunctionalizationPass.__call__), own, graph
        )
        found[f"{who} mode"] = _mode(additional)
        found[f"{who} key"] = _key(additional)
    return found


def _outcome(call: Any, its_pass: Any, graph: Any) -> str:
    """What is left of a call of the pass."""
    its_pass.__dict__.pop("nodes_to_remove", None)
    try:
        call(its_pass, graph)
    except Exception as error:
        return type(error).__name__
    return "ran" if "nodes_to_remove" in its_pass.__dict__ else "did nothing"


def _mode(additional: Any) -> str:
    """The mode after the CPU platform's hook, whose own part does what vLLM's does: trace once, with Inductor."""
    from orchestrator.vllm_plugin import piecewise_cpu

    def own(cls: type, config: Any) -> None:
        config.compilation_config.mode = CompilationMode.DYNAMO_TRACE_ONCE
        config.compilation_config.backend = "inductor"

    compilation = SimpleNamespace(
        mode=CompilationMode.VLLM_COMPILE, backend="", compile_sizes=None, pass_config=SimpleNamespace()
    )
    piecewise_cpu._restored(own)(
        CpuPlatform, SimpleNamespace(additional_config=additional, compilation_config=compilation)
    )
    return str(compilation.mode.name)


def _key(additional: Any) -> bool:
    """Does the compile key see where a process runs?"""
    from orchestrator.vllm_plugin import cache_key

    key = cache_key._placeless(lambda config: sorted(vllm.envs.compile_factors()))
    return "VLLM_LOOPBACK_IP" in key(SimpleNamespace(additional_config=additional, model_config=None))


def main() -> None:
    for scenario in (pinned, removed, changed, imported_early, overlapped, stock):
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            _tell(write, scenario)
        os.close(write)
        with os.fdopen(read) as said:
            print(json.dumps({scenario.__name__: json.loads(said.read() or "null")}), flush=True)
        os.waitpid(pid, 0)


def _tell(write: int, scenario: Callable[[], dict[str, Any]]) -> None:
    try:
        with os.fdopen(write, "w") as said:
            said.write(json.dumps(scenario()))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
