from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.usefixtures("tensorflow")

INT64, FLOAT = pa.int64(), pa.float32()
THREE_MEGABYTES = 3_000_000


def fixed(width: int) -> pa.DataType:
    return pa.list_(FLOAT, width)


SCHEMAS = {
    "digits": {"pixels": fixed(64)},
    "digits_wide": {f"pixel_{i:02}": FLOAT for i in range(64)},
    "digits_halves": {"upper": fixed(32), "lower": fixed(32)},
    "digits_predictions": {"prediction": fixed(32)},
    "bad_rows": {"kind": pa.string(), "pixels": pa.list_(FLOAT)},
}


def matrix(table: pa.Table, name: str) -> np.ndarray:
    column = table[name].combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), -1)


@pytest.mark.parametrize("name", SCHEMAS)
def test_tables_have_the_promised_columns_and_nothing_else(samples: Path, name: str) -> None:
    schema = pq.read_schema(samples / f"{name}.parquet")
    assert schema.equals(pa.schema({"id": INT64, "label": INT64, **SCHEMAS[name]}))
    assert schema.metadata is None


def test_the_folder_stays_small(samples: Path) -> None:
    assert sum(path.stat().st_size for path in samples.rglob("*") if path.is_file()) < (
        THREE_MEGABYTES
    )


def test_pixels_are_the_digits_of_scikit_learn(samples: Path, pixels: np.ndarray) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    table = pq.read_table(samples / "digits.parquet")
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels * 16, digits.data)
    np.testing.assert_array_equal(table["label"], digits.target)
    np.testing.assert_array_equal(table["id"], np.arange(1797))


def test_every_layout_holds_the_same_pixels(samples: Path, pixels: np.ndarray) -> None:
    flat = matrix(pq.read_table(samples / "digits.parquet"), "pixels")
    wide = pq.read_table(samples / "digits_wide.parquet").drop_columns(["id", "label"])
    halves = pq.read_table(samples / "digits_halves.parquet")
    np.testing.assert_array_equal(flat, pixels)
    np.testing.assert_array_equal(np.stack([np.asarray(c) for c in wide.columns], axis=1), pixels)
    joined = np.hstack([matrix(halves, "upper"), matrix(halves, "lower")])
    np.testing.assert_array_equal(joined, pixels)
    assert np.load(samples / "digits.npy").shape == (1797, 8, 8, 1)


def test_norms_vary_with_the_image(predictions: np.ndarray) -> None:
    norms = np.linalg.norm(predictions.astype(np.float64), axis=1)
    assert norms.min() > 1
    assert norms.max() > 2 * norms.min()


def test_the_model_gives_the_stored_predictions(
    samples: Path, pixels: np.ndarray, predictions: np.ndarray
) -> None:
    import keras

    encoder = keras.models.load_model(samples / "digits_encoder.keras")
    np.testing.assert_allclose(
        encoder.predict(pixels, batch_size=256, verbose=0), predictions, rtol=1e-4, atol=1e-4
    )
    assert not encoder.compiled


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("digits_encoder", {"pixels": (64,)}, {"embedding": (32,)}),
        ("digits_image_encoder", {"image": (8, 8, 1)}, {"embedding": (32,)}),
        (
            "digits_two_inputs",
            {"upper": (32,), "lower": (32,)},
            {"embedding": (32,), "halves": (2, 16)},
        ),
    ],
)
def test_models_have_the_promised_inputs_and_outputs(
    samples: Path, name: str, inputs: dict[str, tuple[int]], outputs: dict[str, tuple[int]]
) -> None:
    import keras

    model = keras.models.load_model(samples / f"{name}.keras")
    assert {tensor.name: tensor.shape[1:] for tensor in model.inputs} == inputs
    shapes = [tensor.shape[1:] for tensor in model.outputs]
    assert dict(zip(model.output_names, shapes, strict=True)) == outputs
    assert zipfile.is_zipfile(samples / f"{name}.keras")


def test_bad_rows_are_bad_in_the_way_that_they_say(samples: Path) -> None:
    import keras

    rows = pq.read_table(samples / "bad_rows.parquet").to_pylist()
    encoder = keras.models.load_model(samples / "digits_encoder.keras")
    found = Counter((row["kind"], fault_of(row["pixels"], encoder)) for row in rows)
    kinds = {kind for kind, _ in found}
    assert found == Counter({(kind, kind): 10 if kind == "good" else 1 for kind in kinds})
    assert len(kinds) == 10
    assert [row["kind"] == "good" for row in rows] == [True, False] * 9 + [True]


def fault_of(pixels: list[float | None] | None, encoder: object) -> str:
    if pixels is None:
        return "null_list"
    if None in pixels:
        return "null_element"
    if len(pixels) != 64:
        return "ragged_short" if len(pixels) < 64 else "ragged_long"
    row = np.array([pixels], np.float32)
    for fault, found in {
        "nan": np.isnan(row).any(),
        "positive_infinity": np.isposinf(row).any(),
        "negative_infinity": np.isneginf(row).any(),
        "all_zeros": not row.any() and not encoder.predict(row, verbose=0).any(),  # type: ignore[attr-defined]
    }.items():
        if found:
            return fault
    prediction = encoder.predict(row, verbose=0)  # type: ignore[attr-defined]
    return "overflowing_prediction" if np.isinf(prediction).any() else "good"
