"""A night's files may store their columns in different ways."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from batchnorm_tool import refresh
from tests.commands.refresh.nightly import Nightly, items


def test_files_that_differ_only_in_how_they_are_stored_are_one_night(nightly: Nightly) -> None:
    nightly.put(items({1: 0, 2: 0}))
    other = items({3: 0})
    fields = [field.with_nullable(False) for field in other.schema]  # noqa: FBT003
    pq.write_table(other.cast(pa.schema(fields)), nightly.path / "in" / "other.parquet")
    assert refresh(nightly.job()).rows["new"] == 3


def test_string_views_are_the_strings_of_last_night(nightly: Nightly) -> None:
    nightly.put(items({1: 0, 2: 0}))
    refresh(nightly.job())
    (nightly.path / "in" / "items.parquet").unlink()
    night = items({1: 0, 2: 1})
    night = night.set_column(2, "label", night["label"].cast(pa.string_view()))
    with pa.ipc.new_file(nightly.path / "in" / "items.arrow", night.schema) as writer:
        writer.write_table(night)
    rows = refresh(nightly.job()).rows
    assert (rows["changed"], rows["new"], rows["live"]) == (1, 0, 2)
