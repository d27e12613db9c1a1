"""vLLM's Ray executor on CPUs, for tests: a platform plugin (vLLM's own kind of plugin) that gives them a name in Ray.

vLLM refuses CPUs there for one reason, `Platform.ray_device_key` is "" for them (`initialize_ray_cluster`). Everything
else of the executor is the same: a rank is a Ray actor in a bundle with a GPU, which a test's nodes say they have.
"""

from __future__ import annotations

from pathlib import Path

_FILES = {
    "rayed_cpu/__init__.py": 'def register():\n    return "rayed_cpu.platform.RayedCpu"\n',
    "rayed_cpu/platform.py": "from vllm.platforms.cpu import CpuPlatform\n\n\n"
    'class RayedCpu(CpuPlatform):\n    ray_device_key = "GPU"\n',
    "rayed_cpu-0.dist-info/METADATA": "Metadata-Version: 2.1\nName: rayed-cpu\nVersion: 0\n",
    "rayed_cpu-0.dist-info/entry_points.txt": "[vllm.platform_plugins]\nrayed_cpu = rayed_cpu:register\n",
}


def write(folder: Path) -> str:
    """Write the plugin below a folder, which has to be on PYTHONPATH then; returns it."""
    for name, text in _FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return str(folder)
