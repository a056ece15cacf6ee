"""What a run and a store keep of themselves: any value at any place, behind a right checksum."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchnorm_tool import Job, history, read, refresh, run, show, verify
from batchnorm_tool.errors import BadRows
from batchnorm_tool.pipeline.output_schema import fixed_size_list
from batchnorm_tool.storage import checked_json
from tests.fuzz.fuzzing import fuzzed, mutated, only_our_errors
from tests.sealing import sealed, unsealed

WORDS = (
    *("part", "first_row", "bits", "counts", "reasons", "files", "statistics", "warnings", "path"),
    *("bytes", "sha256", "job", "resolved", "identity", "space", "result", "rows", "outputs"),
    *("vectors/part-000000.parquet", "../a", "l2", "vector", "float32", "versions", "layout"),
)


def job(folder: Path, **more: Any) -> Job:
    sections = {"input": {"path": "in.parquet", "key": "id", "features": "x"}, **more}
    return Job.from_dict(sections, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, one that stopped, and a store."""
    folder = tmp_path_factory.mktemp("fuzz")
    values = np.arange(24, dtype=np.float32).reshape(12, 2) + 1
    table = {"id": np.arange(12), "x": fixed_size_list(values)}
    pq.write_table(pa.table(table), folder / "in.parquet")
    run(job(folder, output={"path": "run", "part_rows": 4}))
    values[5] = np.nan
    pq.write_table(pa.table({**table, "x": fixed_size_list(values)}), folder / "bad.parquet")
    stopped = job(folder, output={"path": "stopped", "part_rows": 4}).to_dict()
    stopped["input"]["path"] = str(folder / "bad.parquet")
    with pytest.raises(BadRows):
        run(Job.from_dict(stopped))
    refresh(job(folder, store={"path": "store"}, publish=[{"to": "parquet", "path": "target"}]))
    return folder


def rewritten(path: Path, draw: Callable[[Any], Any]) -> None:
    """Write a document anew, changed, with the checksum that it then has."""
    text = path.read_bytes()
    is_record = checked_json.is_sealed(text)
    changed = draw(unsealed(text) if is_record else checked_json.verified_json(text))
    if isinstance(changed, dict) and changed:
        document = json.dumps(checked_json.with_checksum(changed)).encode()
        path.write_bytes(sealed(changed) if is_record else document)
        if path.name == "_manifest.json":
            (path.parent / "_SUCCESS").write_text(checked_json.sha256(changed))


def tried(
    folder: Path, name: str, document: str, draw: st.DrawFn, use: Callable[[Path], Any]
) -> None:
    """Use a copy of what lies at ``name`` after one of its documents was changed."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / name, copy / name)
    try:
        rewritten(copy / document, lambda data: draw(mutated(data, WORDS)))
    except ValueError:
        return  # no JSON of ours: NaN, or lone surrogates
    with only_our_errors():
        use(copy / name)


USES: dict[str, Callable[[Path], Any]] = {
    "show": show,
    "verify": verify,
    "read": lambda path: list(read(path).batches()),
}


@pytest.mark.parametrize("use", USES)
@fuzzed()
@given(data=st.data())
def test_a_manifest(folder: Path, use: str, data: st.DataObject) -> None:
    tried(folder, "run", "run/_manifest.json", data.draw, USES[use])


def resumed(path: Path) -> None:
    """Show an unfinished run, and go on with it under another policy."""
    show(path)
    sections = {"path": str(path.parent.parent / "bad.parquet"), "key": "id", "features": "x"}
    policies = {"nonfinite": "keep", "max_bad_fraction": 1}
    output = {"path": str(path), "part_rows": 4}
    run(Job.from_dict({"input": sections, "normalize": policies, "output": output}))


@pytest.mark.parametrize("document", ["plan.json", "records/000000.json"])
@fuzzed(40)
@given(data=st.data())
def test_an_unfinished_run(folder: Path, document: str, data: st.DataObject) -> None:
    tried(folder, "stopped", f"stopped/_state/{document}", data.draw, resumed)


STORE_USES: dict[str, Callable[[Path], Any]] = {
    "show": lambda state: show(str(state).removesuffix(".state")),
    "history": lambda state: history(str(state).removesuffix(".state")),
}


@pytest.mark.parametrize("use", STORE_USES)
@pytest.mark.parametrize("document", ["store.json", "nights/000001.json"])
@fuzzed(40)
@given(data=st.data())
def test_a_store(folder: Path, document: str, use: str, data: st.DataObject) -> None:
    tried(folder, "store.state", f"store.state/{document}", data.draw, STORE_USES[use])
