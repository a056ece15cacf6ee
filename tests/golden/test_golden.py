"""What a result looks like on disk, held against the text files beside this one.

Readers, and later versions of this tool, rely on it. After a change that is meant, write them anew:
`UPDATE_GOLDEN=1 pytest tests/golden`, and look at the difference.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.commands.run.run import run
from batchnorm_tool.job import Job
from batchnorm_tool.pipeline.output_schema import fixed_size_list

HERE = Path(__file__).parent
ROWS = 12
ONE: dict[str, Any] = {"input": {"features": "x"}}
SEVERAL: dict[str, Any] = {
    "input": {"features": {"left": "x", "grid": "y"}},
    "normalize": {"norm": "l1", "outputs": {"left": {"norm": "lp", "p": 3}}},
}
CASES: dict[str, dict[str, Any]] = {
    "one_output_parquet": {**ONE, "output": {"format": "parquet"}},
    "one_output_arrow": {**ONE, "output": {"format": "arrow"}},
    "one_output_npy": {**ONE, "output": {"format": "npy", "dtype": "float16"}},
    "rank_3_parquet": {"input": {"features": "y"}, "output": {"format": "parquet"}},
    "rank_3_whole_row_npy": {
        "input": {"features": "y"},
        "normalize": {"axis": "all"},
        "output": {"format": "npy"},
    },
    "several_outputs_parquet": {**SEVERAL, "output": {"format": "parquet"}},
    "several_outputs_npy": {**SEVERAL, "output": {"format": "npy"}},
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Predictions of two kinds, one of them [2, 3] in each row, and a row that is not finite."""
    x = np.arange(1, 1 + ROWS * 4, dtype=np.float32).reshape(ROWS, 4)
    x[5, 0] = np.nan
    y = np.arange(1, 1 + ROWS * 6, dtype=np.float32).reshape(ROWS, 6)
    y[5, 0] = np.inf
    columns = [
        pa.array(range(ROWS)),
        pa.array([f"item {row}" for row in range(ROWS)]),
        fixed_size_list(x),
        fixed_size_list(y),
    ]
    fields = [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("x", columns[2].type),
        pa.field("y", columns[3].type, metadata={"shape": "[2, 3]"}),
    ]
    path = tmp_path / "input.parquet"
    pq.write_table(pa.table(columns, schema=pa.schema(fields)), path)
    return path


def result_of(case: str, source: Path, out: Path) -> Path:
    sections = CASES[case]
    data = {
        "input": {"path": str(source), "key": "id", "passthrough": ["label"], **sections["input"]},
        "normalize": {"max_bad_fraction": 1, **sections.get("normalize", {})},
        "output": {"path": str(out), "part_rows": 8, **sections["output"]},
    }
    run(Job.from_dict(data))
    return out


def assert_golden(name: str, lines: Iterator[str]) -> None:
    found = "\n".join(lines) + "\n"
    golden = HERE / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(found, encoding="utf-8")
    assert found == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_files_and_their_schemas(source: Path, tmp_path: Path, case: str) -> None:
    assert_golden(case, described(result_of(case, source, tmp_path / "out")))


def test_keys_of_the_manifest(source: Path, tmp_path: Path) -> None:
    out = result_of("several_outputs_parquet", source, tmp_path / "out")
    assert_golden("manifest", keys(json.loads((out / "_manifest.json").read_text())))


def test_schema_of_the_chunk_statistics(source: Path, tmp_path: Path) -> None:
    out = result_of("several_outputs_parquet", source, tmp_path / "out")
    assert_golden("chunks", parquet(out / "_stats" / "chunks.parquet"))


def described(out: Path) -> Iterator[str]:
    """Every file of a result, and for the first of each kind what is in it."""
    seen = set()
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        yield str(path.relative_to(out))
        kind = (path.parent, path.suffix)
        if kind not in seen and path.suffix in DESCRIBE and path.parent.name != "_stats":
            yield from (f"    {line}" for line in DESCRIBE[path.suffix](path))
        seen.add(kind)


def parquet(path: Path) -> Iterator[str]:
    file = pq.ParquetFile(path)
    yield from schema(file.schema_arrow)
    group = file.metadata.row_group(0)
    for column in map(group.column, range(group.num_columns)):
        dictionary = " with a dictionary" if column.has_dictionary_page else ""
        yield f"{column.path_in_schema} is stored as {column.compression}{dictionary}"


def arrow(path: Path) -> Iterator[str]:
    yield from schema(pa.ipc.open_file(path).schema)


def schema(found: pa.Schema) -> Iterator[str]:
    for field in found:
        null = "" if field.nullable else " not null"
        shape = (field.metadata or {}).get(b"shape")
        yield f"{field.name}: {field.type}{null}" + (f" shape {shape.decode()}" if shape else "")
    for name, text in (found.metadata or {}).items():
        yield f"metadata {name.decode()}:"
        yield from (f"    {line}" for line in keys(json.loads(text)))


def npy(path: Path) -> Iterator[str]:
    array = np.load(path, allow_pickle=False)
    order = "C" if array.flags.c_contiguous else "Fortran"
    yield f"{array.dtype.str} {list(array.shape)} {order}"


def keys(data: Any, name: str = "") -> Iterator[str]:
    """Each path of keys with the type of its values; of a list its first item's."""
    if isinstance(data, dict) and data:
        for key in sorted(data):
            yield from keys(data[key], f"{name}.{key}" if name else key)
    elif isinstance(data, list) and data:
        yield from keys(data[0], f"{name}[]")
    else:
        yield f"{name}: {'null' if data is None else type(data).__name__}"


DESCRIBE: dict[str, Callable[[Path], Iterator[str]]] = {
    ".parquet": parquet,
    ".arrow": arrow,
    ".npy": npy,
}
