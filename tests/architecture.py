"""Measure the package: its size, who imports whom, class names that stand twice, comments.

`python tests/architecture.py [--json]` prints a line for each measure, and what breaks a rule. It
exits with 1 where a measure marked with `•` is beyond its limit.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parent.parent
PACKAGE = "batchnorm_tool"


@dataclass(frozen=True)
class Limit:
    """How far a measure may go; one that `must` hold fails the script where it does not."""

    key: str
    meaning: str
    value: float
    least: bool = False
    must: bool = False

    def holds(self, measured: float) -> bool:
        """Tell whether a measured value keeps the limit."""
        return measured >= self.value if self.least else measured <= self.value


LIMITS = (
    Limit("lines", "lines", 38_500),
    Limit("files", "files", 170),
    Limit("top", "files and packages at the top level", 25),
    Limit("against", "imports against the rules", 0, must=True),
    Limit("circles", "circles of files, or of packages, that import each other", 0, must=True),
    Limit("twice", "class names that two files define", 0, must=True),
    Limit("any", "lines with `dict[str, Any]` or `Mapping[str, Any]`", 150, must=True),
    Limit("imports", "lines of import statements in a hundred lines", 6),
    Limit("comments", "lines of comment to a hundred of code", 3, least=True),
    Limit("readme", "lines in README.md", 300),
)

# An import runs when its file is imported, for type checkers only, or when a function is called.
When = Literal["start", "typing", "call"]


@dataclass(frozen=True)
class Rule:
    """What the files of `who`, save those of `but`, do not import; `*` is every file."""

    who: tuple[str, ...]
    what: tuple[str, ...]
    but: tuple[str, ...] = ()
    when: tuple[When, ...] = ("start", "typing", "call")

    def forbids(self, module: str, found: Import) -> bool:
        """Tell whether a module may not import what it imports."""
        return (
            found.when in self.when
            and within(found.name, self.what)
            and within(module, self.who)
            and not within(module, self.but)
        )


def never(who: str, what: str) -> Rule:
    """Say that no file of some packages imports others; blanks stand between the names."""
    return Rule(tuple(who.split()), tuple(what.split()))


def only(who: str, what: str) -> Rule:
    """Say that nobody but some packages imports others."""
    return Rule(("*",), tuple(what.split()), but=tuple(who.split()))


FACE = "__init__"  # the package itself: what `import batchnorm_tool` runs
FILE_ACCESS = (
    "storage formats inputs io os pathlib shutil tempfile"
    " pyarrow.csv pyarrow.dataset pyarrow.feather pyarrow.fs pyarrow.ipc pyarrow.parquet"
)
# What takes seconds to import, or needs an extra: imported where it is used.
HEAVY = (
    "tensorflow onnxruntime onnx tf2onnx openvino ai_edge_litert"
    " h5py PIL lance psycopg pgvector faiss prometheus_client"
)
# A layer is a class of Keras; what needs one imports this file where it does.
LAYER = "models.backends.vector_normalization"

# Names are those below the package, or of a library. What is left open here, the order of the
# packages, is held by `circles`: none imports one that imports it.
RULES = (
    only(f"{FACE} __main__ cli commands", "commands"),
    never("commands.run commands.compare commands.verify", "commands.refresh"),
    never("pipeline", "engines readers store"),
    never("gate comparison norms", FILE_ACCESS),
    never("inputs features models formats", "gate"),
    never("report", "storage inputs store"),
    never("contract", "storage job pyarrow pydantic"),
    never("*", FACE),
    only("models.backends layers", "tensorflow keras onnxruntime tf2onnx openvino ai_edge_litert"),
    only("models.backends models.security", "onnx"),
    only("models.backends models.security", "h5py"),
    only("features.values", "PIL"),
    only("store.lance", "lance"),
    only("inputs.row_hash", "xxhash"),
    only("publish", "psycopg pgvector faiss"),
    only("commands.refresh.metrics", "prometheus_client"),
    Rule(("*",), tuple(HEAVY.split()), when=("start",)),
    Rule(("*",), ("keras",), but=(LAYER,), when=("start",)),
)


@dataclass(frozen=True)
class Import:
    """One imported name: of a module below the package, or of a library."""

    name: str
    line: int
    when: When


class Source:
    """One file of the package; `path` and `module` are those below the package."""

    def __init__(self, path: Path, package: Path) -> None:
        text = path.read_text(encoding="utf-8")
        self.path = path.relative_to(package).as_posix()
        self.module = self.path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        self.lines = [line.strip() for line in text.splitlines()]
        self.tree = ast.parse(text)
        self.statements = list(_statements(self.tree, "start"))

    def comments(self) -> int:
        """Count the lines that hold a comment and nothing else."""
        texts = (n for n in ast.walk(self.tree) if isinstance(n, ast.Constant | ast.JoinedStr))
        inside = {line for node in texts for line in _rows(node)[1:]}
        return sum(line.startswith("#") and n not in inside for n, line in self._numbered())

    def code(self) -> int:
        """Count the lines that are neither blank nor comments nor docstrings."""
        texts = (n for n, _ in self.statements if isinstance(n, ast.Expr) and _is_text(n.value))
        docstrings = {line for node in texts for line in _rows(node)}
        return sum(n not in docstrings for n, line in self._numbered() if line) - self.comments()

    def import_lines(self) -> int:
        """Count the lines of import statements."""
        found = (n for n, _ in self.statements if isinstance(n, ast.Import | ast.ImportFrom))
        return sum(len(_rows(node)) for node in found)

    def any_lines(self) -> int:
        """Count the lines that pass on a dictionary of anything."""
        return sum("dict[str, Any]" in s or "Mapping[str, Any]" in s for s in self.lines)

    def classes(self) -> Iterator[ast.ClassDef]:
        """Find the classes that it defines, inner ones too."""
        return (node for node, _ in self.statements if isinstance(node, ast.ClassDef))

    def _numbered(self) -> Iterator[tuple[int, str]]:
        return enumerate(self.lines, 1)


class Architecture:
    """The files of the package below `root`, and what breaks a rule there."""

    def __init__(self, root: Path = ROOT) -> None:
        package = root / PACKAGE
        self.sources = [Source(path, package) for path in sorted(package.rglob("*.py"))]
        self.modules = {source.module for source in self.sources}
        self.readme = (root / "README.md").read_text(encoding="utf-8")

    def measure(self) -> dict[str, float]:
        """Measure everything, in the order of `LIMITS`."""
        lines = self._sum(lambda source: len(source.lines))
        return {
            "lines": lines,
            "files": len(self.sources),
            "top": len({source.path.partition("/")[0] for source in self.sources}),
            "against": len(self.against),
            "circles": len(self.circles),
            "twice": len(self.twice),
            "any": self._sum(Source.any_lines),
            "imports": round(100 * self._sum(Source.import_lines) / lines, 1),
            "comments": round(100 * self._sum(Source.comments) / self._sum(Source.code), 1),
            "readme": len(self.readme.splitlines()),
        }

    @cached_property
    def imports(self) -> dict[str, list[Import]]:
        """What each module imports, also in functions and for type checkers."""
        return {
            source.module: [
                Import(name, node.lineno, when)
                for node, when in source.statements
                for name in sorted({self._named(name) for name in _imported(node)})
            ]
            for source in self.sources
        }

    @cached_property
    def against(self) -> list[str]:
        """The imports that a rule forbids."""
        return [
            f"{PACKAGE}/{source.path}:{found.line} imports {found.name}"
            for source in self.sources
            for found in self.imports[source.module]
            if any(rule.forbids(source.module, found) for rule in RULES)
        ]

    @cached_property
    def circles(self) -> list[str]:
        """The files that need each other before any function is called, and such packages."""
        files, packages = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
        for module, imports in self.imports.items():
            ours = [found for found in imports if found.name in self.modules - {module}]
            files[module] |= {found.name for found in ours if found.when != "call"}
            packages[_first(module)] |= {_first(found.name) for found in ours} - {_first(module)}
        return _circles(files) + _circles(packages)

    @cached_property
    def twice(self) -> list[str]:
        """The class names that stand in two files or more."""
        places = defaultdict[str, dict[str, int]](dict)
        for source in self.sources:
            for found in source.classes():
                places[found.name][source.path] = found.lineno
        return [
            f"{name} is a class in " + " and ".join(f"{PACKAGE}/{p}:{n}" for p, n in files.items())
            for name, files in sorted(places.items())
            if len(files) > 1
        ]

    def _named(self, name: str) -> str:
        """Say which module an imported name belongs to, where it is one of ours."""
        first, _, inner = name.partition(".")
        if first != PACKAGE:
            return name
        while inner and inner not in self.modules:
            inner = inner.rpartition(".")[0]
        return inner or FACE

    def _sum(self, count: Callable[[Source], int]) -> int:
        return sum(map(count, self.sources))


def _statements(block: ast.AST, when: When) -> Iterator[tuple[ast.stmt, When]]:
    """Walk through all statements, those in blocks too; expressions hold none."""
    for field in ("body", "orelse", "handlers", "finalbody", "cases"):
        for node in getattr(block, field, ()):
            if isinstance(node, ast.stmt):
                yield node, when
            yield from _statements(node, _inside(node, when))


def _inside(node: ast.AST, when: When) -> When:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return "call"
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return "typing"
    return when


def _imported(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _rows(node: ast.stmt | ast.expr) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def within(name: str, packages: Sequence[str]) -> bool:
    """Tell whether a name is one of these or lies below one."""
    return any(one == "*" or f"{name}.".startswith(f"{one}.") for one in packages)


def _first(module: str) -> str:
    return module.partition(".")[0]


def _circles(graph: Mapping[str, set[str]]) -> list[str]:
    """Find the groups in which each leads to each, be it through others."""
    reached = {start: _reached(graph, start) for start in graph}
    groups = {
        frozenset(other for other in reached[start] if start in reached[other]) for start in graph
    }
    return sorted("a circle: " + ", ".join(sorted(group)) for group in groups if group)


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """Follow the graph from one place; it comes back to it only where a circle does."""
    reached, ahead = set[str](), [start]
    while ahead:
        new = graph[ahead.pop()] - reached
        reached |= new
        ahead += new
    return reached


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Print the measures to standard output, and to standard error what breaks a rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    architecture = Architecture(root)
    measured = architecture.measure()
    print(json.dumps(measured) if options.json else "\n".join(_table(measured)))
    for line in (*architecture.against, *architecture.circles, *architecture.twice):
        print(line, file=sys.stderr)
    return int(any(one.must and not one.holds(measured[one.key]) for one in LIMITS))


def _table(measured: Mapping[str, float]) -> Iterator[str]:
    for one in LIMITS:
        mark, value = "•" if one.must else " ", measured[one.key]
        bound = f"at {'least' if one.least else 'most'} {one.value:,}"
        state = "" if one.holds(value) else ", not yet"
        yield f"{mark} {one.key:8} {value:>7,}  {one.meaning}: {bound}{state}"


if __name__ == "__main__":
    sys.exit(main())
