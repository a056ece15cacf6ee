"""Files of one input that store their columns in different ways, and are read as one table."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.errors import InputError
from batchnorm_tool.inputs import files, reading
from batchnorm_tool.inputs import table as inputs_table
from batchnorm_tool.inputs.files import Table
from batchnorm_tool.job import Input
from tests.command_line import invoke

VECTORS = pa.list_(pa.float32(), 2)
NOON = dt.datetime(2024, 1, 1, 12)  # noqa: DTZ001  (a column without a zone)


def write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def column(values: object, kind: pa.DataType, *, nullable: bool = True) -> pa.Table:
    array = values if isinstance(values, pa.Array) else pa.array(values, kind)
    return pa.table([array], pa.schema([pa.field("x", kind, nullable)]))


def opened(directory: Path, *tables: pa.Table) -> Table:
    for number, table in enumerate(tables):
        write(directory / f"{number}.arrow", table)
    return inputs_table.open_table(Input(path=str(directory)))


def read(table: Table) -> pa.Table:
    batches = [
        batch
        for file in map(files.InputFile.from_dict, [file.to_dict() for file in table.files])
        for batch in reading.read_rows(file, table.columns, 0, file.rows, 2)
    ]
    return pa.Table.from_batches(batches, table.schema)


def struct(kind: pa.DataType) -> pa.DataType:
    return pa.struct([("a", kind)])


ITEM = pa.field("element", pa.float32(), nullable=False)
AS_ONE: dict[str, tuple[pa.DataType, pa.DataType, pa.DataType, Sequence[object]]] = {
    "list child": (pa.list_(pa.float32()), pa.list_(ITEM), pa.list_(pa.float32()), [[1.0], []]),
    "fixed child": (VECTORS, pa.list_(ITEM, 2), VECTORS, [[1.0, 2.0]]),
    "list and fixed": (pa.list_(pa.float32()), VECTORS, pa.list_(pa.float32()), [[1.0, 2.0], None]),
    "large list": (VECTORS, pa.large_list(pa.float32()), pa.large_list(pa.float32()), [[1.0, 2.0]]),
    "list view": (VECTORS, pa.list_view(pa.float32()), pa.list_(pa.float32()), [[1.0, 2.0], None]),
    "items": (
        pa.list_(pa.float16(), 1),
        pa.list_(pa.float64(), 1),
        pa.list_(pa.float64(), 1),
        [[1.5]],
    ),
    "string": (pa.string(), pa.large_string(), pa.large_string(), ["a", None]),
    "string view": (pa.string(), pa.string_view(), pa.large_string(), ["a", "b" * 20, None]),
    "dictionary": (pa.dictionary("int8", "string"), pa.string(), pa.string(), ["a", None]),
    "binary": (pa.binary_view(), pa.binary(1), pa.large_binary(), [b"a", None]),
    "integers": (pa.int32(), pa.int64(), pa.int64(), [-1, None]),
    "unsigned": (pa.uint32(), pa.int8(), pa.int64(), [1, None]),
    "floats": (pa.float16(), pa.float32(), pa.float32(), [1.5, None]),
    "integer and float": (pa.int32(), pa.float32(), pa.float64(), [1, None]),
    "decimals": (pa.decimal32(5, 1), pa.decimal128(20, 3), pa.decimal128(20, 3), [Decimal("1.5")]),
    "units": (pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("ns"), [NOON, None]),
    "dates": (pa.date32(), pa.date64(), pa.date64(), [dt.date(2024, 1, 1)]),
    "times": (pa.time32("s"), pa.time64("us"), pa.time64("us"), [dt.time(1, 2, 3)]),
    "null": (pa.null(), VECTORS, VECTORS, [None, None]),
    "null items": (pa.list_(pa.null()), pa.list_(pa.int8()), pa.list_(pa.int8()), [[None], []]),
    "struct": (struct(pa.int8()), struct(pa.int32()), struct(pa.int32()), [{"a": 1}, None]),
}


@pytest.mark.parametrize("case", AS_ONE.values(), ids=AS_ONE)
@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
def test_what_differs_only_in_how_it_is_stored_is_read_as_one(
    tmp_path: Path,
    case: tuple[pa.DataType, pa.DataType, pa.DataType, Sequence[object]],
    *,
    turned: bool,
) -> None:
    one, two, expected, values = case
    kinds = (two, one) if turned else (one, two)
    found = opened(tmp_path, *(column(values, kind) for kind in kinds))
    assert found.schema.field("x").type == expected
    rows = read(found)
    rows.validate(full=True)
    assert rows["x"].to_pylist() == [*values, *values]


@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
def test_a_column_that_one_file_forbids_to_be_null_is_read_as_one(
    tmp_path: Path, *, turned: bool
) -> None:
    tables = [column([1, 2], pa.int64()), column([3], pa.int64(), nullable=False)]
    found = opened(tmp_path, *(tables[::-1] if turned else tables))
    assert found.schema.field("x").nullable
    assert sorted(read(found)["x"].to_pylist()) == [1, 2, 3]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (pa.int64(), pa.uint64()),
        (pa.int64(), pa.float64()),
        (pa.bool_(), pa.int8()),
        (pa.string(), pa.int8()),
        (pa.string(), pa.binary()),
        (pa.timestamp("s"), pa.timestamp("s", "UTC")),
        (pa.timestamp("s", "Europe/Berlin"), pa.timestamp("s", "UTC")),
        (pa.decimal256(76, 0), pa.decimal256(76, 9)),
        (VECTORS, pa.list_(pa.float32(), 3)),
        (pa.list_(pa.int64()), pa.list_(pa.float32())),
        (struct(pa.int8()), pa.struct([("b", pa.int8())])),
        (struct(pa.int8()), pa.int8()),
    ],
    ids=str,
)
def test_what_no_type_holds_exactly_is_refused_naming_both(
    tmp_path: Path, one: pa.DataType, two: pa.DataType
) -> None:
    with pytest.raises(InputError) as told:
        opened(tmp_path, column([None], one), column([None], two))
    for words in (*("0.arrow", "1.arrow", "column `x`"), f"Expected: {one}", f"Received: {two}"):
        assert words in told.value.message


def test_a_value_that_the_finer_unit_cannot_hold_is_refused_naming_file_and_row(
    tmp_path: Path,
) -> None:
    far = column(pa.array([0, 2**60], pa.timestamp("s")), pa.timestamp("s"))
    found = opened(tmp_path, column([NOON], pa.timestamp("ns")), far)
    with pytest.raises(InputError, match=r"1\.arrow, row 0 or one of the 1 after it, column `x`"):
        read(found)


ENCODED: dict[str, Callable[[], tuple[pa.Array, pa.DataType]]] = {
    "string view": lambda: (pa.array(["a", None], pa.string_view()), pa.large_string()),
    "list view": lambda: (pa.array([[1], None], pa.list_view(pa.int8())), pa.list_(pa.int8())),
    "views in views": lambda: (
        pa.array([[["a"], []], None], pa.list_view(pa.large_list_view(pa.string_view()))),
        pa.list_(pa.large_list(pa.large_string())),
    ),
    "view in a struct": lambda: (
        pa.array([{"a": "b"}], struct(pa.string_view())),
        struct(pa.large_string()),
    ),
    "dictionary of views": lambda: (
        pa.DictionaryArray.from_arrays([0, None, 0], pa.array(["a"], pa.string_view())),
        pa.large_string(),
    ),
    "dictionary of lists": lambda: (
        pa.DictionaryArray.from_arrays([1, None, 0], pa.array([[1.0, 2.0], [3.0, 4.0]], VECTORS)),
        VECTORS,
    ),
    "run ends of views": lambda: (
        pa.RunEndEncodedArray.from_arrays([2, 3], pa.array(["a", None], pa.string_view())),
        pa.large_string(),
    ),
    "small decimal": lambda: (pa.array([Decimal("1.5")], pa.decimal32(5, 1)), pa.decimal128(5, 1)),
}


@pytest.mark.parametrize("make", ENCODED.values(), ids=ENCODED)
def test_encodings_that_few_functions_take_are_plain_when_read(
    tmp_path: Path, make: Callable[[], tuple[pa.Array, pa.DataType]]
) -> None:
    array, expected = make()
    found = opened(tmp_path, column(array, array.type))
    assert found.schema.field("x").type == expected
    rows = read(found)
    rows.validate(full=True)
    assert rows["x"].to_pylist() == array.to_pylist()


def table(**columns: object) -> pa.Table:
    stored = {"id": pa.array([1, 2]), "emb": pa.array([[3.0, 4.0], [0.0, 2.0]], VECTORS)}
    return pa.table({**stored, "x": ["a", "b"], **columns})


def not_null(found: pa.Table) -> pa.Table:
    return found.cast(pa.schema([field.with_nullable(False) for field in found.schema]))  # noqa: FBT003


OTHER_FILES = {
    "not null": not_null(table()),
    "list child": table(emb=pa.array([[3.0, 4.0], [0.0, 2.0]], pa.list_(ITEM, 2))),
    "float64": table(emb=pa.array([[3.0, 4.0], [0.0, 2.0]], pa.list_(pa.float64()))),
    "smaller key": table(id=pa.array([1, 2], pa.int8())),
    "string view": table(x=pa.array(["a", "b"], pa.string_view())),
    "null passed through": table(x=pa.nulls(2)),
}


@pytest.mark.parametrize("other", OTHER_FILES.values(), ids=OTHER_FILES)
def test_commands_read_such_files_as_one(tmp_path: Path, other: pa.Table) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write(source / "0.arrow", table(id=pa.array([3, 4])))
    write(source / "1.arrow", other)
    done = invoke("normalize", source, out, "--key", "id", "--passthrough", "x", "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")
    rows = ds.dataset(out / "vectors").to_table()
    assert rows["id"].to_pylist() == [3, 4, 1, 2]
    assert rows["x"].to_pylist() == ["a", "b", *other["x"].to_pylist()]
    assert rows["norm"].to_pylist() == [5.0, 2.0] * 2
    assert invoke("show", source).exit_code == 0
    assert invoke("diff", source, source, "--key", "id").exit_code == 0
    compared = invoke("compare", source, "--key", "id", "--k", "1", "-o", tmp_path / "report")
    assert compared.exit_code == 0, compared.stderr


@pytest.mark.parametrize("column", ["x", "y"], ids=["other type", "in one file alone"])
def test_columns_that_the_job_does_not_use_may_differ(tmp_path: Path, column: str) -> None:
    source = tmp_path / "in"
    write(source / "0.parquet", table())
    write(source / "1.parquet", table(**{column: [1, 2]}))
    used = invoke("normalize", source, tmp_path / "out", "--passthrough", column)
    assert used.exit_code == 2
    assert f"{source}/1.parquet, column `{column}`: differs in type from" in used.stderr
    assert not (tmp_path / "out").exists()
    done = invoke("normalize", source, tmp_path / "out", "--key", "id")
    assert done.exit_code == 0, done.stderr
    shown = invoke("show", source)
    assert shown.exit_code == 0
    assert f"column `{column}`" in shown.stderr


@pytest.mark.parametrize(
    "beside",
    [
        pa.array([{}, None], pa.struct([])),
        pa.array([[{}], None], pa.list_(pa.struct([]))),
        pa.nulls(2),
        pa.array([[], []], pa.list_(pa.float32(), 0)),
        pa.RunEndEncodedArray.from_arrays([1, 2], ["a", "b"]),
        pa.UnionArray.from_sparse(pa.array([0, 0], pa.int8()), [pa.array([1, 2])]),
    ],
    ids=lambda array: str(array.type),
)
def test_any_column_may_stand_beside_the_vectors(tmp_path: Path, beside: pa.Array) -> None:
    write(tmp_path / "in.arrow", table(x=beside))
    done = invoke("normalize", tmp_path / "in.arrow", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert invoke("show", tmp_path / "in.arrow").exit_code == 0


def test_lists_without_width_in_parquet_are_refused_where_they_are_used(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    write(source, table(x=pa.array([[], []], pa.list_(pa.float32(), 0))))
    assert invoke("normalize", source, tmp_path / "out").exit_code == 0
    assert invoke("show", source).exit_code == 0
    done = invoke("normalize", source, tmp_path / "other", "--passthrough", "x")
    assert done.exit_code == 2
    assert f"{source}, column `x`: cannot be read from Parquet" in done.stderr


def test_a_key_of_nothing_but_nulls_is_refused_and_passed_through_it_is_null(
    tmp_path: Path,
) -> None:
    write(tmp_path / "in.arrow", table(x=pa.nulls(2)))
    source, out = tmp_path / "in.arrow", tmp_path / "out"
    assert invoke("normalize", source, out, "--passthrough", "x").exit_code == 0
    assert ds.dataset(out / "vectors").to_table()["x"].null_count == 2
    for command in (["normalize", source, tmp_path / "no"], ["diff", source, source]):
        done = invoke(*command, "--key", "x")
        assert done.exit_code == 2
        assert "names the column `x`, which cannot be a key" in done.stderr


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_what_parquet_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, form: str
) -> None:
    write(tmp_path / "in.arrow", table(x=pa.array([{}, None], pa.struct([]))))
    command = ["normalize", tmp_path / "in.arrow", tmp_path / "out", "--passthrough", "x"]
    done = invoke(*command, "--format", form)
    assert done.exit_code == 2
    assert "`x` cannot be stored in Parquet" in done.stderr
    assert not (tmp_path / "out" / "_state").exists()
    assert invoke(*command, "--format", "arrow").exit_code == 0
