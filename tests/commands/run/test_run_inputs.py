from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

from batchnorm_tool import read, verify
from batchnorm_tool.commands.run.run import RunResult
from tests.commands.plain_script import ROWS, assert_same_bits, normalized, predict, vector_column

pytestmark = pytest.mark.usefixtures("tensorflow")


def as_parquet(folder: Path, array: np.ndarray) -> object:
    pq.write_table(pa.table({"x": vector_column(array)}), folder / "a.parquet", row_group_size=500)
    return str(folder / "a.parquet")


def as_lists(folder: Path, array: np.ndarray) -> object:
    table = pa.table({"x": pa.array(list(array.astype(np.float64)))})
    pq.write_table(table, folder / "a.parquet")
    return str(folder / "a.parquet")


def as_large_lists_under_another_name(folder: Path, array: np.ndarray) -> object:
    column = pa.array(list(array), pa.large_list(pa.float32()))
    pq.write_table(pa.table({"x": column}), folder / "table.npy")
    return str(folder / "table.npy")


def as_feather(folder: Path, array: np.ndarray) -> object:
    pyarrow.feather.write_feather(pa.table({"x": vector_column(array)}), folder / "a.feather")
    return str(folder / "a.feather")


def as_arrow(folder: Path, array: np.ndarray) -> object:
    table = pa.table({"x": vector_column(array)})
    with pa.ipc.new_file(folder / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=123)
    return str(folder / "a.arrow")


def as_several_files(folder: Path, array: np.ndarray) -> object:
    for number, block in enumerate(np.array_split(array, [1, 1, 700])):
        pq.write_table(pa.table({"x": vector_column(block)}), folder / f"{number}.parquet")
    return str(folder)


def as_glob(folder: Path, array: np.ndarray) -> object:
    as_several_files(folder, array)
    return str(folder / "*.parquet")


def as_list_of_files(folder: Path, array: np.ndarray) -> object:
    as_several_files(folder, array)
    return sorted(map(str, folder.iterdir()), reverse=True)


def as_npy(array_of: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path, np.ndarray], object]:
    def save(folder: Path, array: np.ndarray) -> object:
        np.save(folder / "a.npy", array_of(array))
        return str(folder / "a.npy")

    return save


INPUTS = {
    "parquet": as_parquet,
    "lists of float64": as_lists,
    "large lists in a misnamed file": as_large_lists_under_another_name,
    "feather": as_feather,
    "arrow": as_arrow,
    "directory": as_several_files,
    "glob": as_glob,
    "list of files": as_list_of_files,
    "npy": as_npy(np.asarray),
    "npy float16": as_npy(lambda array: array.astype(np.float16)),
    "npy float64": as_npy(lambda array: array.astype(np.float64)),
    "npy Fortran order": as_npy(np.asfortranarray),
    "npy big-endian": as_npy(lambda array: array.astype(">f4")),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_each_kind_of_input(
    tmp_path: Path, encode: Callable[..., RunResult], pixels: np.ndarray, raw: np.ndarray, kind: str
) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    result = encode(INPUTS[kind](folder, pixels))
    keys, vectors, norms = read(result.path).to_numpy()
    expected, lengths = normalized(raw, "l2")
    assert_same_bits(keys, np.arange(ROWS))
    assert_same_bits(vectors, expected)
    assert_same_bits(norms, lengths)


def test_bfloat16_arrays_are_named_in_the_job(
    tmp_path: Path, encode: Callable[..., RunResult], pixels: np.ndarray, raw: np.ndarray
) -> None:
    np.save(tmp_path / "a.npy", pixels.astype(ml_dtypes.bfloat16))  # sixteenths: exact
    result = encode("a.npy", input={"dtype": "bfloat16"})
    assert_same_bits(read(result.path).to_numpy()[1], normalized(raw, "l2")[0])


def test_wide_tables_are_stacked_in_order(
    samples: Path, encode: Callable[..., RunResult], raw: np.ndarray
) -> None:
    spec = {"key": "id", "passthrough": ["label"]}
    result = encode(str(samples / "digits_wide.parquet"), input=spec)
    assert_same_bits(read(result.path).to_numpy()[1], normalized(raw, "l2")[0])


def test_hive_partitions_are_columns(
    tmp_path: Path, encode: Callable[..., RunResult], pixels: np.ndarray, raw: np.ndarray
) -> None:
    for day, start in ((2, 0), (10, 40)):
        folder = tmp_path / "hive" / f"day={day}"
        folder.mkdir(parents=True)
        rows = pa.table({"id": range(start, start + 40), "x": vector_column(pixels[start:][:40])})
        pq.write_table(rows, folder / "a.parquet")
    result = encode("hive", input={"key": "id", "passthrough": ["day"]})
    frame = read(result.path).to_pandas()
    assert frame["day"].tolist() == [10] * 40 + [2] * 40  # paths in lexicographic order
    assert frame["id"].tolist() == [*range(40, 80), *range(40)]
    expected = normalized(raw, "l2")[0][[*range(40, 80), *range(40)]]
    assert_same_bits(np.stack(frame["vector"].to_list()), expected)


@pytest.mark.parametrize("kind", ["npy", "parquet", "named"])
def test_a_keys_file_stands_beside_arrays(
    tmp_path: Path, encode: Callable[..., RunResult], pixels: np.ndarray, kind: str
) -> None:
    np.save(tmp_path / "a.npy", pixels[:3])
    names = np.array(["x", "y", "z"])
    if kind == "parquet":
        pq.write_table(pa.table({"shop": [1, 1, 2], "name": names}), tmp_path / "keys")
    else:
        with (tmp_path / "keys").open("wb") as file:
            np.save(file, names)
    spec = {"keys": "keys"} | ({"key": "item"} if kind == "named" else {})
    result = encode("a.npy", input=spec)
    keys = read(result.path).to_numpy()[0].tolist()
    assert keys == ([(1, "x"), (1, "y"), (2, "z")] if kind == "parquet" else ["x", "y", "z"])
    columns = {"npy": ["key"], "parquet": ["shop", "name"], "named": ["item"]}[kind]
    assert read(result.path).schema.names == [*columns, "vector", "norm"]
    assert verify(result.path, keys=True).keys


def test_a_transform_feeds_the_model(
    tmp_path: Path,
    encode: Callable[..., RunResult],
    encoder: keras.Model,
    pixels: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = (
        "import numpy as np\n\ndef halve(table):\n    rows = np.stack(table['x'].to_pylist())\n"
    )
    source += "    return {'pixels': (rows / 2).astype('float32')}\n"
    (tmp_path / "halving_of_test.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    as_parquet(tmp_path, pixels[:300])
    result = encode("a.parquet", input={"transform": "halving_of_test:halve"})
    expected = normalized(predict(encoder, pixels[:300] / 2), "l2")[0]
    assert_same_bits(read(result.path).to_numpy()[1], expected)
    assert result.manifest["identity"]["space"]["input.transform"]


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def test_encoded_images_are_decoded(
    samples: Path, tmp_path: Path, encode: Callable[..., RunResult], pixels: np.ndarray
) -> None:
    images = (pixels[:10] * 16).astype(np.uint8).reshape(-1, 8, 8)
    blobs = [*map(png, images), b"no image"]
    pq.write_table(pa.table({"png": blobs}), tmp_path / "a.parquet")
    path = samples / "digits_image_encoder.keras"
    spec = {"decode": {"png": "png"}, "invalid": "quarantine"}
    fate = {"max_bad_fraction": 0.1}
    result = encode("a.parquet", input=spec, model={"path": str(path)}, normalize=fate)
    model = keras.models.load_model(path, compile=False)
    expected = predict(model, images[..., np.newaxis].astype(np.float32))
    assert_same_bits(read(result.path).to_numpy()[1], normalized(expected, "l2")[0])
    assert result.manifest["reasons"]["undecodable_image"] == 1


def test_arrays_of_images_and_flat_columns_feed_an_image_model_alike(
    samples: Path, tmp_path: Path, encode: Callable[..., RunResult], pixels: np.ndarray
) -> None:
    path = samples / "digits_image_encoder.keras"
    images = pixels.reshape(-1, 8, 8, 1)
    expected = normalized(predict(keras.models.load_model(path, compile=False), images), "l2")[0]
    for number, name in enumerate(["digits.npy", "digits.parquet"]):
        output = {"path": f"out-{number}", "format": "npy"}
        spec = {"features": "pixels", "key": "id"} if number else {}
        model = {"path": str(path)}
        result = encode(str(samples / name), input=spec, model=model, output=output)
        assert_same_bits(read(result.path).to_numpy()[1], expected)


@pytest.mark.parametrize("form", ["parquet", "arrow", "npy"])
def test_no_rows_give_a_valid_empty_result(
    tmp_path: Path, encode: Callable[..., RunResult], form: str
) -> None:
    as_parquet(tmp_path, np.zeros((0, 64), np.float32))
    result = encode("a.parquet", output={"format": form})
    keys, vectors, norms = read(result.path).to_numpy()
    assert (keys.shape, vectors.shape, norms.shape) == ((0,), (0, 32), (0,))
    assert result.warnings == ("The input has no rows: the result is valid, but empty.",)
    assert verify(result.path).rows == 0
