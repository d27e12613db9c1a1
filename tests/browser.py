"""A real headless Chromium, where the machine has one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (1000, 420)  # a desk, and a phone
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def check_layout(page: Any) -> None:
    """Nothing sticks out sideways but what scrolls in its own box, text can be read, bars have a width."""
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    sizes = page.evaluate(
        "[...document.querySelectorAll('p, td, th, div, code')].map(e => getComputedStyle(e).fontSize)"
    )
    assert min(float(size.removesuffix("px")) for size in sizes) >= 11
    bars = page.evaluate("[...document.querySelectorAll('.bar')].map(e => [e.clientWidth, e.scrollWidth])")
    assert bars
    assert all(shown > 100 for shown, _ in bars)
    assert all(inside <= shown + 2 for shown, inside in bars), "bars are longer than their box"
