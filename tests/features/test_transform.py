from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.chunk import Field, Reason
from batchnorm_tool.errors import JobError, WorkFailed
from batchnorm_tool.features import FeatureReader, load_transform
from batchnorm_tool.job import Input

TABLE = pa.table({"a": [1.0, 2.0, 3.0], "b": [4, 5, 6], "c": ["x", "y", "z"]})
INPUTS = (Field("x", (2,), "float32"), Field("t", (), "string"))

SOURCE = """
import numpy as np
from os.path import basename

NUMBER = 3

def prepare(table):
    first, second = table["a"].to_numpy(), table["b"].to_numpy()
    return {"x": np.stack([first, second / 2], axis=1), "t": table["c"].to_numpy()}

def columns(table):
    names = np.full(table.num_rows, str(table.column_names))
    return {"x": np.zeros((table.num_rows, 2)), "t": names}
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name = f"prepared_{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def applied(given: object) -> tuple[dict[str, np.ndarray], np.ndarray]:
    transform = load_transform("os.path:basename")
    instead = type(transform)("my:function", lambda table: given, transform.source_sha256)
    return instead.apply(TABLE, INPUTS)


def test_function_makes_the_models_inputs(module: str) -> None:
    spec = Input(path="x", transform=f"{module}:prepare")
    columns = {"x": ("a", "b", "c"), "t": ("a", "b", "c")}
    arrays, faults = FeatureReader(columns, INPUTS, spec).read(TABLE)
    assert arrays["x"].dtype == np.float32
    assert arrays["x"].tolist() == [[1, 2], [2, 2.5], [3, 3]]
    assert arrays["t"].tolist() == ["x", "y", "z"]
    assert faults.tolist() == [0, 0, 0]


def test_function_is_given_the_columns_named(module: str) -> None:
    reader = FeatureReader(
        {"x": ("b", "a")}, INPUTS, Input(path="x", transform=f"{module}:columns")
    )
    assert set(reader.read(TABLE)[0]["t"]) == {"['b', 'a']"}


def test_hash_is_that_of_the_modules_source(module: str, tmp_path: Path) -> None:
    source = (tmp_path / f"{module}.py").read_bytes()
    transform = load_transform(f"{module}:prepare")
    assert transform.source_sha256 == hashlib.sha256(source).hexdigest()
    # A function that is only imported there is hashed where it is at home.
    assert load_transform(f"{module}:basename").source_sha256 != transform.source_sha256


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "cannot be imported.*PYTHONPATH"),
        ("{module}:prepared", "no such function"),
        ("{module}:NUMBER", "no such function"),
        ("math:sqrt", "source .* cannot be read"),
    ],
    ids=["module", "function", "no function", "no source"],
)
def test_name_that_leads_nowhere_is_refused(module: str, name: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        load_transform(name.format(module=module))


def test_module_that_fails_to_import_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prepared_badly.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(JobError, match="Received: ZeroDivisionError"):
        load_transform("prepared_badly:prepare")


def test_row_that_is_not_finite_is_bad() -> None:
    x = np.array([[1, 2], [np.nan, 2], [1e39, 2]])
    arrays, faults = applied({"x": x, "t": np.array(["a", "b", "c"])})
    assert faults.tolist() == [0, Reason.NONFINITE_FEATURE, Reason.NONFINITE_FEATURE]
    assert arrays["x"].tolist() == [[1, 2], [0, 0], [0, 0]]
    assert arrays["x"].dtype == np.float32
    assert np.isnan(x[1, 0])


X, T = np.zeros((3, 2)), np.array(["a", "b", "c"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"x": X}, "wrong names. Expected `x`, `t`. Received: `x`", id="missing"),
        pytest.param({"x": X, "t": T, "u": X}, "wrong names", id="too many"),
        pytest.param([X, T], "a dict of arrays. Received: list", id="no dict"),
        pytest.param({"x": X[:2], "t": T}, r"\(3, 2\). Received: \(2, 2\)", id="rows"),
        pytest.param({"x": X[:, :1], "t": T}, r"\(3, 2\). Received: \(3, 1\)", id="width"),
        pytest.param({"x": X.astype(complex), "t": T}, "float32. Received: complex128", id="dtype"),
        pytest.param(
            {"x": X, "t": np.arange(3)}, "values other than strings", id="numbers for text"
        ),
        pytest.param({"x": X, "t": np.array(["a", None, "c"])}, "Received: None", id="no text"),
    ],
)
def test_result_that_does_not_fit_is_refused(given: object, message: str) -> None:
    with pytest.raises(JobError, match=message):
        applied(given)


def test_fractions_do_not_silently_become_integers() -> None:
    transform = load_transform("os.path:basename")
    rounding = type(transform)("my:function", lambda table: {"x": np.array([0.5])}, "")
    with pytest.raises(JobError, match=r"int32.* Received: float64"):
        rounding.apply(TABLE.slice(0, 1), [Field("x", (), "int32")])


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (KeyError("price"), JobError, r"failed on a table of 3 rows .*KeyError: 'price'"),
        (WorkFailed("Mine."), WorkFailed, "Mine"),
    ],
    ids=["any exception", "one of ours"],
)
def test_function_that_raises_is_named(
    raised: Exception, expected: type[Exception], message: str
) -> None:
    def fail(table: pa.Table) -> dict[str, np.ndarray]:
        raise raised

    transform = load_transform("os.path:basename")
    failing = type(transform)("my:function", fail, "")
    with pytest.raises(expected, match=message):
        failing.apply(TABLE, INPUTS)


def test_empty_table_is_no_trouble(module: str) -> None:
    arrays, faults = load_transform(f"{module}:prepare").apply(TABLE.slice(0, 0), INPUTS)
    assert arrays["x"].shape == (0, 2)
    assert faults.tolist() == []
