from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import batchnorm_tool
from batchnorm_tool import errors

PACKAGE = Path(__file__).parent.parent / "batchnorm_tool"
HEAVY = {"tensorflow", "keras", "h5py", "PIL", "pandas", "pyarrow", "sklearn"}
ERRORS = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, errors.BatchnormToolError)
]


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


@pytest.mark.parametrize("cls", [errors.Held, errors.TargetFailed], ids=lambda cls: cls.__name__)
def test_an_error_that_carries_a_result_reads_as_its_message(cls: type[errors.Held]) -> None:
    assert str(cls("Version 2 is waiting.")) == "Version 2 is waiting."
