"""What the environment does to a run, and what the user gets."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.pipeline.output_schema import fixed_size_list
from tests.kill_points import tree

ROOT = Path(__file__).parent.parent
ROWS, PART_ROWS = 400_000, 10_000


@dataclass(frozen=True)
class Command:
    """A run over 40 parts, which takes long enough to be stopped on its way."""

    folder: Path
    source: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def line(self, *more: str) -> list[str]:
        return [
            *(sys.executable, "-m", "batchnorm_tool", "normalize", str(self.source)),
            *(str(self.out), "--column", "v", "--part-rows", str(PART_ROWS), "--quiet", *more),
        ]

    def start(self, *more: str, prepare: Callable[[], None] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.line(*more),
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            preexec_fn=prepare,  # noqa: PLW1509  (no threads here)
        )

    def run(self, *more: str, prepare: Callable[[], None] | None = None) -> tuple[int, str]:
        process = self.start(*more, prepare=prepare)
        _, said = process.communicate(timeout=120)
        return process.returncode, said

    def wait_for_parts(self, count: int) -> None:
        records = self.out / "_state" / "records"
        deadline = time.monotonic() + 60
        while not records.exists() or len(os.listdir(records)) < count:
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "in.parquet"
    vectors = np.random.default_rng(1).normal(size=(ROWS, 16)).astype(np.float32)
    pq.write_table(pa.table({"v": fixed_size_list(vectors)}), path, row_group_size=10_000)
    return path


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nothing disturbed."""
    command = Command(tmp_path_factory.mktemp("whole"), source)
    assert command.run() == (0, "")
    return tree(command.out)


@pytest.fixture
def command(tmp_path: Path, source: Path) -> Command:
    return Command(tmp_path, source)


def assert_same(command: Command, whole: dict[str, bytes]) -> None:
    """All but the manifest, which names the output directory."""
    files = tree(command.out)
    assert files.keys() == whole.keys()
    manifests = ("_manifest.json", "_SUCCESS")
    assert [name for name in files if files[name] != whole[name]] in ([], [*manifests[::-1]])


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGTERM, 143, "Terminated"), (signal.SIGINT, 130, "Interrupted")],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_stops_the_run_and_it_goes_on(
    command: Command, whole: dict[str, bytes], number: int, code: int, words: str
) -> None:
    process = command.start("--workers", "1")
    command.wait_for_parts(3)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert words in said
    assert "the same command again to resume" in said
    assert "Traceback" not in said
    assert not (command.out / "vectors").exists()
    assert os.listdir(command.out / "_state" / "tmp") == [], "what was under way is thrown away"
    kept = {path: path.stat().st_ino for path in (command.out / "_state/vectors").iterdir()}
    assert command.run() == (0, "")
    for path, inode in kept.items():
        assert (command.out / "vectors" / path.name).stat().st_ino == inode
    assert_same(command, whole)


def test_a_killed_run_leaves_no_lock(command: Command, whole: dict[str, bytes]) -> None:
    process = command.start("--workers", "1")
    command.wait_for_parts(2)
    code, said = command.run()
    assert code == 5
    assert said.startswith("error: Another run is using")
    assert process.poll() is None, "the first run works on"
    process.kill()
    process.communicate()
    assert command.run() == (0, "")
    assert_same(command, whole)


def test_a_run_may_wait_for_another(command: Command, whole: dict[str, bytes]) -> None:
    first = command.start("--workers", "1")
    command.wait_for_parts(1)
    code, said = command.run("--wait", "1m")
    assert (code, said) == (0, "")
    assert first.communicate(timeout=60)[1] == ""
    assert first.returncode == 0
    assert_same(command, whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB, where this user may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs more rights")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk(small_disk: Path, source: Path, whole: dict[str, bytes]) -> None:
    command = Command(small_disk, source)
    code, said = command.run()
    assert code == 1
    assert os.strerror(errno.ENOSPC) in said
    assert "Free some space, then run the same command again" in said
    assert not (command.out / "vectors").exists()
    assert len(os.listdir(command.out / "_state" / "records")) > 1
    subprocess.run(["mount", "-o", "remount,size=90m", str(small_disk)], check=True)
    assert command.run() == (0, "")
    assert_same(command, whole)


def test_too_many_open_files(command: Command, whole: dict[str, bytes]) -> None:
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (14, 14))

    code, said = command.run("--workers", "8", prepare=lower)
    assert code != 0
    assert "Traceback" not in said
    assert "Too many open files" in said
    assert not (command.out / "vectors").exists()
    assert command.run() == (0, "")
    assert_same(command, whole)


def test_a_file_size_limit_is_a_failed_write(command: Command, whole: dict[str, bytes]) -> None:
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    code, said = command.run(prepare=lower)
    assert code == 1
    assert "error: Cannot write " in said
    assert f": {os.strerror(errno.EFBIG)}" in said
    assert command.run() == (0, "")
    assert_same(command, whole)


@pytest.mark.parametrize("fate", ["replaced", "gone"])
def test_an_input_file_that_changes_on_the_way(
    command: Command, whole: dict[str, bytes], fate: str
) -> None:
    mine = command.folder / "in.parquet"
    for _ in range(5):  # on a busy machine the run may be over before the file changes
        shutil.copy(command.source, mine)
        process = Command(command.folder, mine).start("--workers", "1")
        command.wait_for_parts(2)
        if fate == "replaced":
            other = command.folder / "other.parquet"
            pq.write_table(pa.table({"v": pa.nulls(3, pa.float32())}), other)
            other.replace(mine)
        else:
            mine.unlink()
        _, said = process.communicate(timeout=60)
        if process.returncode:
            break
        shutil.rmtree(command.out)
    assert process.returncode == 1, said
    assert "in.parquet" in said
    assert not (command.out / "vectors").exists()
    shutil.copy(command.source, mine)
    assert Command(command.folder, mine).run() == (0, "")
    assert {name: data for name, data in tree(command.out).items() if name.startswith("v")} == {
        name: data for name, data in whole.items() if name.startswith("v")
    }


def test_memory_that_runs_out(tmp_path: Path) -> None:
    """A row group that does not fit: the run says so and takes nothing down with it."""
    vectors = np.zeros((60, 1_000_000), np.float32)
    vectors[:, 0] = 1
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"v": fixed_size_list(vectors)}), path, row_group_size=60)
    command = Command(tmp_path, path)

    def lower() -> None:
        # A machine of many cores would have as many threads, each with address space of its own.
        os.environ |= {"MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "2"}
        resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000, 1_500_000_000))

    code, said = command.run("--workers", "1", prepare=lower)
    assert code == 1, said
    assert "memory" in said
    assert "Traceback" not in said
    assert not (command.out / "vectors").exists()


def test_a_clock_set_back_changes_nothing(command: Command, whole: dict[str, bytes]) -> None:
    """Order comes from numbers: the files of the first attempt are of the day after tomorrow."""
    process = command.start("--workers", "1")
    command.wait_for_parts(4)
    process.kill()
    process.communicate()
    later = time.time() + 3 * 86_400
    for path in command.out.rglob("*"):
        os.utime(path, (later, later))
    assert command.run() == (0, "")
    assert_same(command, whole)
