"""Errors keep their fields on the way through Ray."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from orchestrator import errors


@pytest.mark.parametrize(
    "kind", [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.OrchestratorError)]
)
def test_every_error_survives_pickling(kind: type[errors.OrchestratorError]) -> None:
    back = pickle.loads(pickle.dumps(kind("it broke.", hint="Mend it.", replica="replica-1", phase="start")))
    assert type(back) is kind
    assert (back.message, back.hint, back.replica, back.phase) == ("it broke.", "Mend it.", "replica-1", "start")
    assert str(back) == "it broke. Hint: Mend it."
    with pytest.raises(AttributeError):
        _ = back.nothing


def test_every_error_has_an_entry_in_the_troubleshooting_page() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md").read_text()
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.OrchestratorError)
    ]
    assert len(kinds) > 5
    assert not [
        kind.__name__ for kind in kinds if kind is not errors.OrchestratorError and f"`{kind.__name__}`" not in page
    ]
