from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool import read, verify
from batchnorm_tool.commands.run.run import RunResult, run
from batchnorm_tool.errors import BadRows
from tests.commands.plain_script import normalized, stored, vector_column

pytestmark = pytest.mark.usefixtures("tensorflow")

KINDS = {
    1: ("null_list", "null_feature"),
    3: ("null_element", "null_feature"),
    5: ("ragged_short", "ragged_feature"),
    7: ("ragged_long", "ragged_feature"),
    9: ("nan", "nonfinite_feature"),
    11: ("positive_infinity", "nonfinite_feature"),
    13: ("negative_infinity", "nonfinite_feature"),
    15: ("all_zeros", "zero_vector"),
    17: ("overflowing_prediction", "nonfinite_prediction"),
}
INVALID = [1, 3, 5, 7, 9, 11, 13]
ZERO, NONFINITE = 15, 17
GOOD = list(range(0, 19, 2))


@pytest.fixture
def encode_bad(samples: Path, encode: Callable[..., RunResult]) -> Callable[..., RunResult]:
    def start(**policies: Any) -> RunResult:
        spec = {"key": "id", "passthrough": ["kind"], "invalid": policies.pop("invalid", "drop")}
        normalize = {"max_bad_fraction": 1, **policies}
        return encode(str(samples / "bad_rows.parquet"), input=spec, normalize=normalize)

    return start


def stored_rows(result: RunResult) -> dict[int, Any]:
    table = pq.read_table(Path(result.path) / "vectors")
    return {row["id"]: row for row in table.to_pylist()}


def quarantined_rows(result: RunResult) -> dict[int, Any]:
    folder = Path(result.path) / "_quarantine"
    return {row["id"]: row for row in pq.read_table(folder).to_pylist()} if folder.exists() else {}


@pytest.mark.parametrize("invalid", ["quarantine", "nullify", "drop"])
def test_invalid_rows_meet_their_policy(
    encode_bad: Callable[..., RunResult], samples: Path, invalid: str
) -> None:
    result = encode_bad(invalid=invalid, nonfinite="drop")
    rows, away = stored_rows(result), quarantined_rows(result)
    kept = [*GOOD, ZERO] + (INVALID if invalid == "nullify" else [])
    assert sorted(rows) == sorted(kept)
    assert result.rows["out"] == len(kept)
    assert result.rows["bad"] == 8
    counted = {"quarantine": "quarantined", "nullify": "nullified", "drop": "dropped"}[invalid]
    assert result.rows[counted] == 7 + (invalid == "drop")
    assert {name: count for name, count in result.manifest["reasons"].items() if count} == {
        "null_feature": 2,
        "ragged_feature": 2,
        "nonfinite_feature": 3,
        "zero_vector": 1,
        "nonfinite_prediction": 1,
    }
    null = {key for key, row in rows.items() if row["vector"] is None and row["norm"] is None}
    assert null == (set(INVALID) if invalid == "nullify" else set())
    assert sorted(away) == (INVALID if invalid == "quarantine" else [])
    for key, row in away.items():
        assert (row["kind"], row["reason"]) == KINDS[key]
        assert (row["file"], row["file_row"]) == (str(samples / "bad_rows.parquet"), key)
        assert row["prediction"] is None
    assert verify(result.path).rows == len(kept)


@pytest.mark.parametrize("nonfinite", ["keep", "quarantine", "nullify", "drop"])
def test_predictions_that_are_not_finite_meet_their_policy(
    encode_bad: Callable[..., RunResult], nonfinite: str
) -> None:
    result = encode_bad(nonfinite=nonfinite)
    rows, away = stored_rows(result), quarantined_rows(result)
    assert (NONFINITE in rows) == (nonfinite in ("keep", "nullify"))
    assert result.rows["bad"] == 8
    if nonfinite == "keep":
        assert not np.isfinite(rows[NONFINITE]["norm"])
        assert not np.isfinite(rows[NONFINITE]["vector"]).all()
    if nonfinite == "nullify":
        assert (rows[NONFINITE]["vector"], rows[NONFINITE]["norm"]) == (None, None)
    assert list(away) == ([NONFINITE] if nonfinite == "quarantine" else [])
    if away:
        assert away[NONFINITE]["reason"] == "nonfinite_prediction"
        assert len(away[NONFINITE]["prediction"]) == 32
        assert not np.isfinite(away[NONFINITE]["prediction"]).all()


@pytest.mark.parametrize("zero", ["keep", "quarantine", "nullify", "drop"])
def test_zero_vectors_meet_their_policy(encode_bad: Callable[..., RunResult], zero: str) -> None:
    result = encode_bad(zero=zero, nonfinite="drop")
    rows, away = stored_rows(result), quarantined_rows(result)
    assert result.rows["zero"] == 1
    assert result.rows["bad"] == (8 if zero == "keep" else 9)
    assert (ZERO in rows) == (zero in ("keep", "nullify"))
    if zero == "keep":
        assert rows[ZERO]["vector"] == [0.0] * 32
        assert rows[ZERO]["norm"] == 0.0
        assert ZERO not in [row["row"] for row in result.manifest["first_bad_rows"]]
    if zero == "nullify":
        assert (rows[ZERO]["vector"], rows[ZERO]["norm"]) == (None, None)
    assert list(away) == ([ZERO] if zero == "quarantine" else [])
    if away:
        assert away[ZERO]["prediction"] == [0.0] * 32


@pytest.mark.parametrize(
    ("policy", "first"),
    [({"invalid": "fail"}, 1), ({"zero": "fail"}, 15), ({"nonfinite": "fail"}, 17)],
    ids=["invalid", "zero", "nonfinite"],
)
def test_policy_fail_publishes_nothing_and_names_the_rows(
    encode_bad: Callable[..., RunResult], tmp_path: Path, policy: dict[str, str], first: int
) -> None:
    with pytest.raises(BadRows) as caught:
        encode_bad(**policy)
    message = caught.value.message
    key = f"`{'input' if 'invalid' in policy else 'normalize'}.{next(iter(policy))}`"
    assert f"bad_rows.parquet, row {first}, key {first}: {KINDS[first][1]}" in message
    assert key in message
    keeping = "" if "invalid" in policy else "keep, "
    assert f"set {key} to {keeping}nullify, drop or quarantine." in message
    # Which columns hold what is bad, where it is no prediction.
    assert ("(its features: `pixels`)" in message) == ("invalid" in policy)
    assert not (tmp_path / "out" / "vectors").exists()
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_too_many_bad_rows_publish_nothing_until_they_are_allowed(
    encode_bad: Callable[..., RunResult], tmp_path: Path
) -> None:
    with pytest.raises(BadRows, match=r"8 bad of 19 rows.*max_bad_fraction: 0.42` allows"):
        encode_bad(max_bad_fraction=0.42)
    assert not (tmp_path / "out" / "vectors").exists()
    result = encode_bad(max_bad_fraction=0.4211)  # 8 / 19 = 0.42105
    assert result.rows["out"] == 11
    assert result.parts_kept == 1


def test_bad_rows_leave_the_bits_of_their_neighbours(
    encode_bad: Callable[..., RunResult], raw: np.ndarray
) -> None:
    rows = stored_rows(encode_bad())
    expected, norms = normalized(raw[:19], "l2")
    for key in GOOD:
        assert np.float32(rows[key]["vector"]).tobytes() == expected[key].tobytes()
        assert rows[key]["norm"] == norms[key]


def test_npy_output_has_nan_in_nullified_rows(
    samples: Path, encode: Callable[..., RunResult]
) -> None:
    spec = {"key": "id", "invalid": "nullify"}
    normalize = {"nonfinite": "drop", "max_bad_fraction": 1}
    source = str(samples / "bad_rows.parquet")
    result = encode(source, input=spec, normalize=normalize, output={"format": "npy"})
    vectors = np.load(Path(result.path) / "vectors" / "part-000000.npy")
    norms = np.load(Path(result.path) / "norms" / "part-000000.npy")
    keys = pq.read_table(Path(result.path) / "keys" / "part-000000.parquet")["id"].to_pylist()
    assert keys == [key for key in range(19) if key != NONFINITE]
    assert np.isnan(vectors).all(axis=1).tolist() == [key in INVALID for key in keys]
    assert np.isnan(norms).tolist() == [key in INVALID for key in keys]


def test_a_zero_vector_does_not_hide_what_is_wrong_in_another_output(tmp_path: Path) -> None:
    left = np.array([[1, 2], [0, 0], [0, 0]], np.float32)
    right = np.array([[3, 4], [np.nan, 1], [5, 6]], np.float32)
    table = pa.table({"a": vector_column(left), "b": vector_column(right)})
    pq.write_table(table, tmp_path / "a.parquet")
    spec = {"features": {"left": "a", "right": "b"}}
    fate = {"max_bad_fraction": 1}
    result = run(stored(tmp_path / "a.parquet", tmp_path / "o", input=spec, normalize=fate))
    reasons = {name: count for name, count in result.manifest["reasons"].items() if count}
    assert reasons == {"nonfinite_prediction": 1, "zero_vector": 1}
    assert read(result.path).to_numpy("left")[0].tolist() == [0, 2]


def test_a_norm_beyond_float64_is_a_bad_row(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1.0, 1.0], [1.7e308, 1.7e308]]))
    fate = {"norm": "l1", "nonfinite": "drop", "max_bad_fraction": 0.5}
    result = run(stored(tmp_path / "a.npy", tmp_path / "o", normalize=fate))
    assert result.manifest["reasons"]["norm_overflow"] == 1
    assert read(result.path).to_numpy()[0].tolist() == [0]
