"""Do Triton's kernels travel? Compile one, bundle it, install it for another node, and look for it there.

python -m tests.gpu.kernels     needs Triton, and no GPU: the kernel is for sm_90
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
KEY, SIGNING = "k" * 64, b"s" * 32
# A file of its own: Triton reads a kernel's source.
PROGRAM = """
import json, sys
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend

made = []
plain = CUDABackend.make_cubin
CUDABackend.make_cubin = lambda *args, **kwargs: made.append(1) or plain(*args, **kwargs)

@triton.jit
def double(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, 2 * tl.load(x + at, mask=at < n), mask=at < n)

@triton.jit
def unused(x, BLOCK: tl.constexpr):
    tl.store(x + tl.arange(0, BLOCK), 1.0)

def compiled(kernel, signature):
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs={"BLOCK": 128})
    return triton.compile(source, target=GPUTarget("cuda", 90, 32))

if "both" in sys.argv:
    compiled(unused, {"x": "*fp32", "BLOCK": "constexpr"})
else:
    found = compiled(double, {"x": "*fp32", "out": "*fp32", "n": "i32", "BLOCK": "constexpr"})
    print(json.dumps({"made": len(made), "cubin": len(found.asm["cubin"]), "name": found.metadata.name}))
"""


def main() -> int:
    """Print what was found; returns 1 where a kernel did not travel."""
    right, result = travel()
    print(f"{'ok   ' if right else 'WRONG'}  {result}")
    return not right


def travel() -> tuple[bool, str]:
    """Whether a kernel that one node made is loaded on another, and in words."""
    try:
        return _travelled()
    except (RuntimeError, OSError) as error:
        return False, str(error)


def _travelled() -> tuple[bool, str]:
    from orchestrator.graph_cache import bundle, kernel_caches

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = folder / "kernels.py"
        program.write_text(PROGRAM)
        here, there = folder / "here", folder / "there"
        _asked(program, here, folder / "none", "both")  # another model's kernel: it stays
        kernel_caches.begin(here / "root")
        first = _asked(program, here, here / "root" / kernel_caches.USED)
        limits = bundle.Limits(1 << 28, 10_000)
        with _node(here):
            parts = kernel_caches.collect(here / "root", limits)
            made = kernel_caches.told({}, here / "root")
        known = {"key": KEY, "factors": {}, "created": 0.0, "publisher": ""}
        data = bundle.pack(here / "root", parts, SIGNING, known)
        _, payload = bundle.verify(memoryview(data), SIGNING, KEY, limits)
        bundle.install(payload, there / "root", limits)
        with _node(there):
            brought = kernel_caches.spread(there / "root" / kernel_caches.PART, there / "root")
        (here / "triton").rename(folder / "gone")  # nothing may be found by its old path
        kernel_caches.begin(there / "root")
        second = _asked(program, there, there / "root" / kernel_caches.USED)
        with _node(there):
            again = kernel_caches.told(brought, there / "root")
    right = (first["made"], second["made"]) == (1, 0) and first["cubin"] == second["cubin"]
    right = right and made == {"Triton kernels": {"brought": 0, "made": 1}}
    right = right and again == {"Triton kernels": {"brought": 1, "made": 0}}
    return right, f"compiled {first['made']} time here and {second['made']} there, {len(data)} bytes; {made}; {again}"


@contextmanager
def _node(folder: Path) -> Iterator[None]:
    """A node's own caches, for what runs in this process."""
    variables = {"TRITON_CACHE_DIR": f"{folder}/triton", "ORCHESTRATOR_NODE_CACHE_ROOT": f"{folder}/vllm"}
    with mock.patch.dict(os.environ, variables):
        yield


def _asked(program: Path, node: Path, used: Path, *words: str) -> dict[str, Any]:
    """What a process of a node finds that asks for a kernel."""
    variables = {
        "TRITON_CACHE_DIR": str(node / "triton"),
        "TRITON_CACHE_MANAGER": "orchestrator.vllm_plugin.triton_cache:RecordingCacheManager",
        "ORCHESTRATOR_KERNELS_USED": str(used),
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }
    command = [sys.executable, str(program), *words]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-2000:])
    return dict(json.loads(done.stdout or "{}"))


if __name__ == "__main__":
    sys.exit(main())
