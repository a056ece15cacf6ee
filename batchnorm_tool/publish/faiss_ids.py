"""The ids of an index: the keys themselves, or numbers that a file explains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchnorm_tool.errors import OutputError

if TYPE_CHECKING:
    from batchnorm_tool.publish.contract import Publication

ROW_BITS = 40
ID_COLUMN = "faiss_id"
NO_RESULT = -1  # what FAISS returns where it found nothing


@dataclass(frozen=True)
class IdScheme:
    """How the rows of a version are numbered.

    Attributes:
        version: The version.
        key_schema: The key columns.
    """

    version: int
    key_schema: pa.Schema

    @classmethod
    def of(cls, publication: Publication) -> IdScheme:
        """The scheme of a publication."""
        return cls(publication.version, publication.layout.key_schema)

    @property
    def keys_are_ids(self) -> bool:
        """Whether there is one key column, of integers that fit into an ``int64``."""
        kinds = self.key_schema.types
        return len(kinds) == 1 and pa.types.is_integer(kinds[0]) and kinds[0] != pa.uint64()

    def ids(self, batch: pa.RecordBatch, first_row: int) -> np.ndarray:
        """The ids of rows.

        Args:
            batch: Rows with their keys.
            first_row: The number of the first one in the version.

        Returns:
            ``int64[n]``.

        Raises:
            OutputError: A key is -1.
        """
        if not self.keys_are_ids:
            start = (self.version << ROW_BITS) + first_row
            return np.arange(start, start + batch.num_rows, dtype=np.int64)
        name = self.key_schema.names[0]
        ids: np.ndarray = batch.column(name).to_numpy(zero_copy_only=False).astype(np.int64)
        if (ids == NO_RESULT).any():
            raise OutputError(self.no_result)
        return ids

    @property
    def no_result(self) -> str:
        """Why a key may not be -1."""
        return (
            f"the key `{self.key_schema.names[0]}` is {NO_RESULT} in a row, which FAISS returns "
            "where it finds nothing. Expected other integers. Give that row another key, or use "
            "text keys."
        )

    @property
    def file_schema(self) -> pa.Schema:
        """The columns of the file that explains ids."""
        name = ID_COLUMN
        while name in self.key_schema.names:
            name += "_"
        return pa.schema([pa.field(name, pa.int64()), *self.key_schema])

    def explained(self, batch: pa.RecordBatch, ids: np.ndarray) -> pa.Table:
        """Ids with their keys."""
        keys = [batch.column(name) for name in self.key_schema.names]
        return pa.table([pa.array(ids), *keys], schema=self.file_schema)
