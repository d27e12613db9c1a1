"""Which names that we lean on moved in another vLLM? Reads its sources; installs and imports nothing of it.

python -m orchestrator.compat.drift FOLDER     (make drift VLLM=FOLDER)

The folder holds `vllm/`, as an unpacked wheel or sdist and a checkout do. Looked at are the table of compat, the log
lines that we read, and what we and Ray Serve LLM (as it is installed here) import of vLLM; of torch/ and ray/, if they
are there, the table's names.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from orchestrator.compat import versions
from orchestrator.compat.lookup import wrong_parameters
from orchestrator.compat.sources import Sources, overloaded
from orchestrator.compat.table import LINES, MOVED, TABLE, Line, Name

_OURS = Path(__file__).resolve().parents[1]
_JOINT = re.compile(r"""["']\s*\n\s*f?["']""")  # of a string that goes on in the next line


def fault(name: Name, sources: Sources) -> str:
    """What is wrong with a name of the table there; "" where nothing is. The words are those of `lookup.fault`."""
    if sources.tree(name.module) is None:
        return f"{name.module} is gone"
    found = sources.find(name.module, name.attribute) if name.attribute else []
    if name.attribute and not found:
        return f"{name} is gone"
    if not found or (name.takes is None and not name.named):
        return ""
    faults = [wrong_parameters(name, sources.parameters(*one)) for one in found if not overloaded(one[1])]
    return "" if "" in faults else faults[0]


def moved(sources: Sources) -> list[str]:
    """A line for each name that is gone or takes other parameters, and where it may be now."""
    version = versions.written(sources.folder)

    def wanted(seam: Name | Line) -> bool:
        return not version or versions.numbers(version) >= seam.since

    lines = []
    for name in TABLE:
        if wanted(name) and sources.has(name.module) and (wrong := fault(name, sources)):
            package, first = name.module.partition(".")[0], name.attribute.partition(".")[0]
            there = sources.elsewhere(package, first) if not sources.find(name.module, first) else []
            hint = f" (now in {', '.join(there[:3])}?)" if there else ""
            lines += [f"{feature.name} off: {wrong}{hint}" for feature in name.features]
    unsaid = {line for line in LINES if wanted(line)}
    for _, text in sources.texts("vllm") if sources.has("vllm") else ():
        text = _JOINT.sub("", text)
        unsaid = {line for line in unsaid if line.text not in text}
        if not unsaid:
            break
    lines += [f"{feature.name} off: vLLM does not log {line}" for line in unsaid for feature in line.features]
    for file in _importers():
        where = "/".join(file.parts[-3:])
        lines += [f"{where} imports {name}, which is gone" for name in _gone(file, sources)]
    return lines


def _importers() -> list[Path]:
    """Our modules, and those of Ray that our service runs."""
    ray = importlib.util.find_spec("ray")
    serve = [Path(place) / "llm" / "_internal" / "serve" for place in (ray and ray.submodule_search_locations) or ()]
    folders = [_OURS, *(folder / part for folder in serve for part in ("core", "engines"))]
    return [file for folder in folders for file in sorted(folder.rglob("*.py"))]


def _gone(file: Path, sources: Sources) -> Iterator[str]:
    """What a module imports of vLLM, or reads from what it imports, and is gone."""
    tree = ast.parse(file.read_text())
    bound: list[tuple[str, str, str]] = []  # name in the file, module, attribute
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            bound += [(alias.name, alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            bound += [(alias.asname or alias.name, node.module, alias.name) for alias in node.names]
    bound = [one for one in bound if one[1].partition(".")[0] == "vllm"]
    names = {name: (module, attribute) for name, module, attribute in bound}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (path := ast.unparse(node.value)) in names:
            module, attribute = names[path]
            kinds = [type(found) for _, found in sources.find(module, attribute)] if attribute else [ast.Module]
            if {ast.Module, ast.ClassDef} & {*kinds}:
                names[f"{path}.{node.attr}"] = module, f"{attribute}.{node.attr}".lstrip(".")
    for module, attribute in dict.fromkeys([*(one[1:] for one in bound), *names.values()]):
        there = module if sources.tree(module) else MOVED.get(module, module)
        if sources.tree(there) is None or (attribute and not sources.find(there, attribute)):
            yield f"{module}.{attribute}".rstrip(".")


def main() -> int:
    """Print what moved; returns 1 if anything did, 2 if there is no vLLM in the folder."""
    folder = Path(sys.argv[1]) if len(sys.argv) == 2 else None
    sources = Sources(folder) if folder else None
    if sources is None or not sources.has("vllm"):
        where = f"{folder} has no vllm/__init__.py" if folder else "one folder is wanted"
        print(f"error: {where}; name the folder of an unpacked vLLM: make drift VLLM=FOLDER", file=sys.stderr)
        return 2
    lines = moved(sources)
    looked = sum(sources.has(name.module) for name in TABLE)
    whole = f"{looked} names, {len(LINES)} log lines, and imports"
    print(
        *lines,
        f"vLLM {versions.written(sources.folder) or 'of no known version'}: {len(lines)} moved, of {whole}.",
        sep="\n",
    )
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
