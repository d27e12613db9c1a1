"""A package's sources, read without an import: what a dotted name stands for, and with which parameters."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


class Sources:
    """The modules of the packages in a folder, as syntax trees. A definition is `(module, node)`; see `find`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._trees: dict[str, ast.Module | None] = {}
        self._following: list[tuple[str, str]] = []

    def has(self, module: str) -> bool:
        """Is the package of a module here?"""
        return (self.folder / module.partition(".")[0] / "__init__.py").is_file()

    def tree(self, module: str) -> ast.Module | None:
        """A module's syntax tree; None where there is no such module."""
        if module not in self._trees:
            path = self.folder.joinpath(*module.split("."))
            files = [file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()]
            self._trees[module] = ast.parse(files[0].read_text(errors="replace")) if files else None
        return self._trees[module]

    def find(self, module: str, attribute: str) -> list[tuple[str, ast.AST]]:
        """All definitions that a dotted name may stand for; none where it is gone.

        An import of a package that is not here stands for itself, as what cannot be followed.
        """
        first, *rest = attribute.split(".")
        found = self._of_module(module, first)
        for part in rest:
            found = [one for home, node in found for one in self._part(home, node, part)]
        return found

    def parameters(self, home: str, node: ast.AST) -> list[str] | None:
        """The names of a function's parameters, or of a class's; None where they cannot be read."""
        if isinstance(node, ast.ClassDef):
            made = [self.parameters(*one) for one in self._of_class(home, node, "__init__")]
            return next((names[1:] for names in made if names), None)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
            return next(
                (self.parameters(*one) for one in self._of_module(home, node.value.id) if one[1] is not node), None
            )
        if not isinstance(node, _FUNCTION):
            return None
        names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        return names[1:] if "classmethod" in map(ast.unparse, node.decorator_list) else names

    def elsewhere(self, package: str, name: str) -> list[str]:
        """The modules of a package in which a function or a class of this name is defined."""
        pattern = re.compile(rf"^(?:async )?(?:def|class) {re.escape(name)}\b", re.MULTILINE)
        files = [file for file, text in self.texts(package) if pattern.search(text)]
        return [".".join(file.relative_to(self.folder).with_suffix("").parts) for file in files]

    def texts(self, package: str) -> Iterator[tuple[Path, str]]:
        """All sources of a package."""
        for file in sorted((self.folder / package).rglob("*.py")):
            yield file, file.read_text(errors="replace")

    def _of_module(self, module: str, name: str) -> list[tuple[str, ast.AST]]:
        if (module, name) in self._following:  # a package that imports its own part
            return []
        self._following.append((module, name))
        try:
            return list(self._definitions(module, name))
        finally:
            self._following.pop()

    def _definitions(self, module: str, name: str) -> Iterator[tuple[str, ast.AST]]:
        found, stars = False, []
        for node in _statements(self.tree(module)):
            if isinstance(node, ast.ImportFrom):
                source = self._absolute(module, node)
                stars += [source for alias in node.names if alias.name == "*"]
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        found = True
                        yield from self.find(source, alias.name) if self.has(source) else [(module, node)]
            elif name in _bound(node):
                found = True
                yield module, node
        if inner := self.tree(f"{module}.{name}"):
            found = True
            yield f"{module}.{name}", inner
        for source in () if found else stars:
            yield from self._of_module(source, name)

    def _part(self, home: str, node: ast.AST, name: str) -> list[tuple[str, ast.AST]]:
        if isinstance(node, ast.Module):
            return self._of_module(home, name)
        if isinstance(node, ast.ClassDef):
            return self._of_class(home, node, name)
        return [(home, node)] if isinstance(node, (ast.Import, ast.ImportFrom)) else []

    def _of_class(self, home: str, node: ast.ClassDef, name: str) -> list[tuple[str, ast.AST]]:
        """From the class, from `__init__`, or from a base."""
        body = list(_statements(node))
        own = [(home, part) for part in body if name in _bound(part)]
        inits = [part for part in body if isinstance(part, _FUNCTION) and part.name == "__init__"]
        own += [(home, part) for init in inits for part in ast.walk(init) if name in _set_on_self(part)]
        if not own and name == "__init__" and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            own = [(home, _init_of_fields(body))]
        if own:
            return own
        bases = [base for base in map(ast.unparse, node.bases) if re.fullmatch(r"[\w.]+", base)]
        found = [one for base in bases for one in self.find(home, base) if one[1] is not node]
        return [one for at, base in found for one in self._part(at, base, name)]

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        package = self.folder.joinpath(*parts, "__init__.py").is_file()
        return ".".join([*parts[: len(parts) - node.level + package], *filter(None, [node.module])])


def _statements(node: ast.AST | None) -> Iterator[ast.AST]:
    """A body's statements, also those under a condition."""
    for part in ast.iter_child_nodes(node) if node else ():
        if isinstance(part, (ast.If, ast.Try, ast.With, ast.ExceptHandler)):
            yield from _statements(part)
        elif isinstance(part, ast.stmt):
            yield part


def _bound(node: ast.AST) -> set[str]:
    """The names that a statement defines."""
    if isinstance(node, (*_FUNCTION, ast.ClassDef)):
        return {node.name}
    if isinstance(node, ast.Import):
        return {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}


def _init_of_fields(body: list[ast.AST]) -> ast.AST:
    """The `__init__` that a dataclass gets for the fields of its own."""
    fields = [part.target.id for part in body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)]
    return ast.parse(f"def __init__({', '.join(['self', *fields])}): ...").body[0]


def _set_on_self(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
        return {node.attr}
    return set()


def overloaded(node: ast.AST) -> bool:
    """Is this only one of a function's signatures, for type checkers?"""
    return isinstance(node, _FUNCTION) and any(ast.unparse(d).endswith("overload") for d in node.decorator_list)
