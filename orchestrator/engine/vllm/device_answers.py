"""While the zygote imports, another process finds out what modules want to know of the GPUs.

FlashInfer asks torch for the GPUs' capability when it is imported, and keeps the answer. The first such question
initialises CUDA, and a fork of an initialised CUDA is broken. So for as long as the imports run, torch's questions are
answered with what a process of its own, which has ended since, has read from the same GPUs by the same functions.

A module may keep an answer for good, and a fork may run on any GPU of the node. So the GPUs have to be the same but for
their addresses; else there is no zygote. Other calls still reach CUDA, and the zygote looks for that at the end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from orchestrator import compat
from orchestrator.compat import table
from orchestrator.engine.vllm import cuda_driver

PROGRAM = Path(__file__).with_name("read_devices.py")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_READ_S = 120.0  # imports torch on a slow disk, and CUDA of a node with many GPUs
_INSTEAD = "set cold_start.preload=false"
_ADDRESSES = {"uuid", "pci_bus_id", "pci_device_id", "pci_domain_id"}
_answering = False


class Devices:
    """The node's GPUs, as another process reads them; it is started at once, and waited for at the first question."""

    def __init__(self) -> None:
        self.refusal = ""  # why the answers cannot hold for every fork
        self._facts: list[dict[str, Any]] | None = None
        command = [sys.executable, "-P", str(PROGRAM)]
        self._reader = subprocess.Popen(
            command, env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def count(self) -> int:
        """How many there are."""
        return len(self._read())

    def available(self) -> bool:
        """Is there one?"""
        return self.count() > 0

    def current(self) -> int:
        """A process begins with the first one.

        Raises:
            RuntimeError: there is none; torch says the same.
        """
        if not self.available():
            raise RuntimeError("No CUDA GPUs are available")
        return 0

    def properties(self, device: Any = None) -> SimpleNamespace:
        """What torch says of one, under the same names.

        Raises:
            AssertionError: there is no such device; torch says the same.
            SystemExit: the devices are not the same, and whoever asks may keep the answer.
        """
        index = self.current() if device is None else device if isinstance(device, int) else _index(device)
        found = self._read()
        if not 0 <= index < len(found):
            raise AssertionError("Invalid device id")
        if differing := sorted({name for one in found for name in one if one[name] != found[0].get(name)} - _ADDRESSES):
            self._refuse(f"this node's GPUs differ ({', '.join(differing)}), and an import asks for the GPU's kind")
        return SimpleNamespace(**found[index])

    def capability(self, device: Any = None) -> tuple[int, int]:
        """Of one device."""
        found = self.properties(device)
        return found.major, found.minor

    def name(self, device: Any = None) -> str:
        """Of one device."""
        return str(self.properties(device).name)

    def close(self) -> None:
        """Leave no process behind, whether anybody asked or not."""
        self._reader.kill()
        self._reader.communicate()

    def _read(self) -> list[dict[str, Any]]:
        if self._facts is None:
            try:
                said, errors = self._reader.communicate(timeout=_READ_S)
                self._facts = json.loads(said.strip().rpartition("\n")[2])
            except subprocess.TimeoutExpired:
                self._refuse(f"a process that asks for the GPUs took more than {_READ_S:.0f} s")
            except ValueError:
                self._refuse(f"a process that asks for the GPUs failed: {errors.strip().rpartition(chr(10))[2]}")
        return self._facts or []

    def _refuse(self, why: str) -> None:
        self.refusal = self.refusal or f"{why}; {_INSTEAD}"
        raise SystemExit(self.refusal)  # no module should take it for an answer


@contextmanager
def imports_without_a_device() -> Iterator[None]:
    """Import in this, before forks: torch's questions about GPUs are answered without CUDA.

    One inside another is one. Where torch is not built for NVIDIA's GPUs nobody needs an answer.

    Raises:
        SystemExit: a fork would be broken, or might find another answer than the imports.
    """
    global _answering
    if _answering:
        yield
        return
    _answering = True
    try:
        with _answers() if torch.version.cuda else nullcontext():
            yield
    finally:
        _answering = False
    # A fork of an initialised CUDA is broken: better no zygote than a broken engine.
    if touched := "torch has initialised CUDA" if torch.cuda.is_initialized() else cuda_driver.initialised():
        raise SystemExit(f"importing vLLM touched a GPU ({touched}); {_INSTEAD}")


@contextmanager
def _answers() -> Iterator[None]:
    devices = Devices()
    answers: dict[table.Name, Callable[..., Any]] = {
        table.DEVICE_COUNT: devices.count,
        table.DEVICE_AVAILABLE: devices.available,
        table.DEVICE_CURRENT: devices.current,
        table.DEVICE_PROPERTIES: devices.properties,
        table.DEVICE_CAPABILITY: devices.capability,
        table.DEVICE_NAME: devices.name,
    }
    try:
        with ExitStack() as stack:
            for name, answer in answers.items():
                stack.enter_context(compat.answered(name, answer))
            yield
    except Exception as error:
        if devices.refusal:  # a module caught that, and another fails for it
            raise SystemExit(devices.refusal) from error
        raise
    finally:
        devices.close()
    if devices.refusal:
        raise SystemExit(devices.refusal)


def _index(device: Any) -> int:
    index: int | None = torch.device(device).index
    return index or 0


def _environment() -> dict[str, str]:
    """With the GPUs that forks may be given: those of the raylet. This process was started for one worker, with its."""
    environment = {name: value for name, value in os.environ.items() if name != _VISIBLE}
    with suppress(OSError):
        raylet = Path(f"/proc/{os.environ.get('RAY_RAYLET_PID') or 'none'}/environ").read_text(errors="replace")
        found = dict(line.partition("=")[::2] for line in raylet.split("\0"))
        environment |= {_VISIBLE: found[_VISIBLE]} if _VISIBLE in found else {}
    return environment
