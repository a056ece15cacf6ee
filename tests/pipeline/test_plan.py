from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchnorm_tool.chunk import Field
from batchnorm_tool.inputs.files import InputFile, Member, Partition
from batchnorm_tool.inputs.reading import Part, Slice
from batchnorm_tool.job import Job
from batchnorm_tool.pipeline.plan import Identity, Plan, ResolvedOptions, choose_part_rows
from tests.sealing import sealed, unsealed

RESOLVED = ResolvedOptions(
    batch_size=32,
    chunk_rows=64,
    part_rows=128,
    inputs=(Field("image", (8, 8, None), "float32"), Field("words", (), "string")),
    outputs=(Field("embedding", (4, 16), "float16"), Field("score", (1,), "float32")),
    features={"image": ("pixels",), "words": ("title", "body")},
    carried=pa.schema(
        [
            pa.field("id", pa.dictionary(pa.int8(), pa.string())),
            pa.field("when", pa.timestamp("us", tz="UTC"), nullable=False),
        ]
    ),
    device="cpu",
    threads=1,
    model_content="a" * 64,
    transform=None,
)


def plan_of(rows: Sequence[int], part_rows: int = 128, limit: int | None = None) -> Plan:
    files = tuple(
        InputFile(f"/in/{number:05d}.parquet", "parquet", 10 + count, count, f"{number:064x}")
        for number, count in enumerate(rows)
    )
    data: dict[str, Any] = {"input": {"path": "/in"}, "output": {"path": "/out"}}
    return Plan(
        job=Job.from_dict(data),
        files=files,
        resolved=replace(RESOLVED, part_rows=part_rows),
        identity=Identity({"norms": {}}, {"batch_size": 32}, {}, {"limit": limit}),
        options_fingerprint="f" * 64,
        limit=limit,
        warnings=("a warning",),
    )


def covered(plan: Plan) -> list[tuple[int, int]]:
    """File and row of every row of the plan, in the order in which the parts have them."""
    parts = [plan.part(number) for number in range(plan.part_count)]
    return [
        (piece.file, row)
        for part in parts
        for piece in part.slices
        for row in range(piece.start, piece.stop)
    ]


@given(
    rows=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    part_rows=st.integers(1, 64),
    limit=st.none() | st.integers(1, 200),
)
def test_every_row_is_in_one_slice_of_one_part_in_order(
    rows: list[int], part_rows: int, limit: int | None
) -> None:
    plan = plan_of(rows, part_rows, limit)
    expected = [(file, row) for file, count in enumerate(rows) for row in range(count)][:limit]
    assert plan.rows == len(expected)
    assert covered(plan) == expected
    parts = [plan.part(number) for number in range(plan.part_count)]
    assert all(piece.rows > 0 for part in parts for piece in part.slices)
    assert all(part.rows == part_rows for part in parts[:-1])
    assert [part.first_row for part in parts] == [part_rows * n for n in range(len(parts))]
    located = [
        part.locate(part.first_row + offset) for part in parts for offset in range(part.rows)
    ]
    assert located == expected


def test_thousands_of_tiny_files() -> None:
    rows = [number % 4 for number in range(20_000)]
    plan = plan_of(rows, part_rows=4096)
    assert plan.rows == 30_000
    assert plan.part_count == 8
    assert sum(plan.part(number).rows for number in range(8)) == 30_000
    assert plan.part(7).slices[-1] == Slice(19_999, 0, 3)


def test_no_rows_are_one_part_without_slices() -> None:
    plan = plan_of([0, 0])
    assert plan.part_count == 1
    assert plan.part(0) == Part(0, 0, ())
    assert plan.part(0).rows == 0


def test_a_row_of_another_part_is_not_located() -> None:
    with pytest.raises(IndexError, match="row 128 is not in part 0"):
        plan_of([300]).part(0).locate(128)


def test_names_sort_as_the_parts_do() -> None:
    plan = plan_of([10**9], part_rows=2048)
    stems = [plan.part(number).stem for number in (0, 9, 10, 99_999, 400_000)]
    assert stems == sorted(stems)
    assert stems[0] == "part-000000"


def test_a_plan_survives_json_and_pickling() -> None:
    plan = plan_of([5, 0, 900], limit=700)
    group = InputFile(
        path="/in/a.npy",
        format="npy",
        bytes=3,
        rows=7,
        fingerprint="0" * 64,
        partitions=(Partition("day", 3, "int64"), Partition("shop", None)),
        members=(
            Member("x", "/in/a.npy", 1, "1" * 64),
            Member("", "/in/k.parquet", 2, "2", "p", 9),
        ),
        dtype="bfloat16",
    )
    plan = replace(plan, files=(*plan.files, group))
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again is not None
    assert again.resolved.carried.equals(RESOLVED.carried, check_metadata=True)
    assert pickle.loads(pickle.dumps(plan)) == plan  # noqa: S301
    assert again.to_json() == plan.to_json()


def test_a_file_name_need_not_be_text() -> None:
    """Linux allows any bytes in a name; Python shows them as lone surrogates."""
    plan = plan_of([3])
    odd = replace(plan.files[0], path=b"/in/\xff.parquet".decode(errors="surrogateescape"))
    plan = replace(plan, files=(odd,))
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[:-1],
        lambda text: text.replace(b'"limit":null', b'"limit":7'),
        lambda text: b"[]",
        lambda text: b"\xff" + text,
    ],
    ids=["empty", "truncated", "changed", "no object", "no text"],
)
def test_a_damaged_plan_is_no_plan(damage: Any) -> None:
    assert Plan.from_json(damage(plan_of([3]).to_json())) is None


@pytest.mark.parametrize("change", ["misses", "has more", "has a bad job"])
def test_a_plan_of_another_version_is_no_plan(change: str) -> None:
    data = unsealed(plan_of([3]).to_json())
    if change == "misses":
        del data["request"]
    elif change == "has more":
        data["resolved"]["more"] = 1
    else:
        data["job"]["input"]["path"] = 7
    assert Plan.from_json(sealed(data)) is None


def test_bytes_expected_are_those_of_vectors_and_norms() -> None:
    assert plan_of([1000]).bytes_expected == 1000 * ((4 * 16 + 1) * 4 + 2 * 8)


@given(
    batch_size=st.sampled_from([1, 32, 100, 4096]),
    rows=st.integers(0, 10**10),
    rate=st.sampled_from([0.5, 10.0, 1e3, 1e6, math.inf]),
    row_bytes=st.sampled_from([1, 264, 10**5, 10**9]),
)
def test_parts_are_the_largest_within_time_bytes_and_share(
    batch_size: int, rows: int, rate: float, row_bytes: int
) -> None:
    chosen = choose_part_rows(batch_size, rows, rows_per_second=rate, bytes_per_row=row_bytes)

    def fits(part_rows: int) -> bool:
        seconds, share = part_rows / rate, part_rows * 24
        return seconds <= 60 and part_rows * row_bytes <= 256 * 2**20 and share <= rows

    multiple = chosen // batch_size
    assert chosen == multiple * batch_size
    assert multiple & (multiple - 1) == 0
    assert multiple >= 1
    assert chosen == batch_size or fits(chosen)
    assert not fits(2 * chosen)
