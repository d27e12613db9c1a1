"""How a job tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str, str], None]  # (who, what happens)
Bar = Callable[[int, int], None]  # (done, of)
