from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.chunk import Chunk, Field, Reason
from batchnorm_tool.job import Input, Job, Normalize, Output
from batchnorm_tool.models.batching import IdentityPredictor
from batchnorm_tool.norms import norm as norms_norm
from batchnorm_tool.pipeline.output_schema import output_specs
from batchnorm_tool.pipeline.scored_chunk import Scored, score_chunk
from tests.merging import unsplit

NAN, INF = np.nan, np.inf
GOOD, ZERO = Reason.GOOD, Reason.ZERO_VECTOR
NONFINITE, OVERFLOW = Reason.NONFINITE_PREDICTION, Reason.NORM_OVERFLOW


def scored(
    arrays: dict[str, np.ndarray],
    faults: list[int] | None = None,
    normalize: Normalize | None = None,
    dtype: str = "float32",
) -> Scored:
    rows = len(next(iter(arrays.values())))
    fields = tuple(Field(name, a.shape[1:], str(a.dtype)) for name, a in arrays.items())
    job = Job(input=Input(path="in"), normalize=normalize or Normalize(), output=Output(path="out"))
    carried = pa.table({"row": np.arange(rows)})
    chunk = Chunk(0, carried, arrays, np.array(faults or [0] * rows, np.uint8))
    layouts = [replace(spec, float_dtype=dtype) for spec in output_specs(job, fields)]
    predictions = IdentityPredictor(fields).predict(arrays)
    return score_chunk(chunk, (predictions, {}), layouts)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([3, 4], GOOD),
        ([0, 0], ZERO),
        ([-0.0, 0], ZERO),
        ([NAN, 1], NONFINITE),
        ([INF, 1], NONFINITE),
        ([-INF, NAN], NONFINITE),
        ([1e308, 1.7e308], OVERFLOW),
        ([5e-324, 0], GOOD),
    ],
    ids=str,
)
def test_each_row_has_its_reason(row: list[float], reason: Reason) -> None:
    result = scored({"x": np.array([[1.0, 1.0], row])}, dtype="float64")
    assert result.faults.tolist() == [GOOD, reason]


def test_what_is_wrong_with_the_input_comes_first() -> None:
    array = np.array([[0.0, 0.0], [NAN, 1.0], [0.0, 0.0]])
    null = Reason.NULL_FEATURE
    assert scored({"x": array}, [null, null, GOOD]).faults.tolist() == [null, null, ZERO]


@pytest.mark.parametrize("order", [["a", "b"], ["b", "a"]])
def test_a_row_that_is_bad_in_one_output_is_bad(order: list[str]) -> None:
    arrays = {
        "a": np.array([[1, 1], [0, 0], [0, 0], [1, 1]], np.float64),
        "b": np.array([[1, 1], [NAN, 1], [1, 1], [1.7e308, 1.7e308]]),
    }
    result = scored({name: arrays[name] for name in order})
    assert result.faults.tolist() == [GOOD, NONFINITE, ZERO, OVERFLOW]


def test_one_bad_vector_of_several_makes_the_row_bad() -> None:
    array = np.ones((4, 2, 3), np.float32)
    array[1, 1], array[2, 0, 0], array[3, 0], array[3, 1, 2] = 0, NAN, 0, INF
    result = scored({"x": array})
    assert result.faults.tolist() == [GOOD, ZERO, NONFINITE, NONFINITE]
    assert result.results["x"].norms.shape == (4, 2)
    assert result.results["x"].unit.shape == (4, 6)


def test_predictions_that_the_stored_dtype_cannot_hold_are_bad() -> None:
    array = np.array([[1.0, 2.0], [7e4, 1.0]], np.float32)
    result = scored({"x": array}, normalize=Normalize(norm="none"), dtype="float16")
    assert result.faults.tolist() == [GOOD, OVERFLOW]
    assert result.results["x"].norms.tolist() == [[1.0], [1.0]]


def test_filler_does_not_count() -> None:
    array = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0], [NAN, 1.0]])
    stats = scored({"x": array}, [GOOD, Reason.RAGGED_FEATURE, GOOD, GOOD]).statistics["x"]
    assert (stats.rows, stats.vectors, stats.zero, stats.nonfinite) == (3, 3, 1, 1)
    assert stats.norms["l2"].max == 5.0


def test_predictions_are_handed_on_as_they_were() -> None:
    array = np.array([[3.0, 4.0], [NAN, 1.0]], np.float32)
    result = scored({"x": array})
    assert result.predictions["x"].tobytes() == array.tobytes()
    assert result.results["x"].unit[0].tolist() == [np.float32(0.6), np.float32(0.8)]
    assert result.results["x"].norms[0].tolist() == [5.0]


@pytest.mark.parametrize("norm", ["l1", "l2", "max", "none"])
@pytest.mark.parametrize("values", [1, 6, 7, 1000])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, norm: str, values: int) -> None:
    rows = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    rows[4], rows[5, 1], rows[10] = 0, NAN, 1e-40
    whole = scored({"x": rows}, normalize=Normalize(norm=norm))
    monkeypatch.setattr(norms_norm, "_BLOCK_VALUES", values)
    cut = scored({"x": rows}, normalize=Normalize(norm=norm))
    for name in ("unit", "norms"):
        one, other = (getattr(each.results["x"], name) for each in (whole, cut))
        assert one.tobytes() == other.tobytes()
    assert cut.faults.tolist() == whole.faults.tolist()
    assert unsplit(cut.statistics["x"].to_dict()) == unsplit(whole.statistics["x"].to_dict())
    assert np.allclose(
        cut.statistics["x"].dimensions.mean, whole.statistics["x"].dimensions.mean, rtol=1e-14
    )
