"""NPY files: any bytes in the header, any header, any bytes behind it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchnorm_tool.inputs.reading import read_rows
from batchnorm_tool.inputs.table import open_table
from batchnorm_tool.job import Input
from tests.fuzz.fuzzing import fuzzed, json_values, mutated_bytes, only_our_errors

TEXTS = ("<f4", "|b1", ">f8", "<V2", "|O", "<U3", "<c8", "<f2", "descr", "shape", "fortran_order")


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


VECTORS = saved(np.arange(12, dtype=np.float32).reshape(6, 2))
SCALARS = saved(np.asfortranarray(np.arange(6, dtype=">f8")))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "a.npy"


def read_whole(place: Path, content: bytes) -> None:
    """Open a file as an input, and read all of its rows."""
    place.write_bytes(content)
    with only_our_errors():
        table = open_table(Input(path=str(place)))
        for file in table.files:
            for _ in read_rows(file, table.schema.names, 0, file.rows, 4):
                pass


@fuzzed()
@given(content=mutated_bytes(VECTORS) | mutated_bytes(SCALARS))
def test_any_bytes(place: Path, content: bytes) -> None:
    read_whole(place, content)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A header of any values behind the right magic bytes, of a length that is right or not."""
    header: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": (6, 2)}
    key = draw(st.sampled_from([*header, "more"]))
    sizes = st.lists(st.sampled_from([0, 1, 2, 6, -1, 2**31, 2**62, 2**64]), max_size=4)
    header[key] = draw(json_values(TEXTS) | sizes.map(tuple) | st.sampled_from(TEXTS))
    text = repr(header).encode(errors="surrogatepass") + draw(
        st.sampled_from([b"\n", b"", b" 1\n"])
    )
    version = draw(st.sampled_from([(1, 0), (2, 0), (3, 0), (0, 0), (9, 9)]))
    width = 2 if version == (1, 0) else 4
    length = min(max(0, len(text) + draw(st.sampled_from([0, 0, 0, -1, 9, 60_000]))), 2**16 - 1)
    return b"\x93NUMPY" + bytes(version) + length.to_bytes(width, "little") + text


@fuzzed()
@given(header=headers(), data=st.sampled_from([b"", bytes(48), bytes(47), bytes(4096)]))
def test_any_header(place: Path, header: bytes, data: bytes) -> None:
    read_whole(place, header + data)
