"""Run the tests part by part, and say at the end how long each part took and which tests were slowest.

python -m tests.parts                   what `make test` runs
python -m tests.parts --all             tests/whole.py's as well
python -m tests.parts --only unit       one part
python -m tests.parts --budget-s 4500   begin no engine test later than this; those not reached are listed as NOT RUN

Words that it does not know go to pytest: python -m tests.parts --only ray -k registry
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from tests import whole

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "tests"
CORES = len(os.sched_getaffinity(0))
# Engines come last, two at a time: a start has long stretches on one core.
PARTS = {
    "unit": ["tests/unit", "-n", str(min(CORES, 8)), "--dist", "loadfile"],
    "commands": ["tests/commands", "-n", str(min(CORES, 8)), "--dist", "worksteal"],
    "simulation": ["tests/simulation", "-n", str(CORES), "--dist", "worksteal"],
    "ray": ["tests/ray", "-n", str(min(CORES, 4)), "--dist", "loadfile"],
    "engine": ["tests/engine", "tests/gpu", "-n", str(min(CORES, 2)), "--dist", "loadfile"],
}
NO_TESTS = 5  # pytest's exit code


@dataclass(frozen=True)
class Test:
    """A test that ran: its name, how it ended, and its seconds with set-up and tear-down."""

    name: str
    outcome: str
    seconds: float


def main() -> int:
    """Run the parts; returns the exit code."""
    parser = argparse.ArgumentParser(description="Run the tests part by part.")
    parser.add_argument("--all", action="store_true", help="with the long ones")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--budget-s", type=float, default=float(os.environ.get("TEST_BUDGET_S", "inf")))
    options, more = parser.parse_known_args()
    began = time.time()
    OUT.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "ORCHESTRATOR_TEST_UNTIL": str(began + options.budget_s)}
    if options.all:
        environment["ORCHESTRATOR_TEST_ALL"] = "1"
    failed, tests, lines, unseen = [], [], [], 0
    for part in [options.only] if options.only else PARTS:
        report, not_run = OUT / f"{part}.xml", OUT / f"{part}.not_run"
        for old in (report, not_run):
            old.unlink(missing_ok=True)
        print(f"== {part} ==", flush=True)
        start = time.time()
        words = PARTS[part]
        if any(".py" in word for word in more):  # a file that is named stands alone
            words = [word for word in words if not word.startswith("tests/")]
        command = [sys.executable, "-m", "pytest", "-q", *words, f"--junitxml={report}", *more]
        code = subprocess.run(
            command, cwd=ROOT, env={**environment, "ORCHESTRATOR_TEST_NOT_RUN": str(not_run)}
        ).returncode
        seconds = time.time() - start
        found = read(report)
        tests += found
        missed = not_run.read_text().splitlines() if not_run.is_file() else []
        lines.append(f"{part:8} {seconds:7.0f} s   {count(found)}" + (f", {len(missed)} NOT RUN" if missed else ""))
        lines += [f"         NOT RUN, the time was used up: {name}" for name in missed]
        unseen += len(missed)
        if code not in (0, NO_TESTS) or (code == NO_TESTS and not more):
            failed.append(part)
        elif code == 0 and not found:
            failed.append(f"{part}: no report")
        if any(name in FIRST for name in missed):
            failed.append("engine: not even the first three tests were reached")
    print(f"\n== parts, {time.time() - began:.0f} s ==\n" + "\n".join(lines))
    print("\n== ten slowest tests ==")
    for test in sorted(tests, key=lambda t: -t.seconds)[:10]:
        print(f"{test.seconds:7.1f} s   {test.name}")
    if failed:
        print(f"\nFAILED: {', '.join(failed)}")
    if not options.all:
        print(f"\nLeft to make test-all: {len(whole.NAMES)} tests or files of tests (tests/whole.py)")
    if unseen:
        print(f"NOT RUN, the time was used up: {unseen}")
    print(f"\n{count(tests)}")
    return 1 if failed else 0


def read(report: Path) -> list[Test]:
    """The tests in a JUnit file of pytest's."""
    if not report.is_file():
        return []
    found = []
    for case in ET.parse(report).iter("testcase"):
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        name = f"{case.get('classname', '').removeprefix('tests.').replace('.', '/')}::{case.get('name')}"
        found.append(Test(name, outcome, float(case.get("time", 0))))
    return found


def count(tests: list[Test]) -> str:
    """As pytest says it, with nothing left out."""
    return ", ".join(f"{sum(t.outcome == word for t in tests)} {word}" for word in ("passed", "failed", "skipped"))


# In order of value: what a project that starts vLLM replicas fast has to show before anything else.
FIRST = (
    "engine/test_modes.py::test_tokens_and_kv_bytes_are_stocks_cold_and_warm[tiny_llama-3]",
    "engine/test_modes.py::test_tokens_and_kv_bytes_are_stocks_cold_and_warm[tiny_deepseek_v2-4]",
    "engine/test_sharing.py::test_the_second_replica_loads_and_says_the_same",
)
THEN = ("engine/test_serve.py", "engine/test_vllm_engine.py")

if __name__ == "__main__":
    sys.exit(main())
