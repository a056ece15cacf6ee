"""A run that is killed anywhere goes on to the same bytes, and nobody ever sees half a result."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.pipeline.output_schema import fixed_size_list
from batchnorm_tool.storage.checked_json import verified_json
from tests.kill_points import CHANGING, Server, tree

ROWS, PART_ROWS = 20, 8
# A small file takes hundreds of small writes, all alike: of these, one in so many is tried.
WRITES_APART = 25
PUBLISHED = {"parquet": ["vectors"], "npy": ["vectors", "norms", "keys"]}


@dataclass(frozen=True)
class Case:
    """A small job: three parts, one row that is sent to quarantine."""

    server: Server
    folder: Path
    format: str = "parquet"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def arguments(self, *more: str) -> list[str]:
        return [
            *("normalize", str(self.folder / "in.parquet"), str(self.out), "--column", "v"),
            *("--key", "id", "--part-rows", str(PART_ROWS), "--workers", "1", "--quiet"),
            *("--format", self.format, "--max-bad-fraction", "0.5", *more),
        ]

    def reset(self, old: Path | None = None) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        if old is not None:
            shutil.copytree(old, self.out)

    def finished(self, *more: str) -> dict[str, bytes]:
        """The files of a run that nothing disturbs."""
        answer = self.server.run(*self.arguments(*more))
        assert answer.code == 0, answer.output
        return tree(self.out)

    def published(self, files: dict[str, bytes]) -> list[dict[str, bytes]]:
        """The files of each directory that readers are pointed at."""
        return [
            {name: data for name, data in files.items() if name.startswith(f"{directory}/")}
            for directory in PUBLISHED[self.format]
        ]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(params=["parquet", "npy"])
def case(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Case:
    write_input(tmp_path / "in.parquet")
    return Case(server, tmp_path, request.param)


@pytest.fixture
def parquet(server: Server, tmp_path: Path) -> Case:
    write_input(tmp_path / "in.parquet")
    return Case(server, tmp_path)


def write_input(path: Path, *, bad: bool = True) -> None:
    vectors = np.random.default_rng(7).normal(size=(ROWS, 3)).astype(np.float32)
    if bad:
        vectors[5, 1] = np.nan
    pq.write_table(pa.table({"id": np.arange(ROWS), "v": fixed_size_list(vectors)}), path)


def chosen(calls: Sequence[str], apart: int = 1) -> list[int]:
    """Every `apart`-th call (from 1) that is no write, and one write in `WRITES_APART`."""
    others = [number for number, name in enumerate(calls, 1) if name != "write"]
    writes = [number for number, name in enumerate(calls, 1) if name == "write"]
    return sorted(others[::apart] + writes[:: apart * WRITES_APART])


def assert_nothing_half(case: Case, *whole: dict[str, bytes]) -> None:
    """Each published directory is missing, or one of the `whole` results'; `_SUCCESS` is true."""
    files = tree(case.out)
    for number, there in enumerate(case.published(files)):
        assert not there or there in [case.published(result)[number] for result in whole]
    if "_SUCCESS" in files:
        assert any(is_within(result, files) for result in whole)


def is_within(result: dict[str, bytes], files: dict[str, bytes]) -> bool:
    return all(files.get(name) == data for name, data in result.items())


def assert_finishes(case: Case, expected: dict[str, bytes], *more: str) -> None:
    answer = case.server.run(*case.arguments(*more))
    assert answer.code == 0, answer.output
    assert tree(case.out) == expected
    assert not (case.out / "_state").exists()


def test_killed_at_any_call(case: Case) -> None:
    expected = case.finished()
    case.reset()
    calls = case.server.run(*case.arguments()).calls
    assert Counter(calls)["fsync"] > 40, "the calls are counted"
    for number in chosen(calls, apart=1 if case.format == "parquet" else 4):
        case.reset()
        killed = case.server.run(
            *case.arguments(), kill_at=number, torn=calls[number - 1] == "write"
        )
        assert killed.code == -9, f"call {number} of {len(calls)}"
        assert_nothing_half(case, expected)
        assert_finishes(case, expected)


def test_killed_again_while_it_resumes(parquet: Case) -> None:
    expected = parquet.finished()
    parquet.reset()
    calls = parquet.server.run(*parquet.arguments()).calls
    for first in chosen(calls, apart=29):
        for second in chosen(calls, apart=13):
            parquet.reset()
            parquet.server.run(*parquet.arguments(), kill_at=first)
            again = parquet.server.run(*parquet.arguments(), kill_at=second)
            assert_nothing_half(parquet, expected)
            assert_finishes(parquet, expected)
            if again.code == 0:  # it was finished before that call
                break


def test_killed_while_it_replaces_an_older_result(case: Case, tmp_path: Path) -> None:
    """Under `--fresh` readers have the old vectors or the new ones, and never none."""
    old = case.finished("--norm", "l1")
    kept = tmp_path / "old"
    shutil.copytree(case.out, kept)
    expected = case.finished("--fresh")
    assert case.published(old) != case.published(expected)
    case.reset(kept)
    calls = case.server.run(*case.arguments("--fresh")).calls
    for number in chosen(calls, apart=2 if case.format == "parquet" else 5):
        case.reset(kept)
        killed = case.server.run(*case.arguments("--fresh"), kill_at=number)
        assert killed.code == -9
        assert all(case.published(tree(case.out))), f"call {number} of {len(calls)}"
        assert_nothing_half(case, old, expected)
        assert_finishes(case, expected, "--fresh")


def test_killed_while_it_reads_quarantined_rows_again(case: Case, tmp_path: Path) -> None:
    """Readers have the old vectors or the new ones, and the same command leaves a fresh run's."""
    old = case.finished()
    kept = tmp_path / "old"
    shutil.copytree(case.out, kept)
    case.reset()
    write_input(case.folder / "in.parquet", bad=False)
    expected = case.finished()
    case.reset(kept)
    calls = case.server.run(*case.arguments("--retry-quarantined")).calls
    assert Counter(calls)["link"] == 2 * len(PUBLISHED[case.format])
    assert tree(case.out) == expected
    last = range(len(calls) - 7, len(calls) + 1)
    for number in {*chosen(calls, apart=5 if case.format == "parquet" else 15), *last}:
        case.reset(kept)
        killed = case.server.run(*case.arguments("--retry-quarantined"), kill_at=number)
        assert killed.code == -9
        assert all(case.published(tree(case.out))), f"call {number} of {len(calls)}"
        assert_nothing_half(case, old, expected)
        assert_finishes(case, expected, "--retry-quarantined")


def test_what_the_last_result_had_and_this_one_has_not_vanishes(case: Case, tmp_path: Path) -> None:
    case.finished()
    other = Case(case.server, case.folder, "arrow")
    kept = tmp_path / "old"
    shutil.copytree(case.out, kept)
    expected = other.finished("--fresh", "--nonfinite", "drop")
    assert {name.partition("/")[0] for name in expected} == {
        "_SUCCESS",
        "_manifest.json",
        "_stats",
        "contract.json",
        "vectors",
    }
    case.reset(kept)
    arguments = other.arguments("--fresh", "--nonfinite", "drop")
    calls = case.server.run(*arguments).calls
    for number in range(len(calls) - 60, len(calls) + 1, 3):
        case.reset(kept)
        assert case.server.run(*arguments, kill_at=number).code == -9
        assert_finishes(other, expected, "--fresh", "--nonfinite", "drop")


def error_of(name: str) -> int:
    return errno.EIO if name in ("fsync", "rename", "replace", "unlink", "rmdir") else errno.ENOSPC


def test_any_call_may_fail_once(parquet: Case) -> None:
    expected = parquet.finished()
    parquet.reset()
    calls = parquet.server.run(*parquet.arguments()).calls
    for number in chosen(calls, apart=1):
        name = calls[number - 1]
        parquet.reset()
        failed = parquet.server.run(
            *parquet.arguments(), fail_at=number, fail_until=number, error=error_of(name)
        )
        assert_nothing_half(parquet, expected)
        if failed.code != 0:  # taking back what may stay is allowed to fail
            assert failed.code == 1, f"{name}, call {number}: {failed.output}"
            assert re.match(r"error: Cannot write `\S+`: (No space|Input/output)", failed.output)
        elif (parquet.out / "_state").exists():
            pytest.fail(f"{name}, call {number} failed in vain")
        assert_finishes(parquet, expected)


def test_all_calls_may_fail_from_one_on(parquet: Case) -> None:
    expected = parquet.finished()
    parquet.reset()
    calls = parquet.server.run(*parquet.arguments()).calls
    for number in chosen(calls, apart=4):
        parquet.reset()
        failed = parquet.server.run(
            *parquet.arguments(), fail_at=number, fail_until=10**6, error=errno.EIO
        )
        assert_nothing_half(parquet, expected)
        assert failed.code in (0, 1), failed.output
        assert_finishes(parquet, expected)


def test_short_writes_make_the_same_bytes(case: Case) -> None:
    expected = case.finished()
    case.reset()
    answer = case.server.run(*case.arguments(), short_writes=True)
    assert answer.code == 0
    assert Counter(answer.calls)["write"] > 1000
    assert tree(case.out) == expected


# What each wrapped function of `os` is to the kernel, on the architectures that run these tests.
SYSTEM_CALLS = {
    "open": ("openat", "open"),
    "write": ("write",),
    "pwrite": ("pwrite64",),
    "fsync": ("fsync",),
    "mkdir": ("mkdir", "mkdirat"),
    "rmdir": ("rmdir", "unlinkat"),
    "unlink": ("unlink", "unlinkat"),
    "rename": ("rename", "renameat", "renameat2"),
    "replace": ("rename", "renameat", "renameat2"),
    "link": ("link", "linkat"),
}
OTHERS = ("fdatasync", "ftruncate", "truncate", "symlink", "pwritev", "writev")


def command(case: Case) -> list[str]:
    return [sys.executable, "-B", "-m", "batchnorm_tool", *case.arguments()]


@pytest.mark.needs("strace")
def test_no_system_call_is_missed(parquet: Case, tmp_path: Path) -> None:
    """The kill points above are all the calls by which a run changes a file."""
    log = tmp_path / "log"
    names = {name for group in SYSTEM_CALLS.values() for name in group} | set(OTHERS)
    known = [f"?{name}" for name in sorted(names)]
    strace = ["strace", "-f", "-y", "-qq", "-o", str(log), "-e", "trace=" + ",".join(known)]
    subprocess.run([*strace, *command(parquet)], check=True)
    lines = [line for line in log.read_text().splitlines() if str(parquet.folder) in line]
    seen = Counter(match[1] for line in lines if (match := re.match(r"\d+ +(\w+)\(", line)))
    opened = [line for line in lines if re.match(r"\d+ +open", line)]
    seen["openat"] = sum("O_CREAT" in line for line in opened)
    parquet.reset()
    wrapped = Counter(parquet.server.run(*parquet.arguments()).calls)
    assert set(wrapped) <= set(CHANGING)
    assert seen.total() == wrapped.total()
    for name in ("write", "fsync"):
        assert seen[name] == wrapped[name]


@pytest.mark.needs("strace")
@pytest.mark.parametrize(
    ("call", "number"),
    [
        *[("fsync", number) for number in (1, 6, 11, 25)],
        *[("rename", number) for number in (1, 4, 9)],
        *[("write", number) for number in (1, 40)],
        *[("unlinkat", number) for number in (1, 5)],
        ("mkdir", 2),
    ],
)
def test_killed_by_the_system(parquet: Case, call: str, number: int) -> None:
    """SIGKILL at a real system call, which strace counts for each thread."""
    expected = parquet.finished()
    parquet.reset()
    inject = f"inject={call}:signal=KILL:when={number}"
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject]
    killed = subprocess.run([*strace, *command(parquet)], check=False, capture_output=True)
    assert killed.returncode != 0
    assert_nothing_half(parquet, expected)
    assert_finishes(parquet, expected)


@pytest.mark.needs("strace")
@pytest.mark.parametrize(
    ("call", "error", "number"),
    [("write", "ENOSPC", 4), ("fsync", "EIO", 3), ("fsync", "EIO", 14), ("rename", "EIO", 2)],
)
def test_failed_by_the_system(parquet: Case, call: str, error: str, number: int) -> None:
    expected = parquet.finished()
    parquet.reset()
    inject = f"inject={call}:error={error}:when={number}"
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject]
    failed = subprocess.run([*strace, *command(parquet)], check=False, capture_output=True)
    assert failed.returncode == 1
    assert b"the same command" in failed.stderr
    assert not (parquet.out / "vectors").exists()
    assert_finishes(parquet, expected)


def test_a_manifest_says_what_lies_there(case: Case) -> None:
    files = case.finished()
    manifest = verified_json(files["_manifest.json"])
    assert manifest is not None
    listed = {file["path"]: file["bytes"] for part in manifest["parts"] for file in part["files"]}
    data = {name: len(content) for name, content in files.items() if name[0] != "_"}
    assert manifest["contract"] == hashlib.sha256(files["contract.json"]).hexdigest()
    del data["contract.json"]
    assert data.items() <= listed.items()
    assert sorted(set(listed) - set(data)) == ["_quarantine/part-000000.parquet"]
