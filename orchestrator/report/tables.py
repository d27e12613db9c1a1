"""Tables for a terminal, and what a sweep's cells are compared by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from orchestrator.timeline import COMPILE_PHASES
from orchestrator.timeline.colours import COLOURS


def comparison_row(cell: dict[str, Any]) -> dict[str, Any]:
    """What the comparison says of one cell."""
    data = cell["data"]
    config = data.get("config", {})
    name = " ".join(o for o in cell["overrides"]) or config.get("model", {}).get("name", "")
    row = {"name": name, "folder": cell["folder"], **{k: v for k, v in cell["result"].items() if k != "report"}}
    if "replicas" in data and "first_token_s" in row:  # it ended well, or told its figures before it failed
        row["model"] = config["model"]
        row["stock"] = not config["fast_cold_start"]
        row["tokens"] = [a["token_ids"] for a in next(iter(data["answers"].values()))]
        row["compile_s"] = [
            round(sum(phase_lengths(r).get(name, 0.0) for name in COMPILE_PHASES), 1) for r in data["replicas"]
        ]
        row["outcomes"] = [r["receipt"]["outcome"] for r in data["replicas"]]
    return row


def compare_tokens(rows: list[dict[str, Any]]) -> None:
    """Set each cell against stock vLLM's cell of the same model: the same tokens, and how much sooner."""
    for row in rows:
        stock = next((r for r in rows if r.get("stock") and r.get("model") == row.get("model")), None)
        if stock is None or "tokens" not in row:
            continue
        row["tokens_as_stock"] = row["tokens"] == stock["tokens"]
        cold = stock["first_token_s"]["first"]
        row["speedup"] = {name: round(cold / seconds, 2) for name, seconds in row["first_token_s"].items()}
    for row in rows:
        row.pop("tokens", None)
        row.pop("model", None)


def timeline_table(data: dict[str, Any]) -> Table:
    """Phases side by side, one column a replica."""
    replicas = data["replicas"]
    table = Table(title="Start-up, seconds", title_justify="left", show_footer=True)
    table.add_column("phase", footer="first token after")
    for r in replicas:
        table.add_column(f"{r['replica']} ({r['receipt']['outcome']})", f"{r['first_token_s']:.1f}", justify="right")
    table.add_column("", "", no_wrap=True)
    lengths = [phase_lengths(r) for r in replicas]
    names = [name for name in COLOURS if any(name in found for found in lengths)]
    names += [name for found in lengths for name in found if name not in names]
    longest = max((s for found in lengths for s in found.values()), default=1.0)
    for name in dict.fromkeys(names):
        cells = [f"{found[name]:.2f}" if name in found else "-" for found in lengths]
        bars = "\n".join("█" * max(1, round(24 * found[name] / longest)) for found in lengths if name in found)
        table.add_row(name, *cells, Text(bars.splitlines()[0] if bars else "", "dim"))
    if len(replicas) > 1:
        ratio = replicas[0]["first_token_s"] / replicas[1]["first_token_s"]
        lines = [f"{replicas[1]['replica']} answered {ratio:.1f} times sooner than {replicas[0]['replica']}."]
    else:
        lines = []
    lines += [f"{r['replica']}: {line}" for r in replicas for line in came_lines(r)]
    lines += [f"{r['replica']}: {r['receipt']['reason']}" for r in replicas if r["receipt"].get("reason")]
    lines += [f"{r['replica']}: {note}" for r in replicas for note in r["receipt"].get("notes", ())]
    table.caption = Text("\n".join(lines)) if lines else None
    return table


def came_lines(replica: Mapping[str, Any]) -> list[str]:
    """What a replica says of its model's files, its kernels and its KV cache; nothing where all is as usual."""
    receipt = replica["receipt"]
    files = [model_line(replica["model_files"])] if replica.get("model_files") else []
    return [*files, *kernel_lines(receipt.get("kernels") or {}), *kv_lines(receipt, replica.get("engine", {}))]


def kv_lines(receipt: Mapping[str, Any], engine: Mapping[str, Any]) -> list[str]:
    """How much less room a KV cache has than that of the replica that compiled, and why (vLLM issue 54122)."""
    here, there = engine.get("kv_tokens", 0), receipt.get("kv_tokens", 0)
    if not here or not there or here == there:
        return []
    why = engine.get("no_plan") or "vLLM measures free memory at each start; engine.kv_cache_gib sets the size"
    return [f"room for {here} KV-cache tokens, {here - there:+d} to the replica that compiled ({why})"]


def model_line(brought: Mapping[str, Any]) -> str:
    """How a model's files came to a node."""
    named = {"from its origin": "origin_bytes", "from other nodes": "peer_bytes", "on its disk": "disk_bytes"}
    parts = [f"{brought[field] / 1e6:.1f} MB {where}" for where, field in named.items() if brought[field]]
    refused = [f"refused: {what}" for what in brought["refused"]]
    return "; ".join([f"the model in {brought['seconds']:.1f} s, {', '.join(parts) or 'empty'}", *refused])


def kernel_lines(kernels: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How a start came by its kernels, tuning results and plans, a line for each kind; none on CPUs."""
    return [
        f"{name}: {found.get('brought', 0)} came with the graphs, {found.get('made', 0)} made here"
        + (f" ({found['why']})" if found.get("why") else "")
        for name, found in kernels.items()
    ]


def answers_table(data: dict[str, Any]) -> Table:
    """Prompts and answers, and whether all replicas agree."""
    agree = "the same tokens from every replica" if data["same_tokens"] else "REPLICAS DISAGREE"
    table = Table(title=f"Answers ({agree})", title_justify="left")
    table.add_column("prompt")
    table.add_column("answer")
    for answer in next(iter(data["answers"].values()), []):
        table.add_row(answer["prompt"], " ".join(answer["text"].split()))
    return table


def sweep_table(rows: Sequence[dict[str, Any]], forecast: Mapping[str, Any] | None = None) -> Table:
    """One line a cell; with what was expected of each start, where there is a forecast."""
    table = Table(title="Sweep", title_justify="left")
    for column in (
        "cell",
        "first token s",
        "receipts",
        "compile or load s",
        "tokens as stock",
        "sooner than stock cold",
    ):
        table.add_column(column)
    if forecast:
        table.add_column("expected by the other models s")
        table.caption = (
            f"Of {forecast['starts']} starts {forecast['within_10_percent']} took what was expected, within 10 %; "
            f"{forecast['within_interval']} ended within the interval."
        )
    for row in rows:
        if row.get("error"):
            table.add_row(row["name"], Text(row["error"], "red"))
            continue
        sooner = " / ".join(f"{x:.1f}x" for x in row.get("speedup", {}).values())
        as_stock = row.get("tokens_as_stock")
        same = Text("NO", "red") if as_stock is False else "yes" if as_stock else "-"
        first = " / ".join(f"{x:.1f}" for x in row["first_token_s"].values())
        compiled = " / ".join(f"{x:.1f}" for x in row.get("compile_s", ()))
        expected = " / ".join(f"{e['seconds']:.1f} ({100 * e['off']:+.0f} %)" for e in row.get("expected", ()))
        more = [expected or "-"] if forecast else []
        table.add_row(row["name"], first, " / ".join(row.get("outcomes", ())), compiled, same, sooner or "-", *more)
    return table


def phase_lengths(replica: dict[str, Any]) -> dict[str, float]:
    """Seconds of each phase of a replica's start."""
    found: dict[str, float] = {}
    for phase in replica["phases"]:
        found[phase["name"]] = found.get(phase["name"], 0.0) + phase["seconds"]
    return found
