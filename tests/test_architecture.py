from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import architecture
from tests.architecture import LIMITS, ROOT, RULES, Architecture, Rule, within

MUST = [limit.key for limit in LIMITS if limit.must]

FORBIDDEN = [
    "readers.run imports batchnorm_tool.commands.run",
    "engines.local imports batchnorm_tool.commands.run",
    "store.index imports batchnorm_tool.commands.refresh",
    "gate.output_limits imports batchnorm_tool.commands.refresh",
    "publish.faiss imports batchnorm_tool.commands.refresh",
    "commands.run.score imports batchnorm_tool.commands.refresh.plan",
    "commands.compare.diff imports batchnorm_tool.commands.refresh.changes.detect",
    "commands.verify.store imports batchnorm_tool.commands.refresh.record",
    "pipeline.worker imports batchnorm_tool.engines",
    "pipeline.worker imports batchnorm_tool.readers.run",
    "pipeline.worker imports batchnorm_tool.store.lance",
    "pipeline.worker imports batchnorm_tool.commands.run.run",
    "gate.output_limits imports batchnorm_tool.storage.files",
    "gate.output_limits imports batchnorm_tool.inputs.table",
    "gate.output_limits imports pyarrow.parquet",
    "comparison.scores imports batchnorm_tool.formats.npy",
    "comparison.scores imports os.path",
    "comparison.scores imports pyarrow.dataset",
    "norms.stats imports pathlib",
    "norms.stats imports pyarrow.ipc",
    "inputs.table imports batchnorm_tool.gate.input_limits",
    "report.page imports batchnorm_tool.storage.local",
    "report.page imports batchnorm_tool.inputs.files",
    "report.page imports batchnorm_tool.store.state",
    "models.security.archive imports tensorflow.core",
    "models.security.archive imports keras",
    "models.batching imports tensorflow",
    "commands.run.run imports keras.layers",
    "commands.run.run imports h5py",
    "features.arrays imports PIL.Image",
    "store.rows imports lance",
    "store.rows imports xxhash",
    "store.rows imports psycopg",
    "store.rows imports pgvector",
    "store.rows imports faiss",
    "store.rows imports prometheus_client",
]
ALLOWED = [
    "cli.app imports batchnorm_tool.commands.run",
    "__init__ imports batchnorm_tool.commands.run",
    "__main__ imports batchnorm_tool.commands.run",
    "commands.show imports batchnorm_tool.commands.refresh.record",
    "commands.refresh.staging imports batchnorm_tool.commands.run.prepare",
    "report.page imports os",
    "store.lance imports lance",
    "models.backends.keras imports keras",
]
# Where an import may stand, and how it may be written: all of these are seen.
FORMS = {
    "module": "from batchnorm_tool.store.state import read",
    "package": "from batchnorm_tool.store import state",
    "plain": "import batchnorm_tool.store.state as state",
    "function": "def f():\n    import batchnorm_tool.store.state",
    "method": "class A:\n    def f(self):\n        import batchnorm_tool.store.state",
    "checkers": "if TYPE_CHECKING:\n    from batchnorm_tool.store import state",
    "typing": "if typing.TYPE_CHECKING:\n    from batchnorm_tool.store import state",
    "try": "try:\n    pass\nexcept OSError:\n    from batchnorm_tool.store import state",
    "with": "with a:\n    from batchnorm_tool.store import state",
    "match": "match a:\n    case 1:\n        from batchnorm_tool.store import state",
}


def planted(root: Path, files: dict[str, str]) -> Architecture:
    """Write a package of these modules; the packages that they are in say nothing."""
    (root / "README.md").write_text("# Title\n")
    for module, text in ({"__init__": '__version__ = "1"\n'} | files).items():
        path = root / "batchnorm_tool" / (module.replace(".", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    return Architecture(root)


def importing(root: Path, case: str) -> Architecture:
    """A package where a function of one module imports another one, or a library."""
    module, _, name = case.split()
    other = {name.removeprefix("batchnorm_tool."): ""} if "batchnorm_tool" in name else {}
    return planted(root, other | {module: f"def function():\n    import {name}\n"})


@pytest.fixture(scope="module")
def package() -> Architecture:
    return Architecture()


@pytest.fixture(scope="module")
def script() -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tests/architecture.py", "--json"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("key", MUST)
def test_the_package_keeps_its_limits(key: str, script: subprocess.CompletedProcess[str]) -> None:
    (limit,) = (limit for limit in LIMITS if limit.key == key)
    assert limit.holds(json.loads(script.stdout)[key]), script.stderr


def test_the_script_passes_with_the_package(script: subprocess.CompletedProcess[str]) -> None:
    assert list(json.loads(script.stdout)) == [limit.key for limit in LIMITS]
    assert not script.returncode


def test_rules_name_what_exists(package: Architecture) -> None:
    for name in {name for rule in RULES for name in (*rule.who, *rule.what, *rule.but)} - {"*"}:
        ours = any(within(module, [name]) for module in package.modules)
        assert ours or importlib.util.find_spec(name), f"nothing is called {name}"


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if rule.but], ids=lambda rule: rule.what[0]
)
def test_who_alone_may_import_something_does(rule: Rule, package: Architecture) -> None:
    free = {module for module in package.modules if within(module, rule.but)}
    found = {one.name for module in free for one in package.imports[module]}
    assert [what for what in rule.what if not any(within(name, [what]) for name in found)] == []


@pytest.mark.parametrize("case", FORBIDDEN)
def test_a_forbidden_import_is_found(case: str, tmp_path: Path) -> None:
    module, _, name = case.split()
    path = f"batchnorm_tool/{module.replace('.', '/')}.py"
    assert importing(tmp_path, case).against == [
        f"{path}:2 imports {name.removeprefix('batchnorm_tool.')}"
    ]


@pytest.mark.parametrize("case", ALLOWED)
def test_other_imports_are_allowed(case: str, tmp_path: Path) -> None:
    assert importing(tmp_path, case).against == []


@pytest.mark.parametrize("form", FORMS)
def test_an_import_is_found_wherever_it_stands(form: str, tmp_path: Path) -> None:
    line = FORMS[form].count("\n") + 1
    package = planted(tmp_path, {"store.state": "", "report.page": FORMS[form]})
    assert package.against == [f"batchnorm_tool/report/page.py:{line} imports store.state"]


@pytest.mark.parametrize(
    "statement", ["import batchnorm_tool", "from batchnorm_tool import __version__"]
)
def test_the_package_itself_is_not_imported(statement: str, tmp_path: Path) -> None:
    package = planted(tmp_path, {"errors": statement})
    assert package.against == ["batchnorm_tool/errors.py:1 imports __init__"]


def test_a_heavy_library_is_imported_where_it_is_used(tmp_path: Path) -> None:
    package = planted(tmp_path, {"store.lance": "import lance"})
    assert package.against == ["batchnorm_tool/store/lance.py:1 imports lance"]


@pytest.mark.parametrize("around", ["", "if TYPE_CHECKING:\n    "])
def test_a_circle_of_files_is_found(around: str, tmp_path: Path) -> None:
    files = {
        "job.a": "from batchnorm_tool.job import b",
        "job.b": "from batchnorm_tool.job import c",
        "job.c": f"{around}from batchnorm_tool.job import a",
        "job.d": "from batchnorm_tool.job import a",
    }
    assert planted(tmp_path, files).circles == ["a circle: job.a, job.b, job.c"]


def test_a_function_may_import_what_imports_its_file(tmp_path: Path) -> None:
    files = {
        "job.a": "from batchnorm_tool.job import b",
        "job.b": "def f():\n    from batchnorm_tool.job import a",
    }
    assert planted(tmp_path, files).circles == []


def test_a_circle_of_packages_is_found(tmp_path: Path) -> None:
    files = {
        "job.a": "",
        "job.b": "def f():\n    from batchnorm_tool.inputs import a",
        "inputs.a": "",
        "inputs.b": "from batchnorm_tool.job import a",
    }
    assert planted(tmp_path, files).circles == ["a circle: inputs, job"]


def test_a_class_in_two_files_is_found(tmp_path: Path) -> None:
    files = {
        "job.a": "class A:\n    class Inner: ...\nclass B: ...",
        "job.b": "def f():\n    class Inner: ...\nclass C: ...\nclass C: ...",
    }
    assert planted(tmp_path, files).twice == [
        "Inner is a class in batchnorm_tool/job/a.py:2 and batchnorm_tool/job/b.py:2"
    ]


def test_lines_are_counted(tmp_path: Path) -> None:
    text = '''"""Say what it is.

# no comment
"""
from typing import (
    Any,
)

# a comment
A: dict[str, Any] = {}  # not a line of its own
B: Mapping[str, Any] = {}
C = """
# no comment
"""
'''
    assert planted(tmp_path, {"__init__": text, "job.a": "", "errors": ""}).measure() == {
        "lines": 14,
        "files": 4,
        "top": 3,
        "against": 0,
        "circles": 0,
        "twice": 0,
        "any": 2,
        "imports": 21.4,
        "comments": 12.5,
        "readme": 1,
    }


@pytest.mark.parametrize(
    ("files", "code"),
    [
        pytest.param({}, 0, id="sound"),
        pytest.param({"errors": "import batchnorm_tool"}, 1, id="against"),
        pytest.param(
            {"a": "import batchnorm_tool.b", "b": "import batchnorm_tool.a"}, 1, id="circles"
        ),
        pytest.param({"a": "class A: ...", "b": "class A: ..."}, 1, id="twice"),
        pytest.param({"a": "A: dict[str, Any]\n" * 150}, 0, id="few dictionaries"),
        pytest.param({"a": "A: dict[str, Any]\n" * 151}, 1, id="any"),
        pytest.param({"a": "A = 1\n" * 40_000}, 0, id="many lines"),
    ],
)
def test_the_exit_code_says_whether_what_must_hold_does(
    files: dict[str, str], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(tmp_path, files)
    assert architecture.main([], tmp_path) == code
    assert len(capsys.readouterr().out.splitlines()) == len(LIMITS)
