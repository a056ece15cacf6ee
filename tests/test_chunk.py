"""Counting rows on their way."""

from __future__ import annotations

import pyarrow as pa
import pytest

from batchnorm_tool.chunk import fitting_rows, numbered, python_values


def test_blocks_are_numbered_by_their_first_row() -> None:
    assert list(numbered(["ab", "cde"], 7)) == [(7, "ab"), (9, "cde")]


def test_as_many_rows_as_fit_and_at_least_one() -> None:
    fitting = fitting_rows(100, 1000), fitting_rows(100, 1000, 7), fitting_rows(5000, 1000)
    assert fitting == (10, 7, 1)


@pytest.mark.parametrize(
    "kind",
    [pa.timestamp("us"), pa.timestamp("s", "Not/AZone"), pa.duration("s"), pa.time64("ns")],
    ids=str,
)
def test_values_that_python_has_no_type_for_are_numbers(kind: pa.DataType) -> None:
    far = 3 * 10**17
    assert python_values(pa.array([1, far, None], kind)) == [1, far, None]
    assert python_values(pa.array(["a", None])) == ["a", None]
