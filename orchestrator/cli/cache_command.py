"""`orchestrator cache …`: look into the durable graph cache, and keep it in order. Only `stop` needs Ray.

Exit codes: 0 all well; 1 an entry is missing or not authentic; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from orchestrator import paths
from orchestrator.cli import terminal
from orchestrator.errors import OrchestratorError, one_line

if TYPE_CHECKING:
    from orchestrator.graph_cache.store import Store

_DIGEST = re.compile(r"[0-9a-f]{10,64}")
_LONG = 120  # characters
console = terminal.console()


def arguments(cache: argparse.ArgumentParser) -> None:
    """Add this command's own arguments to its parser."""
    cache.add_argument("--store", help="folder or URI (default: graphs in ORCHESTRATOR_HOME)")
    cache.add_argument("--key-file", help="signing key (default: signing.key there)")
    commands = cache.add_subparsers(dest="command", required=True)
    commands.add_parser("ls", help="list entries")
    show = commands.add_parser("show", help="all that an entry says about itself, as JSON")
    explain = commands.add_parser("explain", help="which factors set an entry apart from another, or from the nearest")
    for command in (show, explain):
        command.add_argument("key", help="a key, or the beginning of one")
    explain.add_argument("other", nargs="?", help="another key (default: the nearest)")
    verify = commands.add_parser("verify", help="check signature and content of entries")
    evict = commands.add_parser("evict", help="delete entries; running clusters go on with what they hold in memory")
    for command in (verify, evict):
        command.add_argument("key", nargs="*", help="keys, or their beginnings")
    evict.add_argument("--all", action="store_true", help="delete everything")
    stop = commands.add_parser("stop", help="end what a Ray cluster keeps for later jobs: registries, the status board")
    stop.add_argument("--address", default="auto", help="Ray's, as cluster.address (default: %(default)s)")
    stop.add_argument("--namespace", default="orchestrator", help="as cluster.namespace (default: %(default)s)")
    commands.add_parser("warm", help="compile ahead of time; takes Hydra overrides, as jobs/warm.py")


def run(options: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code.

    Raises:
        OrchestratorError: the command line is wrong.
    """
    from orchestrator.graph_cache.store import Store

    if options.command == "stop":
        return _stop(options)
    if options.command not in _COMMANDS:
        raise OrchestratorError(
            f"`cache {options.command}` takes Hydra's overrides and nothing before it.",
            hint="For example: orchestrator cache warm model=tiny_llama graph_cache.store=s3://bucket/graphs",
        )
    options.store = paths.expanded(options.store or f"{paths.home()}/graphs")
    options.key_file = options.key_file or f"{paths.home()}/signing.key"
    return _COMMANDS[options.command](options, Store(options.store))


def _ls(options: argparse.Namespace, store: Store) -> int:
    table = Table(title=f"Compiled graphs in {paths.shown(options.store)}", title_justify="left")
    for column in ("key", "architecture", "vLLM", "parallel", "MiB", "gen", "published", "by"):
        table.add_column(column, justify="right" if column in ("MiB", "gen") else "left")
    entries = sorted(store.entries(), key=lambda e: float(e[1].get("created", 0.0)), reverse=True)
    for name, header in entries:
        factors = header.get("factors", {})
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(header.get("created", 0.0))))
        size = f"{int(header.get('bytes', 0)) / 2**20:.1f}"
        row = [name[:12], factors.get("architecture", ""), factors.get("vllm", ""), factors.get("parallel", "")]
        table.add_row(*row, size, str(header.get("generation", "")), when, str(header.get("publisher", "")))
    console.print(table if entries else f"Nothing in {paths.shown(options.store)} yet.")
    return 0


def _show(options: argparse.Namespace, store: Store) -> int:
    name, header = _one(store, options.key)
    console.print_json(json.dumps({"key": name, **header}))
    return 0


def _explain(options: argparse.Namespace, store: Store) -> int:
    from orchestrator.graph_cache import key

    name, header = _one(store, options.key)
    others = dict(store.entries())
    others.pop(name)
    if options.other:
        other = _one(store, options.other)[0]
    elif others:
        other = min(others, key=lambda k: len(key.differing(_factors(header), _factors(others[k]))))
    else:
        console.print(f"{name[:12]} is the only entry.")
        return 0
    ours, theirs = _factors(header), _factors(_one(store, other)[1])
    table = Table(title=f"Why {name[:12]} is not {other[:12]}", title_justify="left")
    for column in ("factor", name[:12], other[:12]):
        table.add_column(column, overflow="fold")
    for factor in key.differing(ours, theirs):
        table.add_row(factor, *_apart(ours.get(factor, "-"), theirs.get(factor, "-")))
    console.print(table)
    return 0


def _apart(one: str, other: str) -> tuple[str, str]:
    """What to show of two values: of long lists what only one has, of digests that they differ."""
    if _DIGEST.fullmatch(one) or _DIGEST.fullmatch(other):
        return one if one == "-" else "one content", other if other == "-" else "another"
    if min(len(one), len(other)) < _LONG:
        return one, other
    mine, theirs = one.split(" "), other.split(" ")
    return _without(mine, theirs), _without(theirs, mine)


def _without(words: list[str], others: list[str]) -> str:
    return " ".join(word for word in words if word not in others) or "nothing more"


def _verify(options: argparse.Namespace, store: Store) -> int:
    from orchestrator.graph_cache import bundle

    signing, bad = bundle.signing_key(options.key_file), 0
    limits = bundle.Limits(1 << 40, 1 << 30)
    for name in _names(store, options.key):
        try:
            found = store.load(name)
            if found is None:
                raise OrchestratorError("its bundle is missing")
            bundle.verify(memoryview(found.data), signing, name, limits)
            console.print(Text.assemble(f"{name[:12]} ", ("authentic", "green"), f", {len(found.data)} bytes"))
        except OrchestratorError as error:
            bad += 1
            console.print(Text.assemble(f"{name[:12]} ", ("REFUSED", "red"), f": {error}"))
    return 1 if bad else 0


def _evict(options: argparse.Namespace, store: Store) -> int:
    if not options.key and not options.all:
        raise OrchestratorError("evict needs keys, or --all.")
    for name in _names(store, options.key):
        store.delete(name)
        console.print(f"{name[:12]} deleted")
    return 0


def _stop(options: argparse.Namespace) -> int:
    import ray

    from orchestrator.cluster import singletons
    from orchestrator.graph_cache import registry_actor
    from orchestrator.serve import status_board
    from orchestrator.weights import directory, node

    try:
        ray.init(options.address, namespace=options.namespace, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        text = f"No Ray cluster at --address={options.address}: {one_line(error)}"
        raise OrchestratorError(text, hint="Start one with `ray start --head`, or set RAY_ADDRESS.") from error
    try:
        ours = (registry_actor.NAME, status_board.NAME, directory.NAME, node.NAME)
        names = singletons.end(options.namespace, ours)
    finally:
        ray.shutdown()
    console.print("\n".join(f"{name} ended" for name in names) or f"Nothing of ours in namespace {options.namespace}.")
    return 0


def _factors(header: dict[str, Any]) -> dict[str, str]:
    """A damaged entry has none."""
    return dict(header.get("factors", {}))


def _names(store: Store, wanted: Sequence[str]) -> list[str]:
    return [_one(store, key)[0] for key in wanted] if wanted else [name for name, _ in store.entries()]


def _one(store: Store, beginning: str) -> tuple[str, dict[str, Any]]:
    found = [(name, header) for name, header in store.entries() if name.startswith(beginning)]
    if len(found) != 1:
        problem = "no entry's key begins" if not found else f"{len(found)} keys begin"
        raise OrchestratorError(f"{problem} with {beginning!r}.", hint="See `orchestrator cache ls`.")
    return found[0]


_COMMANDS = {"ls": _ls, "show": _show, "explain": _explain, "verify": _verify, "evict": _evict}
