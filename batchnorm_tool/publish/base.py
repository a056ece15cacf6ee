"""What a publish target gets, and what it promises."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from batchnorm_tool.errors import (
    BatchnormToolError,
    Busy,
    Interrupted,
    JobError,
    OutputError,
    WorkFailed,
    explained,
)
from batchnorm_tool.job.refresh_sections import Publish
from batchnorm_tool.store.state import FEATURE_HASH, PASSTHROUGH_HASH, StoreSchema, Unfit

if TYPE_CHECKING:
    from batchnorm_tool.store.version_changes import Publication

Facts = dict[str, object]


class Target(ABC):
    """A place outside the store that is brought to each published version.

    `publish` may be killed at any point and called again, with the same or a later version: it
    ends in the same state as if nothing had happened. Its readers see one version or the other.

    Args:
        section: What the job says of it.

    Attributes:
        section: The class of ``section``.
        name: The target's name in the job.
        kind: Its key in `batchnorm_tool.registry.TARGETS`.
        place: Where it is, without anything secret: another place holds nothing yet.
    """

    section: ClassVar[type[Publish]] = Publish
    name: str
    kind: str
    place: str

    def __init__(self, section: Publish) -> None:
        self.name, self.kind = section.label, section.to

    def check(self) -> None:  # noqa: B027  (most need nothing)
        """Look for what `publish` will need, without touching the place.

        Raises:
            JobError: A library, a setting or a right is missing.
        """

    def check_layout(self, layout: StoreSchema) -> None:  # noqa: B027
        """Refuse columns that the target cannot have."""

    def find_unfit(self, table: pa.Table, keys: Sequence[str]) -> Unfit | None:  # noqa: ARG002
        """Return the first value of keys and passed-through columns that the target cannot take."""
        return None

    @abstractmethod
    def publish(self, publication: Publication, held: Facts | None) -> Facts:
        """Bring the target to a version.

        Args:
            publication: The version.
            held: What the last `publish` that succeeded returned; ``None`` where nothing is known,
                and then all rows are written.

        Returns:
            Plain data with ``version``, ``rows`` and ``warnings`` at least.

        Raises:
            WorkFailed: It did not work; the message names the target and the next step.
            OutputError: Likewise, and running it again will not help.
        """


def published_schema(layout: StoreSchema) -> pa.Schema:
    """Return the columns that targets show: keys, vector, norm, status, version, passed-through."""
    # Both columns of hashes are left out: they tell the store what changed, and a reader nothing.
    internal = layout.stored(FEATURE_HASH, PASSTHROUGH_HASH)
    return pa.schema([field for field in layout.schema if field.name not in internal])


def published_batches(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the columns of ``schema`` of each batch that has rows."""
    for batch in batches:
        if batch.num_rows:
            yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)


def version_facts(publication: Publication) -> Facts:
    """Return what every target says of what it holds."""
    return {
        "version": publication.version,
        "rows": publication.rows,
        "run_id": publication.record.run_id,
        "warnings": [],
    }


@contextlib.contextmanager
def target_errors(name: str) -> Iterator[None]:
    """Map what goes wrong in a target to one error that names it."""
    try:
        yield
    except Interrupted:
        raise
    except (BatchnormToolError, OSError, pa.ArrowException, ValueError, ArithmeticError) as error:
        ours = error if isinstance(error, BatchnormToolError) else explained(error)
        raise failure(name, ours) from error


def failure(name: str, error: BatchnormToolError) -> BatchnormToolError:
    """Return the error of a target: one that running it again may help, or another."""
    msg = (
        f"publish target `{name}`: {error.message} The store itself is published; once the cause "
        "is fixed, the next `refresh` updates this target."
    )
    return WorkFailed(msg) if isinstance(error, WorkFailed | Busy) else OutputError(msg)


def check_path(name: str, path: str, *, is_file: bool = False) -> None:
    """Refuse a path that is on no local disk, or where something else lies."""
    place = Path(path)
    if place.is_dir() if is_file else place.is_file():
        wanted, found = ("a file", "a directory") if is_file else ("a directory", "a file")
        raise JobError(
            f"`publish`: target `{name}` needs {wanted} in `path`. Received: "
            f"`{path}`, which is {found}. Choose another path."
        )
    if "://" in path:
        raise JobError(
            f"`publish`: target `{name}` writes to a local path in this version. "
            f"Expected `path` without a scheme. Received: `{path}`. Write to a local path "
            "and copy it from there."
        )
