from __future__ import annotations

import ast
import graphlib
import inspect
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchnorm_tool
from batchnorm_tool import errors

PACKAGE = Path(__file__).parent.parent / "batchnorm_tool"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")

# Who may import what costs seconds or needs an extra.
RESERVED = {
    "tensorflow": ("models.backends.",),
    "keras": ("models.backends.",),
    "h5py": ("models.security.", "models.backends."),
    "PIL": ("features.images",),
    "lance": ("store.lance",),
    "xxhash": ("inputs.row_hash",),
    "psycopg": ("publish.",),
    "pgvector": ("publish.",),
    "faiss": ("publish.",),
    "prometheus_client": ("commands.refresh.metrics",),
}
HEAVY = {"tensorflow", "keras", "h5py", "PIL", "pandas", "pyarrow", "sklearn"}
ERRORS = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, errors.BatchnormToolError)
]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every name that is imported anywhere, `a.b` for `from a import b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(names: Iterator[str]) -> set[str]:
    """Our modules among imported names, without the package's own name."""
    inner = (name.removeprefix("batchnorm_tool.") for name in names if is_ours(name))
    modules = (name if name in MODULES else name.rpartition(".")[0] for name in inner)
    return {module for module in modules if module}


def is_ours(name: str) -> bool:
    return name.startswith("batchnorm_tool.")


def at_start(tree: ast.Module) -> ast.Module:
    """The statements that run when the module is imported (not those for type checkers)."""
    imported = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return ast.Module([*imported], type_ignores=[])


def test_no_two_modules_import_each_other() -> None:
    graph = {
        module: ours(imports(at_start(ast.parse(path.read_text())))) - {module}
        for module, path in MODULES.items()
    }
    assert set(graphlib.TopologicalSorter(graph).static_order()) >= set(MODULES)


@pytest.mark.parametrize("library", RESERVED)
def test_only_these_files_import(library: str) -> None:
    importers = {
        module
        for module, path in MODULES.items()
        if library in {name.partition(".")[0] for name in imports(ast.parse(path.read_text()))}
    }
    strangers = {name for name in importers if not name.startswith(RESERVED[library])}
    assert not strangers
    assert importers


@pytest.mark.parametrize("library", RESERVED)
def test_nobody_imports_when_imported(library: str) -> None:
    early = {
        module
        for module, path in MODULES.items()
        if any(
            name.partition(".")[0] == library
            for name in imports(at_start(ast.parse(path.read_text())))
        )
    }
    assert not early


@pytest.mark.parametrize("module", ["batchnorm_tool", "batchnorm_tool.cli.app"])
def test_importing_is_light(module: str) -> None:
    program = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "batchnorm_tool" in loaded.stdout.split()
    assert HEAVY.isdisjoint(loaded.stdout.split())


def test_public_names_are_listed_in_order() -> None:
    assert list(batchnorm_tool.__all__) == sorted(batchnorm_tool.__all__)


def test_listed_names_are_the_public_ones() -> None:
    listed = set(batchnorm_tool.__all__)
    shown = {name for name in dir(batchnorm_tool) if not name.startswith("_")}
    submodules = {path.stem for path in PACKAGE.iterdir()}
    assert shown - submodules - {"annotations"} == {n for n in listed if not n.startswith("_")}
    assert {cls.__name__ for cls in ERRORS} <= listed
    assert listed.isdisjoint(submodules), "an imported module would hide the function"


@pytest.mark.parametrize("name", batchnorm_tool.__all__)
def test_listed_names_exist(name: str) -> None:
    assert getattr(batchnorm_tool, name) is not None


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_errors_survive_pickling(cls: type[errors.BatchnormToolError]) -> None:
    error = cls("`norm` is wrong. Received: 7")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is cls
    assert copy.message == error.message
    assert "`norm` is wrong. Received: 7" in copy.message
    assert copy.exit_code == error.exit_code
