"""Every name in the lists of tests is a test: a stale one would switch something off without a word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import parts, whole

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", sorted({*whole.NAMES, *parts.FIRST, *parts.THEN}))
def test_a_name_is_a_test(name: str) -> None:
    file, _, test = name.partition("::")
    text = (TESTS / file).read_text()
    function, _, parameters = test.removesuffix("]").partition("[")
    assert not function or re.search(rf"^(async )?def {function}\(", text, re.M)
    assert all(f'"{word}"' in text for word in parameters.split("-")[:1] if word)


def test_a_long_one_is_known_by_its_file_its_name_and_its_parameters() -> None:
    assert whole.is_long("engine/test_warm.py::test_anything")
    assert whole.is_long("engine/test_modes.py::test_layers_that_share_a_kv_cache")
    assert not whole.is_long(parts.FIRST[0])


def test_a_report_is_read_and_counted(tmp_path: Path) -> None:
    cases = (
        '<testcase classname="tests.unit.test_a" name="one" time="1.5"/>'
        '<testcase classname="tests.unit.test_a" name="two" time="0.5"><failure/></testcase>'
        '<testcase classname="tests.unit.test_a" name="three" time="0"><skipped/></testcase>'
    )
    (tmp_path / "r.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    found = parts.read(tmp_path / "r.xml")
    assert found[0] == parts.Test("unit/test_a::one", "passed", 1.5)
    assert parts.count(found) == "1 passed, 1 failed, 1 skipped"
    assert parts.read(tmp_path / "none.xml") == []
