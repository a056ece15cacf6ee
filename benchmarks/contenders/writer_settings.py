"""How the tool has Parquet written; a test compares the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

GROUP_BYTES = 16 << 20


def open_writer(path: Path, schema: pa.Schema, plain: Sequence[str]) -> pq.ParquetWriter:
    """A writer with the tool's settings.

    Args:
        path: The file.
        schema: Of the rows.
        plain: Columns of vectors and norms, which have no dictionary.
    """
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=[name for name in schema.names if name not in plain],
        write_statistics=[name for name in schema.names if name != "vector"],
        write_page_checksum=True,
        write_batch_size=16384,
    )


def group_rows(width: int) -> int:
    """Rows of a row group with an id, a vector of so many float32, and a norm."""
    return GROUP_BYTES // (4 * width + 8 + 8)
