"""A simulator that finds nothing proves nothing: it has to find each of these faults, which were here or could be."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.simulation.faults import FAULTS
from tests.simulation.scenario import Graphs
from tests.simulation.test_simulation import SEEDS, play_all


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, graphs: Graphs) -> None:
    with ExitStack() as stack:
        for patch in FAULTS[fault]():
            stack.enter_context(patch)
        with pytest.raises(AssertionError, match=r"^seed \d+: "):
            play_all(range(SEEDS), graphs)
