"""Tonight's input against the live version of a store: what is new, changed, touched, the same.

::

    slices -> chunks -> hashes -> kinds -> spool, fates, counts, statistics

Rows go by their keys, and are compared by hashes of what the model sees and of what is passed
through: how they are laid out in files makes no difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchnorm_tool.difference.document import DOCUMENT, FATES, Counts, Difference
from batchnorm_tool.difference.finding import Search
from batchnorm_tool.difference.kinds import Fate
from batchnorm_tool.difference.slice_work import Watch
from batchnorm_tool.difference.spool import BAD, CHANGED, TOUCHED
from batchnorm_tool.difference.statistics import InputStatistics
from batchnorm_tool.difference.tonight import Tonight

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchnorm_tool.storage import Storage

__all__ = [
    "BAD",
    "CHANGED",
    "DOCUMENT",
    "FATES",
    "TOUCHED",
    "Counts",
    "Difference",
    "Fate",
    "InputStatistics",
    "Tonight",
    "find_difference",
]


def find_difference(  # noqa: PLR0913  (what to compare, and how to go about it)
    tonight: Tonight,
    index_path: str | None,
    storage: Storage,
    *,
    recompute: bool = False,
    memory_bytes: int | None = None,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Difference:
    """Find what is different tonight, and spool the rows that need work.

    Written under ``night/``, the same bytes whatever ``workers`` and ``memory_bytes`` are: in
    ``changed``, ``touched`` and ``bad`` an Arrow file for each slice that has such rows (no
    directory where there are none), in the order of the input; ``fates.npy``, a `Fate` for each row
    of the index; and, last, ``difference.json``, without which nothing else counts.

    Args:
        tonight: The input.
        index_path: The index of the live version in ``storage``; ``None`` before the first.
        storage: The state of the store.
        recompute: Send rows with the same features to the model too, as in a new space.
        memory_bytes: About how much memory the live version may take; beyond it, its rows and
            tonight's are compared in buckets, in temporary files. Default: a quarter of what the
            machine has available.
        workers: Threads; default: one for each core.
        advance: Told the number of rows of each finished chunk, from several threads.
        stopped: Asked between chunks whether to give up, from several threads.

    Returns:
        What was found, as `Difference.load` reads it back.

    Raises:
        InputError: A key is null or occurs twice, or columns do not fit the store.
        BadRows: The model cannot take some rows that are new or changed, and ``tonight.invalid`` is
            ``"fail"``. Rows that are as they were do not count, whatever is wrong with them.
        Interrupted: ``stopped`` said so.
        WorkFailed: Reading or writing failed.
    """
    search = Search(tonight, storage, index_path, recompute, memory_bytes, workers)
    return search.run(Watch(advance, stopped))
