"""The data and the models, made once and the same every time: ``python -m benchmarks.data JSON``.

They are made in a process of their own, because models need TensorFlow, which takes memory and
threads that the one who measures must not have. What is made is kept in ``benchmarks/work`` under a
name that says all that it depends on.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.places import OURS_PYTHON, ROOT, WORK

SEED = 3
GROUP_ROWS = 50_000
UNEVEN = ("uneven", "uneven_npy")
UNEVEN_GROUP_ROWS = 65_536
# Of the logarithm of their lengths: the longest of 200,000 rows has four times the median length.
LENGTH_DEVIATION = 0.3
# Few enough that pyarrow keeps the dictionary, as it does for quantised features.
DISTINCT_VALUES = 1_000
IMAGE_SHAPE = (28, 28, 1)
# Of the recurrent models and the transformer: so many steps of the features, and so wide layers.
_STEPS, _UNITS = 16, 64
# Of so many rows, one is another from night to night.
CHANGED_OF = 100


@dataclass(frozen=True)
class Table:
    """A table of random floats, and how it lies on disk.

    Attributes:
        rows: Rows with ``id`` from 0 on.
        width: Floats of a row.
        layout: ``plain`` (row groups of 50,000 rows), ``one_group``, ``wide`` (a column for each
            float), ``text_keys`` (as plain, with strings for ids), ``dictionary`` (few distinct
            values, dictionary-encoded), ``npy`` (images),
            ``uneven`` (rows of lognormal lengths, row groups of 65,536) or ``uneven_npy`` (the
            same rows as a matrix).
        files: Files of equal size, in a directory if there are several.
        copies: How often the one file appears in the directory, each time as a hard link; ids
            repeat, and the disk holds the rows once.
        night: 1 for the table as it is; in every night after that 1 % of the rows get other floats,
            and the others keep what they had the night before.
    """

    rows: int
    width: int = 128
    layout: str = "plain"
    files: int = 1
    copies: int = 1
    night: int = 1

    @property
    def path(self) -> Path:
        """Where it lies: a file, or a directory of files."""
        name = f"{self.layout}-{self.rows}x{self.width}"
        if self.night > 1:
            name += f"-night-{self.night}"
        if self.files > 1:
            return WORK / "data" / f"{name}-in-{self.files}-files"
        if self.copies > 1:
            return WORK / "data" / f"{name}-times-{self.copies}"
        return WORK / "data" / f"{name}.{'npy' if self.is_npy else 'parquet'}"

    @property
    def is_npy(self) -> bool:
        """Whether it is an NPY file."""
        return self.layout.endswith("npy")

    @property
    def group_rows(self) -> int:
        """Rows that are made, and stored, at a time."""
        return UNEVEN_GROUP_ROWS if self.layout in UNEVEN else GROUP_ROWS

    @property
    def changed(self) -> np.ndarray:
        """The ids of the rows that are not as they were the night before, ascending."""
        return _changed(self.rows, self.night)

    @property
    def columns(self) -> list[str]:
        """The feature columns."""
        if self.layout == "wide":
            return [f"f{place:03}" for place in range(self.width)]
        return ["features"]


@functools.lru_cache(maxsize=64)
def _changed(rows: int, night: int) -> np.ndarray:
    random = np.random.default_rng((SEED, night))
    return np.sort(random.choice(rows, rows // CHANGED_OF, replace=False))


@dataclass(frozen=True)
class Model:
    """A Keras model with random weights.

    Attributes:
        kind: ``dense``, ``convolution`` (on images), ``gru``, ``lstm``, ``transformer`` (on 16
            steps), or ``lookup`` (of a string).
        widths: Of the dense layers, relu between them; the last is the vector's.
        features: Floats that come in; images have their own shape.
        baked: Whether it is the copy with the L2 norm in its graph.
    """

    kind: str
    widths: tuple[int, ...]
    features: int = 128
    baked: bool = False

    @property
    def path(self) -> Path:
        """Where it lies."""
        layers = "-".join(map(str, self.widths))
        end = "-baked" if self.baked else ""
        return WORK / "data" / f"{self.kind}-{self.features}-{layers}{end}.keras"

    @property
    def row_operations(self) -> int:
        """Multiplications and additions that the dense layers take for a row."""
        return 2 * sum(
            one * other for one, other in itertools.pairwise((self.features, *self.widths))
        )


DEEP = Model("dense", (512, 256, 64))
HEAVY = Model("dense", (2048, 2048, 256, 64))
SINGLE = Model("dense", (64,))
FAMILIES = {
    **{kind: Model(kind, (64,)) for kind in ("gru", "lstm", "transformer", "lookup")},
    "convolution": Model("convolution", (64,), math.prod(IMAGE_SHAPE)),
}
CONVOLUTION = Model("convolution", (64,), math.prod(IMAGE_SHAPE))


def made(thing: Table | Model) -> Path:
    """The path of a table or model, made first if it is not there.

    Raises:
        subprocess.CalledProcessError: It could not be made; standard error says why.
    """
    if not thing.path.exists():
        description = json.dumps({"is": type(thing).__name__, **asdict(thing)})
        sys.stderr.write(f"making {thing.path.name}\n")
        subprocess.run(
            [OURS_PYTHON, "-m", "benchmarks.data", description],
            cwd=ROOT,
            check=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
        )
    return thing.path


def make(thing: Table | Model) -> None:
    """Make a table or model; half of one never stands under its name."""
    thing.path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = thing.path.with_name("unfinished-" + thing.path.name)
    if unfinished.is_dir():
        shutil.rmtree(unfinished)
    if isinstance(thing, Model) and thing.baked:
        _bake(made(replace(thing, baked=False)), unfinished)
    elif isinstance(thing, Model):
        _save_model(thing, unfinished)
    elif thing.copies > 1:
        _link_copies(thing, unfinished)
    elif thing.is_npy:
        _write_npy(thing, unfinished)
    else:
        _write_parquet(thing, unfinished)
    unfinished.rename(thing.path)


def _bake(raw: Path, path: Path) -> None:
    from batchnorm_tool import bake

    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        bake(raw, f"{directory}/{raw.name}", "l2").files["keras"].rename(path)


def _save_model(model: Model, path: Path) -> None:
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(SEED)
    if model.kind == "convolution":
        front = [
            keras.Input(IMAGE_SHAPE),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
        ]
    else:
        front = _front(model)
    *hidden, last = model.widths
    dense = [layers.Dense(width, activation="relu") for width in hidden]
    whole = keras.Sequential([*front, *dense, layers.Dense(last)])
    whole.save(path)


def _front(model: Model) -> list[Any]:
    """Return the input, and what turns it into numbers for the dense layers."""
    import keras

    layers = keras.layers
    steps = [keras.Input((model.features,)), layers.Reshape((_STEPS, model.features // _STEPS))]
    if model.kind in ("gru", "lstm"):
        return [*steps, {"gru": layers.GRU, "lstm": layers.LSTM}[model.kind](_UNITS)]
    if model.kind == "transformer":
        return [*steps, layers.Dense(_UNITS), _attention(), layers.GlobalAveragePooling1D()]
    if model.kind == "lookup":
        words = [f"item {number}" for number in range(DISTINCT_VALUES)]
        table = layers.StringLookup(vocabulary=words)
        embedded = layers.Embedding(DISTINCT_VALUES + 1, _UNITS)
        return [keras.Input((1,), dtype="string"), table, embedded, layers.Flatten()]
    return steps[:1]


def _attention() -> Any:
    import keras

    layers = keras.layers
    x = keras.Input((_STEPS, _UNITS))
    y = layers.LayerNormalization()(x + layers.MultiHeadAttention(4, _UNITS // 4)(x, x))
    wide = layers.Dense(4 * _UNITS, activation="gelu")(y)
    return keras.Model(x, layers.LayerNormalization()(y + layers.Dense(_UNITS)(wide)))


def _link_copies(table: Table, path: Path) -> None:
    one = made(Table(table.rows, table.width, table.layout))
    path.mkdir()
    for number in range(table.copies):
        (path / f"rows-{number:04}.parquet").hardlink_to(one)


def _write_npy(table: Table, path: Path) -> None:
    row = IMAGE_SHAPE if table.layout == "npy" else (table.width,)
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (table.rows, *row)}
        np.lib.format.write_array_header_1_0(file, header)
        for _, values in _blocks(table):
            file.write(values.data)


def _write_parquet(table: Table, path: Path) -> None:
    if table.files > 1:
        path.mkdir()
        each = table.rows // table.files
        for number in range(table.files):
            part = Table(each, table.width, table.layout)
            target = path / f"rows-{number:05}.parquet"
            _write_file(part, target, seed=SEED + number, first=number * each)
    else:
        _write_file(table, path)


def _write_file(table: Table, path: Path, seed: int = SEED, first: int = 0) -> None:
    to_batch = _BATCHES.get(table.layout, _list_batch)
    schema = to_batch(first, np.zeros((1, table.width), np.float32)).schema
    # Dictionaries are of no use for random floats, and pyarrow gives them up after a megabyte.
    keep = True if table.layout == "dictionary" else ["id"]
    batches = (to_batch(first + start, values) for start, values in _blocks(table, seed))
    with pq.ParquetWriter(path, schema, use_dictionary=keep) as writer:
        if table.layout == "one_group":
            writer.write_table(pa.Table.from_batches(batches), row_group_size=table.rows)
        else:
            for batch in batches:
                writer.write_batch(batch)


def _blocks(table: Table, seed: int = SEED) -> Iterator[tuple[int, np.ndarray]]:
    """The floats, block by block, each with the number of its first row."""
    random = np.random.default_rng(seed)
    for start in range(0, table.rows, table.group_rows):
        shape = (min(table.group_rows, table.rows - start), table.width)
        if table.layout == "dictionary":
            steps = random.integers(0, DISTINCT_VALUES, shape).astype(np.float32)
            yield start, steps / np.float32(DISTINCT_VALUES)
            continue
        values = random.standard_normal(shape, dtype=np.float32)
        if table.layout in UNEVEN:
            values *= random.lognormal(0, LENGTH_DEVIATION, (len(values), 1)).astype(np.float32)
        _change(table, start, values)
        yield start, values


def _change(table: Table, start: int, values: np.ndarray) -> None:
    """Give the rows that changed since the first night other floats."""
    for night in range(2, table.night + 1):
        changed = _changed(table.rows, night)
        places = changed[(changed >= start) & (changed < start + len(values))] - start
        random = np.random.default_rng((SEED, night, start))
        values[places] = random.standard_normal((len(places), table.width), dtype=np.float32)


def _ids(first: int, values: np.ndarray) -> pa.Array:
    return pa.array(np.arange(first, first + len(values), dtype=np.int64))


def _list_batch(first: int, values: np.ndarray) -> pa.RecordBatch:
    flat = pa.array(np.ascontiguousarray(values).ravel())
    lists = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.RecordBatch.from_arrays([_ids(first, values), lists], ["id", "features"])


def _wide_batch(first: int, values: np.ndarray) -> pa.RecordBatch:
    names = Table(0, values.shape[1], "wide").columns
    columns = [pa.array(np.ascontiguousarray(column)) for column in values.T]
    return pa.RecordBatch.from_arrays([_ids(first, values), *columns], ["id", *names])


def _text_batch(first: int, values: np.ndarray) -> pa.RecordBatch:
    batch = _list_batch(first, values)
    ids = pa.array([f"item {number}" for number in batch.column(0).to_pylist()])
    return batch.set_column(0, "id", ids)


_BATCHES: dict[str, Callable[[int, np.ndarray], pa.RecordBatch]] = {
    "wide": _wide_batch,
    "text_keys": _text_batch,
}


def _described(text: str) -> Table | Model:
    fields = json.loads(text)
    if fields.pop("is") == "Table":
        return Table(**fields)
    return Model(**{**fields, "widths": tuple(fields["widths"])})


if __name__ == "__main__":
    make(_described(sys.argv[1]))
