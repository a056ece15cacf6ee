"""Why nearly all known rows changed, where it shows: another type, or zeros of another sign."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from batchnorm_tool.commands.refresh.changes.result import CHANGED, ChangeSet
from batchnorm_tool.display import plural
from batchnorm_tool.features import FeatureReader
from batchnorm_tool.features.values import array_dtype
from batchnorm_tool.inputs.row_hash import bytes_of, feature_hashes, key_ids
from batchnorm_tool.inputs.row_ids import IdLookup
from batchnorm_tool.job import Input
from batchnorm_tool.storage import Storage
from batchnorm_tool.store.index import found_in_index
from batchnorm_tool.store.state import FEATURE_HASH, StoredRecord

_Arrays = dict[str, np.ndarray]
# Some rows change in any case, whatever is the cause of all others.
_NEARLY_ALL = 0.9
_COMPARED = 1000
_NAMED = 3
# What all zeros were, where nothing but their sign differs.
_ZEROS = {"-0.0 now, 0.0 then": 0.0, "0.0 now, -0.0 then": -0.0}


@dataclass(frozen=True)
class ChangeCause:
    """Looks for what nearly all changed rows have in common.

    ``live`` is the record of the live version, whose index lies at ``index_path``.
    """

    storage: Storage
    index_path: str
    keys: tuple[str, ...]
    live: StoredRecord

    def describe(self, found: ChangeSet) -> str | None:
        """Say why nearly all known rows changed; ``None`` where they did not, or nothing shows.

        That only the type or the sign of zeros differs is said where, with that undone, the hashes
        of some rows are those of the live version.
        """
        rows = found.counts
        known = rows.changed + rows.recomputed + rows.touched + rows.same
        if not rows.changed or rows.changed < _NEARLY_ALL * known:
            return None
        lead = f"{rows.changed:,} of {plural(known, 'known row')} changed"
        retyped = self._retyped(found)
        arrays, before = self._changed_rows(found)
        for what, then in self._undone(arrays, retyped) if len(before) else ():
            hashes = feature_hashes(then, np.zeros(len(before), np.uint8))
            same = int((hashes == before).all(axis=1).sum())
            if same and same >= _NEARLY_ALL * len(before):
                return f"{lead}; of {len(before):,} compared, {same:,} differ only in {what}."
        return f"{lead}; {retyped}." if retyped else None

    def _retyped(self, found: ChangeSet) -> str:
        """Name the columns, or else the inputs, that had another type in the live version."""
        old = {field.name: field.dtype for field in self.live.basis.resolved.inputs}
        new = {field.name: field.dtype for field in found.inputs}
        named = list(_others("column", self.live.input.types, found.types))
        named = named or list(_others("input", old, new))
        more = [f"{len(named) - _NAMED:,} more"] if len(named) > _NAMED else []
        return ", ".join([*named[:_NAMED], *more])

    def _changed_rows(self, found: ChangeSet) -> tuple[_Arrays, np.ndarray]:
        """Return what the model sees of some changed rows, and their hashes in the live version."""
        names = self.storage.names(CHANGED)
        if not names:  # all of them are bad
            return {}, np.zeros((0, 16), np.uint8)
        with pa.OSFile(str(self.storage.root / CHANGED / names[0])) as file:
            batch = pa.ipc.open_file(file).get_batch(0).slice(0, _COMPARED)
        table = pa.Table.from_batches([batch])
        places, is_known = IdLookup(key_ids(table, self.keys)), np.zeros(len(table), bool)
        hashes = np.zeros((len(table), 16), np.uint8)
        for at, known in found_in_index(self.storage, self.index_path, places, [FEATURE_HASH]):
            hashes[at], is_known[at] = bytes_of(known[FEATURE_HASH]), True
        columns = {name: (column,) for name, column in found.features.items()}
        reader = FeatureReader(columns, found.inputs, Input(path=CHANGED), check_nonfinite=False)
        return reader.read(table.filter(pa.array(is_known)))[0], hashes[is_known]

    def _undone(self, arrays: _Arrays, retyped: str) -> Iterator[tuple[str, _Arrays]]:
        """Yield what may be all that differs, and the rows without it: the simplest first."""
        sides = [("", arrays)]
        if retyped:
            sides.insert(0, (f"type: {retyped}", dict(self._as_then(arrays))))
        for what, each in sides:
            if what:
                yield what, each
            for sign, zero in _ZEROS.items():
                also = f"the sign of zeros: {sign}"
                yield f"{what}; and in {also}" if what else also, _with_zeros(each, zero)

    def _as_then(self, arrays: _Arrays) -> Iterator[tuple[str, np.ndarray]]:
        """Yield what the model would have seen in the types of the live version."""
        resolved, types = self.live.basis.resolved, self.live.input.types
        then = {field.name: array_dtype(field) for field in resolved.inputs}
        for name, array in arrays.items():
            kinds = {_number(types.get(column, "")) for column in resolved.features.get(name, ())}
            kind = kinds.pop() if len(kinds) == 1 else None
            with np.errstate(all="ignore"):
                # First as it was stored: what was rounded there was rounded for the model.
                stored = array if kind is None else array.astype(kind)
                yield name, stored.astype(then.get(name, array.dtype))


def _others(what: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for name, kind in new.items():
        if old.get(name, kind) != kind:
            yield f"{what} `{name}` was {old[name]}, is {kind} now"


def _number(kind: str) -> np.dtype | None:
    """Return the type of the numbers in a column, or in its lists; ``None`` for all else."""
    inner = kind.rpartition("<")[2].partition(">")[0]
    try:
        dtype = np.dtype(pa.type_for_alias(inner).to_pandas_dtype())
    except (ValueError, TypeError, NotImplementedError):
        return None
    return dtype if dtype.kind in "fiu" else None


def _with_zeros(arrays: _Arrays, zero: float) -> _Arrays:
    """Return the same numbers, every zero of them with the sign of ``zero``."""
    floats = {name: array for name, array in arrays.items() if array.dtype.kind == "f"}
    signed = {name: np.where(a == 0, a.dtype.type(zero), a) for name, a in floats.items()}
    return {**arrays, **signed}
