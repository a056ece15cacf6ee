"""The contract beside a finished run: real rows with what they got, whatever became of others."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batchnorm_tool import Contract, Job, RunResult, normalize, read, run, verify
from batchnorm_tool.cli.app import cli
from batchnorm_tool.commands.run import contracts
from batchnorm_tool.errors import Damaged
from batchnorm_tool.inputs import reading
from batchnorm_tool.pipeline.output_schema import fixed_size_list
from tests.commands.workshop import FORMATS

ROWS, WIDTH = 400, 6
BAD = {"input": {"invalid": "drop"}, "normalize": {"nonfinite": "drop", "max_bad_fraction": 1}}


def vectors(rows: int = ROWS, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    scales = np.exp(generator.normal(size=(rows, 1)))
    return (generator.normal(size=(rows, WIDTH)) * scales).astype(np.float32)


def finished(folder: Path, columns: dict[str, Any], **sections: Any) -> RunResult:
    """A run over these columns, of parts of 32 rows, with keys in its contract."""
    named = {
        name: fixed_size_list(values) if getattr(values, "ndim", 1) > 1 else pa.array(values)
        for name, values in columns.items()
    }
    pq.write_table(pa.table(named), folder / "in.parquet")
    base: dict[str, Any] = {
        "input": {"path": "in.parquet", "key": "id", "features": "x"},
        "normalize": {},
        "output": {"path": "out", "part_rows": 32},
        "contract": {"keys": True},
    }
    data = {name: {**base.get(name, {}), **sections.get(name, {})} for name in base | sections}
    return run(Job.from_dict(data, folder), fresh=True)


def assert_kept(contract: Contract, x: np.ndarray, norm: str = "l2") -> list[int]:
    """Each canary is a row of the input with what `normalize` makes of it; returns which."""
    rows = [(canary.key or {})["id"] for canary in contract.canaries]
    for row, canary in zip(rows, contract.canaries, strict=True):
        assert canary.features["vector"].tolist() == x[row].tolist()
        unit, norms = normalize(x[row : row + 1], norm, return_norm=True)
        assert canary.vectors["vector"].tobytes() == unit[0].tobytes()
        assert float(canary.norms["vector"]) == norms[0]
    assert len(set(rows)) == len(rows)
    return rows


@pytest.mark.parametrize("form", FORMATS)
def test_sixteen_rows_spread_over_parts_and_norms(tmp_path: Path, form: str) -> None:
    x = vectors()
    result = finished(tmp_path, {"id": range(ROWS), "x": x}, output={"format": form})
    content = (tmp_path / "out" / "contract.json").read_bytes()
    assert result.manifest["contract"] == hashlib.sha256(content).hexdigest()
    contract = Contract.load(tmp_path / "out")
    assert contract.space == result.manifest["space"]
    rows = assert_kept(contract, x)
    assert len(rows) == 16
    assert {row // 32 for row in rows} == {0, 3, 6, 9}  # of 13 parts
    lengths = np.sort(np.linalg.norm(x, axis=1))
    ranks = np.searchsorted(lengths, [float(c.norms["vector"]) for c in contract.canaries]) / ROWS
    assert np.abs(ranks - (np.arange(16) + 0.5) / 16).max() < 0.1
    (feature,), (output,) = contract.features, contract.outputs
    assert (feature.input, feature.columns, feature.shape) == ("vector", ("x",), (WIDTH,))
    assert (output.dtype, output.vector_column, output.norm_column) == ("float32", "vector", "norm")


def test_of_one_part_no_row_is_taken_twice(tmp_path: Path) -> None:
    x = vectors(20)
    finished(tmp_path, {"id": range(20), "x": x})
    assert len(assert_kept(Contract.load(tmp_path / "out"), x)) == 16
    finished(tmp_path, {"id": range(5), "x": x[:5]}, normalize={"norm": "l1"})
    assert sorted(assert_kept(Contract.load(tmp_path / "out"), x, "l1")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("fate", ["drop", "quarantine", "nullify"])
def test_a_row_is_found_again_where_others_are_removed(tmp_path: Path, fate: str) -> None:
    """By its input every fifth row is bad, and by its norm, which overflows, every seventh."""
    x = vectors().astype(np.float64)
    x[::7] = 1.7e308
    lists = [None if row % 5 == 1 else values.tolist() for row, values in enumerate(x)]
    bad = {"nonfinite": fate, "max_bad_fraction": 1}
    policies = {"input": {"invalid": fate}, "normalize": bad, "output": {"dtype": "float64"}}
    result = finished(tmp_path, {"id": range(ROWS), "x": lists}, **policies)
    assert (result.rows["bad"], result.manifest["reasons"]["norm_overflow"]) == (127, 47)
    contract = Contract.load(tmp_path / "out")
    assert len(contract.canaries) == 16
    for canary in contract.canaries:
        row = (canary.key or {})["id"]
        assert canary.features["vector"].tolist() == x[row].tolist()
        assert row % 7
        assert contract.apply(x[row][None])[0].tolist() == canary.vectors["vector"].tolist()


def test_where_keys_repeat_no_other_row_is_taken(tmp_path: Path) -> None:
    """With rows removed by their prediction, a key of several rows tells nothing."""
    x = vectors(32)
    x[9] = np.inf
    finished(tmp_path, {"id": np.arange(32) // 16, "x": x}, **BAD)
    taken = Contract.load(tmp_path / "out").canaries
    found = {canary.features["vector"].tobytes(): canary.vectors["vector"] for canary in taken}
    assert set(found) <= {row.tobytes() for row in x}
    for features, vector in found.items():
        raw = np.frombuffer(features, np.float32)[None]
        assert normalize(raw)[0].tolist() == vector.tolist()


def test_several_outputs_and_axes(tmp_path: Path) -> None:
    x, y = vectors(), vectors(seed=3)
    columns = {"id": range(ROWS), "x": x, "y": y}
    features = {"left": "x", "right": "y"}
    norms = {"norm": "max", "outputs": {"right": {"norm": "none"}}}
    finished(tmp_path, columns, input={"features": features}, normalize=norms)
    contract = Contract.load(tmp_path / "out")
    assert [output.metric for output in contract.outputs] == ["dot", "dot"]
    for canary in contract.canaries:
        row = (canary.key or {})["id"]
        assert (
            canary.vectors["right"].tolist() == canary.features["right"].tolist() == y[row].tolist()
        )
        assert (float(canary.norms["right"]), float(canary.norms["left"])) == (
            1,
            np.abs(x[row]).max(),
        )
    np.save(tmp_path / "grid.npy", x.reshape(200, 4, 3))
    job = {"input": {"path": "grid.npy"}, "output": {"path": "grids"}}
    run(Job.from_dict(job, tmp_path))
    contract = Contract.load(tmp_path / "grids")
    for canary in contract.canaries:
        assert canary.key is None
        assert (canary.vectors["vector"].shape, canary.norms["vector"].shape) == ((4, 3), (4,))
        assert (
            contract.apply(canary.features["vector"][None])[0].tolist()
            == canary.vectors["vector"].tolist()
        )


@pytest.mark.parametrize(
    "options",
    [
        {"truncate": 4},
        {"project_mean": "fit", "norm": "l1"},
        {"dtype": "int8"},
        {"dtype": "binary", "truncate": 3},
        {"norm": "none", "dtype": "int8", "nonfinite": "nullify"},
    ],
    ids="-".join,
)
def test_what_else_became_of_vectors(tmp_path: Path, options: dict[str, Any]) -> None:
    x = vectors()
    x[5] = np.nan
    bad = {"nonfinite": "quarantine", "max_bad_fraction": 1}
    finished(tmp_path, {"id": range(ROWS), "x": x}, normalize={**bad, **options})
    contract = Contract.load(tmp_path / "out")
    assert len(contract.canaries) == 16
    for canary in contract.canaries:
        row = (canary.key or {})["id"]
        stored = contract.apply(x[row : row + 1])[0]
        assert stored.dtype == canary.vectors["vector"].dtype
        assert stored.tolist() == canary.vectors["vector"].tolist()


@pytest.mark.parametrize(
    ("sections", "rows"),
    [({"contract": {"canaries": 0}}, ROWS), ({}, 0), ({"normalize": {"zero": "keep"}}, 8)],
    ids=["not asked for", "no rows", "zeros alone"],
)
def test_no_canaries(tmp_path: Path, sections: dict[str, Any], rows: int) -> None:
    x = np.zeros((rows, WIDTH), np.float32) if rows == 8 else vectors(rows)
    keys = pa.array(range(rows), pa.int64())
    result = finished(tmp_path, {"id": keys, "x": x}, **sections)
    assert Contract.load(tmp_path / "out").canaries == ()
    assert not [text for text in result.warnings if "canar" in text]


def test_large_features_are_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contracts, "_FEATURE_BYTES", 5 * WIDTH * 4 + 1)
    finished(tmp_path, {"id": range(ROWS), "x": vectors()})
    assert len(Contract.load(tmp_path / "out").canaries) == 5


def test_an_input_that_is_gone_costs_the_canaries_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = contracts.CanarySearch.rows

    def rows(search: Any, count: int) -> Any:
        (tmp_path / "in.parquet").unlink()
        return real(search, count)

    monkeypatch.setattr(contracts.CanarySearch, "rows", rows)
    result = finished(tmp_path, {"id": range(ROWS), "x": vectors()})
    assert Contract.load(tmp_path / "out").canaries == ()
    [text] = [text for text in result.warnings if "canary" in text]
    assert text.startswith("The contract has no canary rows:")
    assert "in.parquet" in text
    assert len(read(tmp_path / "out").to_numpy()[1]) == ROWS


def test_few_rows_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again: list[int] = []
    real = reading.read_rows

    def read_rows(file: Any, columns: Any, start: int, stop: int, batch: int) -> Any:
        again.append(stop - start)
        return real(file, columns, start, stop, batch)

    def search(*given: Any) -> Any:
        again.clear()
        return found(*given)

    found = contracts.find_canaries
    monkeypatch.setattr(reading, "read_rows", read_rows)
    monkeypatch.setattr("batchnorm_tool.commands.run.run.find_canaries", search)
    monkeypatch.setattr(contracts, "_WINDOW_ROWS", 10)
    finished(tmp_path, {"id": range(3200), "x": vectors(3200)})
    assert again == [10] * 4


def test_damage_is_found_and_the_contract_shown(tmp_path: Path) -> None:
    result = finished(tmp_path, {"id": range(ROWS), "x": vectors()})
    place = tmp_path / "out" / "contract.json"
    said = CliRunner().invoke(cli, ["show", str(tmp_path / "out")]).output
    assert result.manifest["contract"] in said
    verify(tmp_path / "out")
    place.write_bytes(place.read_bytes().replace(b"0.1", b"0.2", 1))
    with pytest.raises(Damaged, match=r"`contract\.json` is not what was written"):
        verify(tmp_path / "out")
    place.unlink()
    with pytest.raises(Damaged, match=r"`contract\.json` is missing"):
        verify(tmp_path / "out")
