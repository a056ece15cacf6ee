from __future__ import annotations

import pyarrow as pa
import pytest

from batchnorm_tool.formats import format_named, parquet
from batchnorm_tool.formats.arrow_columns import free_name, vector_field, with_children


def test_a_column_of_arrays_is_a_flat_list_with_its_shape() -> None:
    field = vector_field("image", pa.uint8(), (8, 8))
    assert field.type == pa.list_(pa.uint8(), 64)
    assert field.metadata == {b"shape": b"[8, 8]"}
    assert vector_field("age", pa.uint8(), ()) == pa.field("age", pa.uint8())


@pytest.mark.parametrize(
    ("taken", "free"),
    [([], "reason"), (["id", "reason"], "reason_"), (["reason", "reason_"], "reason__")],
)
def test_a_free_name_ends_in_as_many_underscores_as_it_takes(taken: list[str], free: str) -> None:
    assert free_name("reason", taken) == free


@pytest.mark.parametrize(
    ("kind", "children", "expected"),
    [
        (pa.list_(pa.int8(), 2), [pa.field("item", pa.int64())], pa.list_(pa.int64(), 2)),
        (pa.list_view(pa.int8()), [pa.field("item", pa.int64())], pa.list_(pa.int64())),
        (pa.large_list(pa.int8()), [pa.field("item", pa.int64())], pa.large_list(pa.int64())),
        (pa.struct({"a": pa.int8()}), [pa.field("b", pa.int64())], pa.struct({"b": pa.int64()})),
    ],
    ids=str,
)
def test_a_type_keeps_its_kind_with_other_children(
    kind: pa.DataType, children: list[pa.Field], expected: pa.DataType
) -> None:
    assert with_children(kind, children) == expected


@pytest.mark.parametrize(
    ("name", "head"), [("arrow", b"ARROW1"), ("npy", b"\x93NUMPY\x01\x00"), ("parquet", b"PAR1")]
)
def test_a_format_recognises_how_its_files_begin(name: str, head: bytes) -> None:
    others = {"arrow", "npy", "parquet"} - {name}
    assert format_named(name).recognises(head, b"")
    assert not any(format_named(other).recognises(head, b"") for other in others)


@pytest.mark.parametrize(("columns", "size"), [(2, 1 << 20), (512, 1 << 17), (9999, 1 << 16)])
def test_many_columns_share_the_read_buffers(columns: int, size: int) -> None:
    assert parquet.buffer_bytes(columns) == size
