from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.commands.verify import verify as verify_verify
from batchnorm_tool.commands.verify.vectors import length_tolerance
from batchnorm_tool.commands.verify.verify import verify
from batchnorm_tool.errors import Damaged, InputError, WorkFailed
from batchnorm_tool.norms.norm import Norm, row_norms, unit_vectors, widen
from batchnorm_tool.norms.normalization import Normalization
from batchnorm_tool.readers.run import open_run
from batchnorm_tool.storage import checked_json
from tests.commands.workshop import FORMATS, ROWS, Workshop, lists, plain, predictions

CHUNKS = "_stats/chunks.parquet"


def two_outputs(workshop: Workshop, form: str) -> Path:
    columns = {"a": lists(predictions()), "b": lists(predictions(width=3, seed=1))}
    return workshop.run(columns, form, input={"features": {"left": "a", "right": "b"}})


def high_rank(workshop: Workshop, form: str) -> Path:
    return workshop.run_array(predictions(width=12).reshape(-1, 3, 4), form)


def no_rows(workshop: Workshop, form: str) -> Path:
    return workshop.run_array(predictions(0), form)


def files_of(path: Path) -> list[str]:
    """Every file that the manifest lists, in its order."""
    manifest = json.loads((path / "_manifest.json").read_bytes())
    return [file["path"] for part in manifest["parts"] for file in part["files"]]


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def change_manifest(path: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
    """Make the manifest agree with the files as they are now, so that only their rows can tell."""
    manifest = json.loads((path / "_manifest.json").read_bytes())
    manifest.pop("checksum")
    beside = manifest.get("files", [])
    for file in [file for part in manifest["parts"] for file in part["files"]] + beside:
        content = (path / file["path"]).read_bytes()
        file.update(bytes=len(content), sha256=sha256(content).hexdigest())
    change(manifest)
    sealed = checked_json.with_checksum(manifest)
    (path / "_manifest.json").write_bytes(checked_json.canonical_json(sealed))
    (path / "_SUCCESS").write_text(sealed["checksum"] + "\n")


def rewrite(path: Path, column: str, change: Callable[[np.ndarray], None], part: int = 1) -> None:
    """Change a column of a Parquet part in place, and let the manifest agree with the file."""
    file = path / f"vectors/part-{part:06d}.parquet"
    table = pq.read_table(file)
    place = table.column_names.index(column)
    array = table[column].combine_chunks()
    is_list = pa.types.is_fixed_size_list(array.type)
    values = (array.flatten() if is_list else array).to_numpy(zero_copy_only=False).copy()
    rows = values.reshape(table.num_rows, -1)
    change(rows)
    new = lists(rows) if is_list else pa.array(rows[:, 0])
    pq.write_table(table.set_column(place, table.schema.field(place), new), file)
    change_manifest(path)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("make", "rows", "vectors"),
    [(plain, 300, 300), (two_outputs, 300, 600), (high_rank, 300, 900), (no_rows, 0, 0)],
    ids=["one output", "two outputs", "rank 3", "no rows"],
)
def test_a_sound_run_passes(
    workshop: Workshop, make: Callable[[Workshop, str], Path], rows: int, vectors: int, form: str
) -> None:
    path = make(workshop, form)
    verification = verify(path, keys=True)
    assert (verification.rows, verification.vectors) == (rows, vectors)
    assert verification.parts == (3 if rows else 1)
    sizes = [(path / file).stat().st_size for file in files_of(path)]
    assert verification.files >= len(sizes)
    assert verification.bytes >= sum(sizes)
    assert verification.to_dict()["keys"] is True


def extreme(dtype: str) -> np.ndarray:
    info = np.finfo(dtype)
    big, small, tiny = float(info.max) / 2, float(info.smallest_normal), info.smallest_subnormal
    rows = [[big] * 4, [small] * 4, [tiny, 0, 0, 0], [big, 1, small, 0], [0, 0, 0, 0], [1, 2, 3, 4]]
    return np.array(rows, dtype)


@pytest.mark.parametrize("norm", ["none", "l1", "l2", "max", "lp"])
@pytest.mark.parametrize("stored", ["float16", "float32", "float64"])
@pytest.mark.parametrize("predicted", ["float16", "float32"])
def test_every_norm_of_extreme_values_passes(
    workshop: Workshop, norm: str, stored: str, predicted: str
) -> None:
    normalize = {"norm": norm, "max_bad_fraction": 1, **({"p": 3} if norm == "lp" else {})}
    path = workshop.run_array(extreme(predicted), normalize=normalize, output={"dtype": stored})
    verify(path)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("nonfinite", ["keep", "nullify", "drop", "quarantine"])
@pytest.mark.parametrize("zero", ["keep", "nullify", "drop", "quarantine"])
def test_rows_that_met_a_policy_are_expected(
    workshop: Workshop, form: str, nonfinite: str, zero: str
) -> None:
    raw = predictions()
    raw[[4, 140]] = 0
    raw[[9, 200], 1] = [np.nan, np.inf]
    raw[150] = np.nan
    fates = {"nonfinite": nonfinite, "zero": zero, "max_bad_fraction": 1}
    verification = verify(workshop.run_array(raw, form, normalize=fates))
    gone = sum(rows for rows, fate in ((3, nonfinite), (2, zero)) if fate in ("drop", "quarantine"))
    assert verification.rows == ROWS - gone


@pytest.mark.parametrize("form", FORMATS)
def test_one_flipped_bit_is_found_in_any_file(workshop: Workshop, form: str) -> None:
    path = plain(workshop, form)
    generator = np.random.default_rng(1)
    for name in files_of(path):
        file = path / name
        size = file.stat().st_size
        for bit in [0, 8 * size - 1, *generator.integers(8 * size, size=8).tolist()]:
            flip(file, bit)
            with pytest.raises(Damaged, match=f"`{name}` is not what was written: SHA-256"):
                verify(path)
            flip(file, bit)
    verify(path)


def test_one_flipped_bit_is_found_in_the_chunk_statistics(workshop: Workshop) -> None:
    path = plain(workshop)
    size = (path / CHUNKS).stat().st_size
    for bit in range(5, 8 * size, 8 * size // 40):
        flip(path / CHUNKS, bit)
        with pytest.raises(Damaged, match=f"`{CHUNKS}` is not what was written: SHA-256"):
            verify(path)
        flip(path / CHUNKS, bit)
    verify(path)


@pytest.mark.parametrize("name", ["_manifest.json", "_SUCCESS"])
def test_one_flipped_bit_is_found_in_the_manifest(workshop: Workshop, name: str) -> None:
    path = plain(workshop)
    size = (path / name).stat().st_size
    for bit in range(3, 8 * (size - 1), 8 * max(1, size // 40)):
        flip(path / name, bit)
        with pytest.raises(Damaged, match="checksum does not match"):
            verify(path)
        flip(path / name, bit)
    verify(path)


def test_every_missing_file_is_named(workshop: Workshop) -> None:
    path = plain(workshop, "npy")
    for name in ("vectors/part-000000.npy", "keys/part-000002.parquet", CHUNKS):
        (path / name).unlink()
    with pytest.raises(Damaged, match="3 findings") as caught:
        verify(path)
    assert "`vectors/part-000000.npy` is missing" in caught.value.message
    assert "`keys/part-000002.parquet` is missing" in caught.value.message
    assert f"`{CHUNKS}` is missing" in caught.value.message


@pytest.mark.parametrize("form", FORMATS)
def test_a_truncated_file_is_found(workshop: Workshop, form: str) -> None:
    path = plain(workshop, form)
    file = next(iter((path / "vectors").glob("part-000001.*")))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(Damaged, match=rf"`vectors/{file.name}` has [\d,]+ bytes; the"):
        verify(path)


def test_a_directory_in_the_place_of_a_file_is_found(workshop: Workshop) -> None:
    path = plain(workshop)
    (path / "vectors/part-000001.parquet").unlink()
    (path / "vectors/part-000001.parquet").mkdir()
    with pytest.raises(Damaged, match=r"`vectors/part-000001.parquet` is not a regular file"):
        verify(path)


@pytest.mark.parametrize("name", ["vectors/part-000001.parquet", "vectors", "_stats"])
def test_a_link_in_the_place_of_a_file_or_directory_is_found(workshop: Workshop, name: str) -> None:
    path = plain(workshop)
    elsewhere = (path / name).rename(path.parent / "elsewhere")
    (path / name).symlink_to(elsewhere)
    with pytest.raises(Damaged, match=rf"`{name}\S*` is not a regular file"):
        verify(path)


@pytest.mark.parametrize("name", ["vectors/more", "_stats/more"])
def test_a_directory_that_does_not_belong_there_is_found(workshop: Workshop, name: str) -> None:
    path = plain(workshop)
    (path / name).mkdir()
    with pytest.raises(Damaged, match=f"`{name}` does not belong to this run"):
        verify(path)


@pytest.mark.parametrize(
    "name",
    [
        "vectors/part-000003.parquet",
        "vectors/.hidden",
        "vectors/deeper/part-000000.parquet",
        "_stats/other.parquet",
        "_quarantine/part-000000.parquet",
    ],
)
def test_a_foreign_file_is_found(workshop: Workshop, name: str) -> None:
    path = plain(workshop)
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_bytes(b"")
    with pytest.raises(Damaged, match=f"`{name}` does not belong to this run"):
        verify(path)


def test_notes_beside_the_data_are_nobodys_business(workshop: Workshop) -> None:
    path = plain(workshop)
    (path / "README.txt").write_text("made on Monday")
    assert verify(path / "vectors").rows == ROWS


def test_many_findings_are_counted_and_some_named(workshop: Workshop) -> None:
    path = workshop.run_array(predictions(), output={"part_rows": 256}, normalize={})
    for number in range(50):
        (path / f"vectors/more-{number:02d}").touch()
    with pytest.raises(Damaged, match="50 findings") as caught:
        verify(path)
    assert caught.value.message.count("does not belong to this run") == 20
    assert "and 30 more" in caught.value.message


def lengthen(rows: np.ndarray) -> None:
    rows[5] *= np.float32(1 + 1e-6)


def one_is_nan(rows: np.ndarray) -> None:
    rows[5, 0] = np.nan


def negate(rows: np.ndarray) -> None:
    rows[5] *= -1


def zero(rows: np.ndarray) -> None:
    rows[5] = 0


@pytest.mark.parametrize(
    ("column", "change", "words"),
    [
        ("vector", lengthen, "row 5: a vector does not have length 1 under l2"),
        ("vector", zero, "row 5: a vector does not have length 1 under l2"),
        ("vector", one_is_nan, "row 5: a vector or norm is not finite"),
        ("norm", one_is_nan, "row 5: a vector or norm is not finite"),
        ("norm", negate, "row 5: a norm is negative"),
        ("norm", zero, "row 5: a vector does not have length 1 .* where its norm is 0"),
        ("norm", zero, "1 row with a zero vector stored; the manifest has 0"),
    ],
    ids=["too long", "zeros", "NaN", "NaN norm", "negative norm", "norm 0", "zero counted"],
)
def test_wrong_rows_are_named_even_where_checksums_agree(
    workshop: Workshop, column: str, change: Callable[[np.ndarray], None], words: str
) -> None:
    path = plain(workshop)
    rewrite(path, column, change)
    with pytest.raises(Damaged, match=words) as caught:
        verify(path)
    assert "`vectors/part-000001.parquet`" in caught.value.message


def test_norms_other_than_the_measured_ones_are_found(workshop: Workshop) -> None:
    path = plain(workshop)
    rewrite(path, "norm", lambda rows: rows.__imul__(2))
    with pytest.raises(Damaged, match=r"stored norms of `.*` do not match the manifest"):
        verify(path)


def drop_a_row(manifest: dict[str, Any]) -> None:
    manifest["parts"][1]["rows_out"] -= 1


def one_more_null(manifest: dict[str, Any]) -> None:
    manifest["rows"]["nullified"] += 1


def one_more_zero(manifest: dict[str, Any]) -> None:
    manifest["rows"]["zero"] += 1


def one_more_quarantined(manifest: dict[str, Any]) -> None:
    manifest["rows"]["quarantined"] += 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_a_row, r"`vectors/part-000001.parquet` has 128 rows; the manifest has 127"),
        (one_more_null, "0 rows without a vector stored; the manifest has 1"),
        (one_more_zero, "0 rows with a zero vector stored; the manifest has 1"),
        (one_more_quarantined, "0 rows in quarantine; the manifest has 1"),
    ],
    ids=["rows", "nulls", "zeros", "quarantined"],
)
def test_counts_are_compared(
    workshop: Workshop, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    path = plain(workshop)
    change_manifest(path, change)
    with pytest.raises(Damaged, match=words):
        verify(path)


@pytest.mark.parametrize("column", ["rows", "vectors", "zero", "nonfinite", "min", "max", "mean"])
def test_chunk_statistics_are_compared_with_the_whole(workshop: Workshop, column: str) -> None:
    path = plain(workshop)
    table = pq.read_table(path / CHUNKS)
    place = table.column_names.index(column)
    values = [value + 1 for value in table[column].to_pylist()]
    field = table.schema.field(place)
    changed = table.set_column(place, field, pa.array(values, field.type))
    pq.write_table(changed, path / CHUNKS)
    change_manifest(path)
    with pytest.raises(Damaged, match=rf"`{CHUNKS}`, output `.*`, norm l1: `{column}`"):
        verify(path)


def test_unreadable_chunk_statistics_are_found(workshop: Workshop) -> None:
    path = plain(workshop)
    (path / CHUNKS).write_bytes(b"PAR1 and nothing else PAR1")
    with pytest.raises(Damaged, match=f"`{CHUNKS}` cannot be read"):
        verify(path)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not contain a run"):
        verify(tmp_path)


def test_a_result_that_was_replaced_meanwhile_is_not_called_damaged(workshop: Workshop) -> None:
    before = open_run(str(plain(workshop)))
    verify_verify._refuse_if_replaced(before)
    workshop.run_array(predictions(seed=5), fresh=True)
    with pytest.raises(WorkFailed, match="was replaced by another run"):
        verify_verify._refuse_if_replaced(before)


def test_the_tolerance_is_what_rounding_may_come_to() -> None:
    assert length_tolerance(Normalization(Norm("l2")), 32, np.dtype("float32")) == pytest.approx(
        2**-24, rel=1e-3
    )
    assert length_tolerance(Normalization(Norm("l1")), 65536, np.dtype("float16")) == pytest.approx(
        0.0024, abs=5e-5
    )


@pytest.mark.parametrize("norm", [Norm("l1"), Norm("l2"), Norm("max"), Norm("lp", 5.0)], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("width", [1, 7, 4096, 65536])
def test_rounding_stays_within_the_tolerance(norm: Norm, dtype: str, width: int) -> None:
    raw = widen(np.random.default_rng(width).normal(size=(20, width)))
    unit = unit_vectors(raw, row_norms(raw, norm), norm, dtype)
    tolerance = length_tolerance(Normalization(norm), width, np.dtype(dtype))
    errors = np.abs(row_norms(widen(unit), norm) - 1)
    assert errors.max() <= tolerance


@pytest.mark.parametrize(("dtype", "most"), [("float16", 2**-10), ("float32", 2**-23)])
def test_the_tolerance_is_no_wider_than_needed(dtype: str, most: float) -> None:
    assert length_tolerance(Normalization(Norm("l2")), 1024, np.dtype(dtype)) < most
