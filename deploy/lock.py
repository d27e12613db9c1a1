"""Write the lock files from pyproject.toml. Needs `uv`.

python deploy/lock.py                versions that are locked stay
python deploy/lock.py --upgrade      the newest versions that fit

requirements-cpu.lock and requirements-gpu.lock have what a run needs, requirements-dev.lock what tests and checks need
besides. `tool.orchestrator.lock` in pyproject.toml says what is left out, and why.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from install import pip_settings, said, uv_flags

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETTINGS = PROJECT["tool"]["orchestrator"]["lock"]
HEADER = """# {about}
# Made by `make lock`; install with `--no-deps`. What is left out, and why: pyproject.toml, tool.orchestrator.lock.
"""
ABOUT = {
    "cpu": "What a run on the CPU needs.",
    "gpu": "What a run on NVIDIA GPUs needs.",
    "dev": "What tests and checks need besides requirements-cpu.lock.",
}


def file_of(kind: str) -> Path:
    """The lock file of a kind: cpu, gpu or dev."""
    return ROOT / f"requirements-{kind}.lock"


# Of these "==" takes a CPU build as well (2.13.0+cpu), where pip's settings name a folder that has one.
_EXACTLY = ("torch", "torchvision", "torchaudio")


def pins(kind: str) -> dict[str, str]:
    """What a lock file pins: name -> version."""
    return _pins(file_of(kind).read_text())


def left_out(kind: str) -> dict[str, str]:
    """What a lock file leaves out: name -> reason."""
    return {**SETTINGS["left-out"]["all"], **SETTINGS["left-out"].get(kind, {})}


def resolve(kind: str, sources: Sequence[str], *more: str, out: Path | None = None) -> dict[str, str]:
    """Resolve for Python 3.11 on Linux; only metadata is fetched.

    Args:
        kind: whose packages are left out.
        sources: files with requirements.
        more: uv's own flags.
        out: the file to write; versions that it has are kept where they fit.

    Returns:
        name -> version.

    Raises:
        RuntimeError: there is no solution; the message is uv's.
    """
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        raise RuntimeError("uv cannot be had: install it, or run `make lock`.")
    command = [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-emit-index-url"]
    command += ["--no-emit-find-links", "--python-version", "3.11", "--python-platform", "x86_64-unknown-linux-gnu"]
    command += [word for name in left_out(kind) for word in ("--no-emit-package", name)]
    command += [*sources, *more, *(["-o", str(out)] if out else [])]
    settings = pip_settings(said([sys.executable, "-m", "pip", "config", "list"]))
    if kind == "gpu":  # a folder of wheels may have torch's CPU build, whose version counts as the newer one
        settings.pop("find-links", None)
    command += uv_flags(settings, os.environ)
    errors = []
    for where in ([], ["--torch-backend", "cpu"]) if kind != "gpu" else ([],):
        found = subprocess.run([*command, *where], cwd=ROOT, capture_output=True, text=True, check=False)
        if found.returncode == 0:
            break
        errors.append(found.stderr.strip())
    else:
        raise RuntimeError(f"requirements-{kind}.lock: " + "\n".join(errors))
    return _pins(out.read_text() if out else found.stdout)


def write(kind: str, *flags: str) -> None:
    """Resolve one kind and write its lock file."""
    extras = {"cpu": ["cpu"], "gpu": ["gpu"], "dev": ["cpu", "dev"]}[kind]
    constraints = ["-c", str(file_of("cpu"))] if kind == "dev" else []
    words = [word for extra in extras for word in ("--extra", extra)]
    found = resolve(kind, ["pyproject.toml"], *words, *constraints, *flags, out=file_of(kind))
    if kind == "dev":
        found = {name: version for name, version in found.items() if name not in pins("cpu")}
    else:
        found |= dict(pin.split("==") for pin in SETTINGS["alone"])
    same = {name: "===" if kind == "gpu" and name in _EXACTLY else "==" for name in found}
    lines = [f"{name}{same[name]}{version}" for name, version in sorted(found.items())]
    file_of(kind).write_text(HEADER.format(about=ABOUT[kind]) + "\n".join(lines) + "\n")


def _pins(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", " "))]
    return dict(re.split("={2,3}", line) for line in lines)


def main() -> int:
    """Write all three; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the lock files.")
    parser.add_argument("--upgrade", action="store_true", help="to the newest versions that fit")
    upgrade = ["--upgrade"] if parser.parse_args().upgrade else []
    for kind in ("cpu", "gpu", "dev"):
        try:
            write(kind, *upgrade)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(f"{file_of(kind).name}: {len(pins(kind))} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
