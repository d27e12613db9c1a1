"""Errors keep their fields on the way through Ray."""

from __future__ import annotations

import pickle

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
