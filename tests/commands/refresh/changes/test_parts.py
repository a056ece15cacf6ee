"""Where an input is cut."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchnorm_tool.chunk import Field
from batchnorm_tool.commands.refresh.changes import source
from batchnorm_tool.commands.refresh.changes.source import Callbacks
from batchnorm_tool.inputs.reading import Slice
from tests.commands.refresh.changes.nights import Nights, items


def slices(nights: Nights, sizes: list[int], group: int) -> list[list[tuple[int, int, int]]]:
    tables = [items(range(size + 1)).slice(0, size) for size in sizes]
    found = nights.tonight(*tables, options={"row_group_size": group}).parts
    assert [part.number for part in found] == list(range(len(found)))
    rows = 0
    for part in found:
        assert part.first_row == rows
        rows += part.rows
    assert rows == sum(sizes)
    return [[(piece.file, piece.start, piece.stop) for piece in part.slices] for part in found]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_MOST_PART_ROWS", 10)
    monkeypatch.setattr(source, "READ_AHEAD_BYTES", 4 * 72)  # a row of these takes 72 bytes


def test_whole_row_groups_together(nights: Nights) -> None:
    assert slices(nights, [20], 4) == [[(0, 0, 8)], [(0, 8, 16)], [(0, 16, 20)]]


def test_a_large_row_group_in_pieces_that_are_decoded_at_one_go(nights: Nights) -> None:
    assert slices(nights, [11], 11) == [[(0, 0, 4), (0, 4, 8)], [(0, 8, 11)]]


def test_small_files_together(nights: Nights) -> None:
    assert slices(nights, [3, 0, 3, 3, 3], 100) == [[(0, 0, 3), (2, 0, 3), (3, 0, 3)], [(4, 0, 3)]]


def test_no_rows_no_parts(nights: Nights) -> None:
    assert slices(nights, [0], 4) == []


def test_other_formats_are_cut_anywhere(nights: Nights) -> None:
    nights.find(nights.tonight(items(range(25))))
    again = replace(nights, features={"x": ("feature_0",)})
    found = again.of(str(nights.root / "state/night/changed")).parts
    assert sum(part.rows for part in found) == 25
    assert all(part.rows <= 10 for part in found)


def test_large_rows_make_small_parts_and_chunks(nights: Nights) -> None:
    images = replace(nights, inputs=(Field("x", (1024, 1024, 3), "float32"),))
    tonight = images.tonight(items([1, 2]))
    assert tonight.row_bytes == 3 * 4 * 2**20 + 64
    assert tonight.chunk_rows == 1
    assert [part.slices for part in tonight.parts] == [(Slice(0, 0, 2),)]


@pytest.mark.parametrize("group", [3, 40])
def test_the_hash_of_all_that_is_read_depends_on_no_thread(nights: Nights, group: int) -> None:
    tonight = nights.tonight(items(range(40)), options={"row_group_size": group})
    hashes = {tuple(tonight.process(tonight.content, n, Callbacks())) for n in (1, 2, 7, 7)}
    assert len(hashes) == 1
    edited = items(range(40), shops=["another", *(f"shop {n}" for n in range(1, 40))])
    other = nights.tonight(edited, options={"row_group_size": group})
    (found,) = hashes
    changed = tuple(other.process(other.content, 1, Callbacks()))
    assert changed[0] != found[0]
    assert changed[1:] == found[1:]
