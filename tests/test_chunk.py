"""Counting rows on their way."""

from __future__ import annotations

from batchnorm_tool.chunk import fitting_rows, numbered


def test_blocks_are_numbered_by_their_first_row() -> None:
    assert list(numbered(["ab", "cde"], 7)) == [(7, "ab"), (9, "cde")]


def test_as_many_rows_as_fit_and_at_least_one() -> None:
    fitting = fitting_rows(100, 1000), fitting_rows(100, 1000, 7), fitting_rows(5000, 1000)
    assert fitting == (10, 7, 1)
