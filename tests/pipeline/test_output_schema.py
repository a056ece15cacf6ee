from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import InputError, JobError
from batchnorm_tool.job import Input, Job, Normalize, Output, OutputColumns, OutputNorm
from batchnorm_tool.norms.output_spec import OutputSpec
from batchnorm_tool.pipeline.output_schema import (
    Normalized,
    carried_schema,
    fixed_size_list,
    flat_field,
    output_schema,
    output_specs,
    output_table,
)

SCHEMA = pa.schema({"id": pa.int64(), "label": pa.string(), "x": pa.list_(pa.float32())})


def job(normalize: Normalize | None = None, columns: OutputColumns | None = None) -> Job:
    output = Output(path="out", columns=columns or OutputColumns())
    return Job(input=Input(path="in"), normalize=normalize or Normalize(), output=output)


def layouts(*shapes: tuple[int, ...], normalize: Normalize | None = None) -> list[OutputSpec]:
    names = ["one", "two", "three"]
    fields = [Field(name, shape, "float32") for name, shape in zip(names, shapes, strict=False)]
    return list(output_specs(job(normalize), fields))


@pytest.mark.parametrize(
    ("shape", "axis", "vectors", "width", "norm_per_vector"),
    [
        ((32,), -1, 1, 32, False),
        ((32,), "all", 1, 32, False),
        ((1,), -1, 1, 1, False),
        ((2, 16), -1, 2, 16, True),
        ((2, 16), "all", 1, 32, False),
        ((1, 16), -1, 1, 16, True),
        ((4, 3, 2), -1, 12, 2, True),
        ((4, 3, 2), "all", 1, 24, False),
    ],
)
def test_shape_and_axis_say_how_many_vectors_a_row_has(
    shape: tuple[int, ...], axis: int | str, vectors: int, width: int, *, norm_per_vector: bool
) -> None:
    (layout,) = layouts(shape, normalize=Normalize(axis=axis))
    assert (layout.vectors, layout.width) == (vectors, width)
    assert layout.norm_per_vector is norm_per_vector


def test_one_output_has_the_names_of_the_job_and_several_have_their_own() -> None:
    named = job(columns=OutputColumns(vector="embedding", norm="length"))
    (alone,) = output_specs(named, [Field("dense", (4,), "float32")])
    assert (alone.vector_column, alone.norm_column) == ("embedding", "length")
    both = output_specs(named, [Field(name, (4,), "float32") for name in ("a", "b")])
    assert [(one.vector_column, one.norm_column) for one in both] == [
        ("a", "a_norm"),
        ("b", "b_norm"),
    ]


def test_outputs_may_differ_in_norm_and_axis() -> None:
    own = {"two": OutputNorm(norm="l1", axis="all")}
    one, two = layouts((2, 4), (2, 4), normalize=Normalize(norm="max", outputs=own))
    assert (one.norm.label, one.axis) == ("max", -1)
    assert (two.norm.label, two.axis) == ("l1", "all")


def test_a_norm_for_an_output_that_is_not_there_is_refused() -> None:
    own = {"tow": OutputNorm(norm="l1")}
    with pytest.raises(JobError, match=r"`normalize.outputs.tow` .* Expected one of: one, two"):
        layouts((4,), (4,), normalize=Normalize(outputs=own))


def test_without_a_key_rows_carry_their_number() -> None:
    schema = carried_schema(Input(path="in", passthrough=["label"]), SCHEMA)
    assert schema == pa.schema([pa.field("row", pa.int64(), nullable=False), SCHEMA.field("label")])


def test_keys_come_first() -> None:
    schema = carried_schema(Input(path="in", key=["label", "id"], passthrough=["x"]), SCHEMA)
    assert schema.names == ["label", "id", "x"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"key": "idd"}, r"`input.key` names the column `idd`.*did you mean `id`"),
        ({"key": "id", "passthrough": ["labels"]}, r"`input.passthrough` .*did you mean `label`"),
        ({"key": "nothing like it"}, "Its columns are: id, label, x"),
    ],
    ids=["key", "passthrough", "far away"],
)
def test_a_missing_column_is_refused(spec: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        carried_schema(Input(path="in", **spec), SCHEMA)


def test_a_key_of_lists_is_refused() -> None:
    with pytest.raises(InputError, match=r"`x`, which cannot be a key.* Received: list<"):
        carried_schema(Input(path="in", key=["id", "x"]), SCHEMA)


def test_schema_of_vectors_and_norms() -> None:
    halves = [replace(layout, float_dtype="float16") for layout in layouts((4,), (2, 3))]
    schema = output_schema(pa.schema([]), halves)
    assert schema.names == ["one", "one_norm", "two", "two_norm"]
    assert schema.field("one").type == pa.list_(pa.float16(), 4)
    assert schema.field("one").metadata is None
    assert schema.field("one_norm").type == pa.float64()
    assert schema.field("two").type == pa.list_(pa.float16(), 6)
    assert schema.field("two").metadata == {b"shape": b"[2, 3]"}
    assert schema.field("two_norm").type == pa.list_(pa.float64(), 2)


@pytest.mark.parametrize("clash", ["vector", "norm"])
def test_two_columns_of_one_name_are_refused(clash: str) -> None:
    columns = job()
    outputs = output_specs(columns, [Field("dense", (4,), "float32")])
    with pytest.raises(JobError, match=f"would be named `{clash}`"):
        output_schema(pa.schema({clash: pa.int64()}), outputs)


def test_rows_are_laid_side_by_side() -> None:
    carried = pa.table({"id": [7, 8, 9]})
    one, two = layouts((2,), (2, 2))
    results = {
        "one": Normalized(np.float32([[1, 0], [0, 1], [0, 0]]), np.array([[5.0], [6], [0]])),
        "two": Normalized(np.arange(12, dtype=np.float32).reshape(3, 4), np.ones((3, 2))),
    }
    nulls = np.array([False, True, False])
    table = output_table(carried, [one, two], results, nulls)
    assert table.schema.equals(output_schema(carried.schema, [one, two]))
    assert table.to_pylist() == [
        {"id": 7, "one": [1, 0], "one_norm": 5.0, "two": [0, 1, 2, 3], "two_norm": [1, 1]},
        {"id": 8, "one": None, "one_norm": None, "two": None, "two_norm": None},
        {"id": 9, "one": [0, 0], "one_norm": 0.0, "two": [8, 9, 10, 11], "two_norm": [1, 1]},
    ]


def test_vectors_are_not_copied() -> None:
    values = np.ones((3, 4), np.float32)
    array = fixed_size_list(values)
    assert array.values.buffers()[1].address == values.ctypes.data
    assert array.null_count == 0


def test_a_flat_column_has_its_true_shape_in_the_metadata_alone() -> None:
    lists = pa.list_(pa.float16(), 32)
    shape = {b"shape": b"[2, 16]"}
    wanted = pa.field("vector", lists, metadata=shape)
    assert flat_field("vector", "float16", (2, 16)).equals(wanted, check_metadata=True)
    plain = flat_field("vector", "float16", (32,))
    assert plain.equals(pa.field("vector", lists), check_metadata=True)
