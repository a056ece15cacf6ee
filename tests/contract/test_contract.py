from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import batchnorm_tool
from batchnorm_tool.contract import Canary, Contract
from batchnorm_tool.errors import Damaged, InputError
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.norms.normalization import Normalization
from batchnorm_tool.storage.checked_json import canonical_json
from tests.contract.building import UNIT, contract_of

RANDOM = np.random.default_rng(7)
RAW = RANDOM.normal(size=(16, 6)).astype(np.float32)
MEAN = tuple((np.ones(4) / 2).tolist())
DONE = {
    "l2": (UNIT, "float32"),
    "lp": (Normalization(Norm("lp", 3.0)), "float32"),
    "none": (Normalization(Norm("none")), "float64"),
    "float16": (UNIT, "float16"),
    "truncate": (Normalization(Norm("l1"), truncate=4), "float32"),
    "mean": (Normalization(Norm("l2"), 4, MEAN), "float32"),
    "int8": (Normalization(Norm("l2"), dtype="int8", scale=0.9 / 127), "float32"),
    "binary": (Normalization(Norm("l2"), dtype="binary"), "float32"),
}
FEATURES = {
    "x": RANDOM.normal(size=(16, 3)).astype(np.float32),
    "id": RANDOM.integers(2**60, 2**61, 16),
    "flag": RANDOM.integers(0, 2, (16, 2)).astype(bool),
    "text": np.array([["a\udc80", "é"], [b"\xff\x00", ""]] * 8, object),
    "word": np.array(["a", b"b\x00", "", b"", "\u00e9", "c" * 99] * 2 + ["d"] * 4, object),
    "half": RANDOM.normal(size=(16, 2, 2)).astype(np.float16),
    "brain": RANDOM.normal(size=16).astype(ml_dtypes.bfloat16),
}


def changed(contract: Contract, **values: object) -> bytes:
    """The file with other values and a right checksum."""
    data = json.loads(contract.to_bytes()) | values
    del data["checksum"]
    checksum = hashlib.sha256(canonical_json(data)).hexdigest()
    return canonical_json(data | {"checksum": checksum})


@pytest.mark.parametrize("kind", DONE)
def test_a_contract_reads_back_as_it_was_written(kind: str) -> None:
    done, dtype = DONE[kind]
    written = contract_of(FEATURES, {"y": RAW}, done, dtype=dtype, transform="t")
    content = written.to_bytes()
    read = Contract.from_bytes(content)
    assert read.to_bytes() == content
    assert replace(read, canaries=()) == replace(written, canaries=())
    for canary, other in zip(read.canaries, written.canaries, strict=True):
        assert canary.vectors["y"].dtype == written.outputs[0].stored_dtype
        assert canary.norms == other.norms
        np.testing.assert_array_equal(canary.vectors["y"], other.vectors["y"])
    for contract in (read, written):
        for name, value in contract.canary_features().items():
            np.testing.assert_array_equal(value, FEATURES[name])
            assert value.dtype == FEATURES[name].dtype


@pytest.mark.parametrize("kind", DONE)
def test_apply_does_to_a_query_what_was_done_to_the_rows(kind: str) -> None:
    done, dtype = DONE[kind]
    contract = Contract.from_bytes(
        contract_of({"x": FEATURES["x"]}, {"y": RAW}, done, dtype=dtype).to_bytes()
    )
    got = contract.apply(RAW[:5])
    expected, _ = done.apply(RAW[:5], dtype)
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(contract.apply({"y": RAW[:5]})["y"], expected)


def test_numbers_are_as_short_as_they_can_be() -> None:
    row = np.array([[np.float32(0.1), np.float32(3.0)]])
    data = json.loads(contract_of({"x": row}, {"y": row}).to_bytes())
    assert data["canaries"] == [
        {
            "features": {"x": [0.1, 3.0]},
            "vectors": {"y": [0.03331483, 0.9994449]},
            "norms": {"y": pytest.approx(3.001666204)},
        }
    ]
    assert data["outputs"] == [
        {
            "name": "y",
            "shape": [2],
            "axis": -1,
            "norm": "l2",
            "p": None,
            "truncate": None,
            "mean": None,
            "dtype": "float32",
            "scale": None,
            "metric": "cosine",
            "vector_column": "vector",
            "norm_column": "norm",
        }
    ]
    assert data["features"] == [{"input": "x", "columns": ["x"], "dtype": "float32", "shape": [2]}]
    assert {name: data[name] for name in ("format", "tool", "transform", "tolerance")} == {
        "format": 1,
        "tool": "batchnorm_tool",
        "transform": None,
        "tolerance": 1e-5,
    }


@pytest.mark.parametrize(
    ("axis", "norm", "truncate", "stored", "norms"),
    [(-1, "l2", None, (3, 4), (3,)), (-1, "l1", 2, (3, 2), (3,)), ("all", "max", 5, (5,), ())],
    ids=["each vector", "each truncated", "the whole row"],
)
def test_rows_of_several_vectors(
    axis: object, norm: str, truncate: int | None, stored: tuple[int, ...], norms: tuple[int, ...]
) -> None:
    raw = RANDOM.normal(size=(4, 3, 4)).astype(np.float32)
    done = Normalization(Norm(norm), truncate)
    contract = contract_of({"x": FEATURES["x"][:4]}, {"y": raw}, done, axis=axis)
    read = Contract.from_bytes(contract.to_bytes())
    assert read.apply(raw).shape == (4, *stored)
    assert read.canaries[0].vectors["y"].shape == stored
    assert read.canaries[0].norms["y"].shape == norms


def test_a_key_goes_along_where_it_is_asked_for() -> None:
    contract = contract_of({"x": RAW}, {"y": RAW})
    first = contract.canaries[0]
    named = replace(
        contract, canaries=(Canary(first.features, first.vectors, first.norms, {"id": 7}),)
    )
    assert Contract.from_bytes(named.to_bytes()).canaries[0].key == {"id": 7}


@pytest.mark.parametrize("place", ["run/contract.json", "run", "items.lance", "items.lance/"])
def test_a_run_a_store_and_a_file_are_found(place: str, tmp_path: Path) -> None:
    contract = contract_of({"x": RAW}, {"y": RAW})
    for directory in ("run", "items.lance.state"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "contract.json").write_bytes(contract.to_bytes())
    (tmp_path / "items.lance").mkdir()
    assert batchnorm_tool.Contract.load(str(tmp_path / place)).space == contract.space


def test_the_working_directory_is_a_run_or_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = contract_of({"x": RAW}, {"y": RAW})
    for directory in ("items.lance", "items.lance.state"):
        (tmp_path / directory).mkdir()
    (tmp_path / "items.lance.state" / "contract.json").write_bytes(contract.to_bytes())
    for directory in ("items.lance", "items.lance.state"):
        monkeypatch.chdir(tmp_path / directory)
        assert Contract.load(".").space == contract.space


def test_a_result_without_a_contract_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no contract"):
        Contract.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", InputError, "is no contract"),
        (b"[1]", InputError, "is no contract"),
        (b"[" * 100_000, InputError, "is no contract"),
        (b'{"a": 1}', InputError, "is no contract"),
        (
            b'{"format": 2, "version": "9.0", "checksum": "x"}',
            InputError,
            "version that wrote it: 9",
        ),
        (b'{"format": 1, "checksum": "x"}', Damaged, "checksum does not match"),
        ({"outputs": [{}]}, Damaged, "KeyError: 'dtype'"),
        ({"space": None, "features": 7}, Damaged, "as this version writes it"),
        ({"model": {"path": "a", "hash": "b"}}, Damaged, "unexpected keyword argument 'hash'"),
        ({"tolerance": "much"}, Damaged, "could not convert string to float"),
    ],
    ids=[
        "empty",
        "list",
        "deep",
        "other",
        "newer",
        "damaged",
        "key",
        "type",
        "unknown key",
        "number",
    ],
)
def test_what_is_no_contract_is_refused(
    content: bytes | dict[str, object], error: type[Exception], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "contract.json"
    if isinstance(content, dict):
        content = changed(contract_of({"x": RAW}, {"y": RAW}), **content)
    path.write_bytes(content)
    with pytest.raises(error, match=words) as raised:
        Contract.load(path)
    assert str(path) in str(raised.value)


def test_a_canary_of_another_width_is_damage() -> None:
    contract = contract_of({"x": RAW}, {"y": RAW})
    canaries = json.loads(contract.to_bytes())["canaries"]
    canaries[3]["vectors"]["y"].pop()
    with pytest.raises(Damaged, match=r"\(5,\) in place of \(6,\)"):
        Contract.from_bytes(changed(contract, canaries=canaries))


def test_raw_predictions_of_another_shape_are_refused() -> None:
    contract = contract_of({"x": RAW}, {"y": RAW, "z": RAW})
    with pytest.raises(InputError, match=r"'rows', 6.*Received: \(16, 5\)"):
        contract.apply({"y": RAW, "z": RAW[:, :5]})
    with pytest.raises(
        InputError, match=r"mapping with the outputs \['y', 'z'\]. Received: \['y'\]"
    ):
        contract.apply({"y": RAW})


def test_a_contract_needs_numpy_alone(tmp_path: Path) -> None:
    path = tmp_path / "contract.json"
    path.write_bytes(contract_of({"x": RAW}, {"y": RAW}).to_bytes())
    program = (
        "import sys, numpy, batchnorm_tool; before = {*sys.modules};"
        f"batchnorm_tool.Contract.load({str(path)!r}).apply(numpy.ones((1, 6)));"
        "print(*{name.partition('.')[0] for name in {*sys.modules} - before})"
    )
    command = [sys.executable, "-c", program]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert {*loaded} <= {*sys.stdlib_module_names, "numpy", "batchnorm_tool"}
