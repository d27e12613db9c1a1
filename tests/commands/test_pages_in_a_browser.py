"""Reports as a person sees them."""

from __future__ import annotations

from pathlib import Path

from orchestrator.report import page
from tests.browser import WIDTHS, browser, check_layout, needs_browser
from tests.unit.test_reports import MACHINE, bench


def run(name: str, first: float) -> dict:
    phases = [
        {"name": "process", "start": 0.0, "seconds": first / 4},
        {"name": "inductor", "start": first / 4, "seconds": 3 * first / 4},
    ]
    receipt = {"outcome": "compiled", "reason": "a reason that is rather long " * 5}
    answer = {"prompt": "What is " + "x" * 80, "text": "An answer. " * 30}
    return {
        "config": {"model": {"name": name}, "fast_cold_start": True, "cold_start": {"kv_update": "layer_index"}},
        "replicas": [{"replica": "replica-0", "first_token_s": first, "receipt": receipt, "phases": phases}],
        "same_tokens": True, "answers": {"replica-0": [answer]}, "machine": MACHINE,
        "command": "python jobs/run.py " + "model.tiny.num_hidden_layers=16 " * 6,
    }  # fmt: skip


@needs_browser
def test_reports_can_be_read_on_a_desk_and_on_a_phone(tmp_path: Path) -> None:
    row = {"name": "model=a fast_cold_start=true", "first_token_s": {"first": 9.0, "second": 3.0}, "compile_s": [4.0],
           "outcomes": ["compiled", "hit"], "tokens_per_s": 50.0, "ttft_s": 0.1, "tokens_as_stock": True}  # fmt: skip
    pages = {
        "sweep": page.html("Sweep", [run("a", 9.0), run("b", 90.0)], [row, {**row, "name": "other"}]),
        "bench": page.html("bench=depth", [], benches=[bench(2.0)]).replace(
            "</body>", page.plots.bars([("a", 1.0)]) + "</body>"
        ),
    }
    with browser() as chromium:
        for name, text in pages.items():
            (tmp_path / f"{name}.html").write_text(text)
            for width in WIDTHS:
                shown = chromium.new_page(viewport={"width": width, "height": 900})
                wrong: list[str] = []
                shown.on("console", lambda message, wrong=wrong: wrong.append(message.text))
                shown.on(
                    "request", lambda r, wrong=wrong: wrong.append(r.url) if not r.url.startswith("file:") else None
                )
                shown.goto(f"file://{tmp_path}/{name}.html")
                check_layout(shown)
                assert wrong == []  # it stands alone
            if name == "bench":
                box = shown.locator("svg").bounding_box()
                assert box["width"] > 300
                assert box["x"] + box["width"] <= 420
