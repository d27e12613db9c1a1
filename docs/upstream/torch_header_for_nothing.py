"""torch: with every library in Inductor's cache, each process still runs the C++ preprocessor over torch's headers.

`CppCodeCache.load_async` precompiles the header before it looks whether the library is there. The precompiled header is
there too, but to name it the header is preprocessed anew, in each process and for each set of flags, for nothing.

Run: python docs/upstream/torch_header_for_nothing.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

PROGRAM = """
import time
import torch
from torch._inductor import cpp_builder

calls, plain = [], cpp_builder.run_compile_cmd

def run(*words, **named):
    began = time.perf_counter()
    try:
        return plain(*words, **named)
    finally:
        calls.append(time.perf_counter() - began)

cpp_builder.run_compile_cmd = run
torch.compile(lambda x: torch.sin(x).exp() + x.sum())(torch.randn(1000))
print(f"torch {torch.__version__}: {len(calls)} calls of the compiler, {sum(calls):.2f} s")
"""


def main() -> None:
    """Compile, then load twice; the last two lines should say no call."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
        for _ in range(3):
            subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True)


if __name__ == "__main__":
    main()
