"""The only door to Lance: importing it, opening datasets, and what it says as errors of ours."""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchnorm_tool.errors import BatchnormToolError, Damaged, JobError, OutputError, WorkFailed

# Where in Lance's own source an error arose: of no use to whoever reads the message.
_SOURCE = re.compile(r",? ?/[^\s,]+\.rs:\d+:\d+")
# What the operating system says when the files themselves may be intact.
_SYSTEM = re.compile(
    r"No space left|quota exceeded|Too many open files|Permission denied|Cannot allocate memory"
    r"|Read-only file system",
    re.IGNORECASE,
)
_MISSING = re.compile(r"not found|No such file", re.IGNORECASE)
# Lance raises any of these for any failure.
_RAISED = (OSError, RuntimeError, ValueError, KeyError, NotImplementedError, pa.ArrowException)


def lance() -> Any:
    """Return the library itself."""
    # Lance writes its warnings to standard error itself; what matters comes as an exception, too.
    os.environ.setdefault("LANCE_LOG", "error")
    try:
        import lance as library
    except ImportError as error:
        raise _not_installed() from error
    return library


def _not_installed() -> JobError:
    return JobError(
        "An embedding store needs the library Lance, which is not installed. "
        "Run: pip install 'batchnorm-tool[refresh]'"
    )


def check_installed() -> None:
    """Find out that the library is missing before anything is written, without importing it."""
    with contextlib.suppress(ValueError):  # what stands under its name is no module
        if importlib.util.find_spec("lance") is not None:
            return
    raise _not_installed()


def reading(path: str) -> contextlib.AbstractContextManager[None]:
    """Map what Lance says while it reads: what cannot be read is damaged."""
    return _mapped(path, "Reading", Damaged)


def writing(path: str) -> contextlib.AbstractContextManager[None]:
    """Map what Lance says while it writes."""
    return _mapped(path, "Writing", WorkFailed)


@contextlib.contextmanager
def _mapped(path: str, doing: str, otherwise: type[BatchnormToolError]) -> Iterator[None]:
    try:
        yield
    except BatchnormToolError:
        raise
    except BaseException as error:
        # Rust gives up so on something impossible, such as a file of other bytes.
        if not isinstance(error, _RAISED) and type(error).__name__ != "PanicException":
            raise
        cause = _SOURCE.sub("", str(error)).strip() or type(error).__name__
        raise _error(path, doing, cause, otherwise) from error


def _error(
    path: str, doing: str, cause: str, otherwise: type[BatchnormToolError]
) -> BatchnormToolError:
    if _SYSTEM.search(cause):
        otherwise = WorkFailed
    elif _MISSING.search(cause):
        otherwise = Damaged
    if otherwise is Damaged:
        return Damaged(
            f"The store `{path}` cannot be read: {cause}. If a refresh has removed this version "
            "meanwhile, read again; otherwise find the damaged files with `batchnorm-tool "
            "verify`, and restore them from a backup."
        )
    return WorkFailed(
        f"{doing} the store `{path}` failed: {cause}. The live version is unchanged; fix the "
        "cause and run the same command again."
    )


def latest_version(path: str) -> int | None:
    """Return Lance's number of the version that readers get; ``None`` where no dataset is."""
    # From the names of the files alone: a night with nothing to do does not import Lance.
    place = Path(path)
    numbers = [int(manifest.stem) for manifest in (place / "_versions").glob("*.manifest")]
    if numbers:
        # The names count down from 2**64 - 1; those of older releases count up.
        return max((1 << 64) - 1 - number if number >> 63 else number for number in numbers)
    # What a first refresh left that was killed is no dataset; anything else is another's.
    names = {each.name for each in place.iterdir()} if place.is_dir() else {"a file"}
    others = sorted(names - {"data", "_deletions", "_transactions", "_versions", "_refs"})
    if place.exists() and others:
        raise OutputError(
            f"`{path}` is not a Lance dataset. Expected: a Lance dataset, or nothing. "
            f"Received: {', '.join(others[:5])}. Choose another `store.path`."
        )
    return None


def open_dataset(path: str, lance_version: int | None = None) -> Any:
    """Open a version of the dataset; the newest where none is named."""
    with reading(path):
        return lance().dataset(path, version=lance_version)


def write_fragments(
    place: Any, schema: pa.Schema, batches: Iterable[pa.RecordBatch], mode: str = "append"
) -> list[Any]:
    """Write rows as new fragments of a dataset, which nobody sees before a commit names them."""
    path = place if isinstance(place, str) else place.uri
    filled = (batch for batch in batches if batch.num_rows)
    rows = (_aligned(batch.select(schema.names).cast(schema)) for batch in filled)
    first = next(rows, None)
    if first is None:
        return []
    failures: list[BaseException] = []
    reader = pa.RecordBatchReader.from_batches(schema, _noting_failure(first, rows, failures))
    with _raising(failures), writing(path):
        write = lance().fragment.write_fragments
        return list(write(reader, place, schema, mode=mode, data_storage_version="stable"))


def _aligned(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Align decimals to 16 bytes, as Rust takes them; Arrow files do not."""
    every = pa.array(range(batch.num_rows), pa.int64())
    columns = [
        column.take(every) if "decimal" in str(column.type) else column for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _noting_failure(
    first: pa.RecordBatch, rest: Iterator[pa.RecordBatch], failures: list[BaseException]
) -> Iterator[pa.RecordBatch]:
    """Yield all batches; an error on the way would come out of Lance as text."""
    try:
        yield first
        yield from rest
    except BaseException as error:
        failures.append(error)
        raise


@contextlib.contextmanager
def _raising(failures: list[BaseException]) -> Iterator[None]:
    """Raise the error that stopped the rows, rather than what became of it on its way."""
    try:
        yield
    except BaseException:
        if failures:
            raise failures[0] from None
        raise
