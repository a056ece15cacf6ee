"""A store as it lies on disk: its records, its files, its rows and its index, all against another.

Takes 72 bytes for each row of the live version.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import fitting_rows, numbered
from batchnorm_tool.commands.verify.findings import Findings, Place
from batchnorm_tool.commands.verify.vectors import CheckedRows, check_vectors
from batchnorm_tool.contract import CONTRACT
from batchnorm_tool.display import plural
from batchnorm_tool.errors import Damaged, WorkFailed
from batchnorm_tool.inputs.row_hash import as_ids, bytes_of, key_ids
from batchnorm_tool.inputs.row_ids import IdLookup, repeats
from batchnorm_tool.readers.store import Snapshot
from batchnorm_tool.storage import STATE, TEMPORARY
from batchnorm_tool.storage.checked_json import is_sealed
from batchnorm_tool.storage.files import unknown_files
from batchnorm_tool.store import state
from batchnorm_tool.store.checksums import check_files
from batchnorm_tool.store.index import KEY_ID, read_index
from batchnorm_tool.store.lance import latest_version
from batchnorm_tool.store.transaction import LIVE, tags, version_tag

_BATCH_BYTES = 16 * 2**20
_COMPARED = (state.NORM, state.FEATURE_HASH, state.PASSTHROUGH_HASH, state.STATUS)
_ENTRY = np.dtype(
    [("id", np.uint8, 16), ("hashes", np.uint8, 24), ("norm", np.float64), ("status", np.int16)]
)


@dataclass
class _Index:
    """The rows of the index that should be in the dataset, and which of them were seen there."""

    path: str
    keys: tuple[str, ...]
    places: IdLookup
    entries: np.ndarray
    words: dict[str, int]
    seen: np.ndarray

    @classmethod
    def load(cls, store: Snapshot) -> Self:
        """Read the index of a version, but for its quarantined rows."""
        storage, path = store.state.storage, state.index_path(store.version)
        blocks = [np.empty(0, _ENTRY)]
        words: dict[str, int] = {}
        for table in read_index(storage, path, [KEY_ID, *_COMPARED]):
            numbers = _numbers(table[state.STATUS], words)
            good = np.array([not word.startswith(state.QUARANTINED) for word in words])[numbers]
            block = np.empty(np.count_nonzero(good), _ENTRY)
            block["id"] = bytes_of(table[KEY_ID])[good]
            block["hashes"] = _hashes(table)[good]
            block["norm"] = _floats(table[state.NORM])[good]
            block["status"] = numbers[good]
            blocks.append(block)
        # Not into room for as many rows as the footer claims: it may be what is damaged.
        entries = np.concatenate(blocks)
        seen = np.zeros(len(entries), bool)
        return cls(path, store.keys, IdLookup(as_ids(entries["id"])), entries, words, seen)

    def compare(self, table: pa.Table, place: Place) -> None:
        """Report the rows of a batch that the index does not have, or has otherwise."""
        ids = key_ids(table, self.keys)
        found = self.places.find(ids)
        rows = np.flatnonzero(found >= 0)
        at = found[rows]
        place.report(np.flatnonzero(found < 0), f"its key is not in `{self.path}`.")
        repeated = self.seen[at]
        repeated[repeats(ids[rows])[:, 1]] = True
        place.report(rows[repeated], "an earlier row has the same key.")
        self.seen[at] = True
        for what, same in self._agreement(table, rows, at).items():
            place.report(rows[~same], f"its {what} differs from the one in `{self.path}`.")

    def _agreement(
        self, table: pa.Table, rows: np.ndarray, at: np.ndarray
    ) -> dict[str, np.ndarray]:
        entries = self.entries[at]
        hashes = _hashes(table)[rows] == entries["hashes"]
        norms = _floats(table[state.NORM])[rows]
        return {
            "hash of the features": hashes[:, :16].all(axis=1),
            "hash of the passed-through values": hashes[:, 16:].all(axis=1),
            "norm": norms.view(np.uint64) == entries["norm"].view(np.uint64),
            "status": _numbers(table[state.STATUS], self.words)[rows] == entries["status"],
        }

    def report_unseen(self, findings: Findings) -> None:
        """Report the rows of the index that are not in the dataset."""
        missing = int((~self.seen).sum())
        if missing:
            findings.add(f"Not in the dataset: {plural(missing, 'row')} of `{self.path}`.")


def _hashes(table: pa.Table) -> np.ndarray:
    return np.hstack([bytes_of(table[state.FEATURE_HASH]), bytes_of(table[state.PASSTHROUGH_HASH])])


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    """Return nulls as NaN."""
    return np.ascontiguousarray(column.to_numpy(), np.float64)


def _numbers(column: pa.ChunkedArray, words: dict[str, int]) -> np.ndarray:
    """Return a number for each word, the same for the same word; ``words`` takes in new ones."""
    encoded = column.combine_chunks()
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    numbers = [words.setdefault(str(word), len(words)) for word in encoded.dictionary.to_pylist()]
    places = encoded.indices.fill_null(len(numbers)).to_numpy()
    return np.array([*numbers, -1], np.int16)[places]


@dataclass
class StoreCheck:
    """A check of the live version of a store and all that belongs to it; it counts ``vectors``."""

    store: Snapshot
    findings: Findings
    vectors: int = 0

    def check_all(self) -> None:
        """Look at records, tags, files, rows and index; what one cannot read stops no other."""
        checks = (self._check_records, self._check_state, self._check_tags, self._check_dataset)
        for check in (*checks, self._check_rows):
            try:
                check()
            except (Damaged, WorkFailed) as error:
                self.findings.add(error.message)

    def _check_records(self) -> None:
        """Check that each version kept, waiting or live has an undamaged record that says so."""
        pointer, directory = self.store.pointer, self.store.state
        for path in directory.documents():
            place = f"{directory.root}/{path}"
            if Path(place).is_symlink():
                self.findings.add(f"`{place}` is not a regular file.")
            elif not is_sealed(directory.storage.get(path) or b""):
                self.findings.add(f"`{place}` is damaged: its checksum does not match.")
        for version in sorted({*range(1, pointer.next_version)} - {*directory.recorded()}):
            self.findings.add(f"`{state.record_path(version)}` is missing.")
        expected = dict.fromkeys(pointer.versions, "published")
        if pointer.waiting is not None:
            expected[pointer.waiting] = "waiting"
        for version, word in sorted(expected.items()):
            record = directory.record(version)
            found = None if record is None else record.state
            if found != word:
                text = f"Version {version} should be {word}, but its record says: {found}."
                self.findings.add(text)

    def _check_state(self) -> None:
        """Check that every other file of the state is as its record says, and there are no more."""
        pointer, directory = self.store.pointer, self.store.state
        root, known = Path(directory.root), {*directory.documents(), CONTRACT}
        for version in (*pointer.versions, *filter(None, [pointer.waiting])):
            lasting = {*state.kept_paths(version)}
            if version == pointer.live:
                lasting |= {*state.live_paths(version)}
            record = directory.record(version)
            for file in record.files if record else ():
                if version not in pointer.versions or file.path in lasting:
                    known.add(file.path)
                    self.findings.add_file(directory.root, file, "record of its version")
                if file.path == state.contract_path(pointer.live or 0):
                    live = replace(file, path=CONTRACT)
                    self.findings.add_file(directory.root, live, "record of the live version")
        # A refresh that was killed leaves these; the next one goes on with them, or removes them.
        version = pointer.waiting or pointer.next_version
        left = re.compile(f"{STATE}|{TEMPORARY}(/.*)?")
        waits = directory.record(pointer.waiting) if pointer.waiting else None
        is_whole = waits is not None and waits.norms is not None
        if directory.storage.names(state.STAGING) and not is_whole:
            after = "|".join((*state.live_paths(version), *state.kept_paths(version)))
            left = re.compile(f"{left.pattern}|{state.STAGING}(/.*)?|{after}")
        for path in unknown_files(root, known):
            if not left.fullmatch(path):
                text = f"`{directory.root}/{path}` does not belong to this store. Remove it."
                self.findings.add(text)

    def _check_tags(self) -> None:
        """Check that Lance's tags and newest version are those that the store says."""
        pointer, found = self.store.pointer, tags(self.store.path)
        expected = {version_tag(version): lance for version, lance in pointer.versions.items()}
        expected[LIVE] = self.store.lance_version
        for name, lance_version in expected.items():
            if found.get(name) != lance_version:
                self.findings.add(
                    f"The tag `{name}` names version {found.get(name)} in Lance, "
                    f"and {lance_version} in the store's records."
                )
        newest = latest_version(self.store.path)
        if newest != self.store.lance_version:
            self.findings.add(
                f"Readers see version {newest} in Lance, but {self.store.lance_version} is live "
                "in the store's records: another program wrote to it, or a refresh was killed. "
                "The next `refresh` completes or undoes a killed one."
            )

    def _check_dataset(self) -> None:
        """Check that every file of the dataset is as it was written, and there are no more."""
        for finding in check_files(self.store.path, self.store.state.storage):
            self.findings.add(finding)

    def _check_rows(self) -> None:
        """Check that every row is undamaged, and in the index as it is in the dataset."""
        index = _Index.load(self.store)
        output = self.store.outputs[0]
        layout = self.store.layout
        columns = [*layout.keys, layout.vector, *layout.stored(*_COMPARED)]
        batch_rows = fitting_rows(8 * output.width, _BATCH_BYTES)
        for first, batch in numbered(self.store.read(columns, batch_rows)):
            place = Place(self.findings, Path(self.store.path).name, first)
            checked = CheckedRows.of(batch, output, self._nulls(batch, place))
            check_vectors(checked, place)
            table = pa.Table.from_batches([batch]).drop_columns([layout.vector])
            index.compare(table.rename_columns([*layout.keys, *_COMPARED]), place)
            self.vectors += len(checked.rows)
        index.report_unseen(self.findings)

    def _nulls(self, batch: pa.RecordBatch, place: Place) -> np.ndarray:
        """Report nulls, which no row may have here; tells which rows have no vector."""
        columns = zip(batch.schema.names, batch, strict=True)
        null = {name: column.is_null().to_numpy(zero_copy_only=False) for name, column in columns}
        for name, where in null.items():
            place.report(np.flatnonzero(where), f"`{name}` is null.")
        return np.asarray(null[self.store.layout.vector])
