"""The lock files are whole: what is pinned is installed, and needs nothing but what is pinned or left out."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "deploy"))
import lock

KINDS = ("cpu", "dev")
PINS = {canonicalize_name(name): version for kind in KINDS for name, version in lock.pins(kind).items()}
LEFT_OUT = {canonicalize_name(name): reason for kind in KINDS for name, reason in lock.left_out(kind).items()}
ALONE = {canonicalize_name(pin.partition("==")[0]) for pin in lock.SETTINGS["alone"]}
PROJECT = "orchestrator"


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def wanted(name: str, extras: frozenset[str]) -> list[Requirement]:
    """What an installed package asks for here, with these extras of it."""
    found = [Requirement(text) for text in metadata.requires(name) or ()]
    chosen = [{"extra": extra} for extra in ("", *extras)]
    return [r for r in found if r.marker is None or any(r.marker.evaluate(choice) for choice in chosen)]


def unmet(pins: dict[str, str], left_out: dict[str, str]) -> list[str]:
    """Requirements of the project and of all pinned packages that no pin meets and that are not left out."""
    todo = [(PROJECT, frozenset(KINDS)), *((name, frozenset()) for name in pins)]
    seen, wrong = set(todo), []
    while todo:
        name, extras = todo.pop()
        if name in ALONE or installed(name) is None:
            continue
        for requirement in wanted(name, extras):
            needed = canonicalize_name(requirement.name)
            if needed in left_out or needed == PROJECT:
                continue
            if needed not in pins or not requirement.specifier.contains(pins[needed], prereleases=True):
                wrong.append(f"{name} wants {requirement}, and {pins.get(needed, 'nothing')} is pinned")
            elif (more := (needed, frozenset(requirement.extras))) not in seen:
                seen.add(more)
                todo.append(more)
    return wrong


def test_gpus_get_no_build_for_a_cpu() -> None:
    assert [name for name, version in lock.pins("gpu").items() if "cpu" in version] == []


def test_every_requirement_is_pinned_or_left_out_with_a_reason() -> None:
    assert unmet(PINS, LEFT_OUT) == []


@pytest.mark.parametrize("name", ["psutil", "click", "pytest", "py-partiql-parser"])  # the last one by extras alone
def test_a_missing_pin_would_be_noticed(name: str) -> None:
    assert name in PINS
    assert any(f"wants {name}" in line for line in unmet({n: v for n, v in PINS.items() if n != name}, LEFT_OUT))


def test_what_is_pinned_is_installed() -> None:
    assert len(PINS) > 100
    assert {name: installed(name) for name in PINS} == PINS


@pytest.mark.parametrize("kind", ["cpu", "gpu", "dev"])
def test_what_is_left_out_has_a_reason_and_no_pin(kind: str) -> None:
    left_out = {canonicalize_name(name): reason for name, reason in lock.left_out(kind).items()}
    assert left_out
    assert all(reason.strip() for reason in left_out.values())
    assert not left_out.keys() & {canonicalize_name(name) for name in lock.pins(kind)}
    assert not LEFT_OUT.keys() & PINS.keys()


def test_a_gpu_environment_gets_no_cpu_build() -> None:
    """`torch==2.13.0` is met by 2.13.0+cpu, which a folder of CPU wheels offers."""
    lines = lock.file_of("gpu").read_text().splitlines()
    (torch,) = [line for line in lines if line.startswith("torch=")]
    assert not Requirement(torch).specifier.contains(f"{lock.pins('gpu')['torch']}+cpu")
    assert Requirement(torch).specifier.contains(lock.pins("gpu")["torch"])
