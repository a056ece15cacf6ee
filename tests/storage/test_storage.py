from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.errors import Busy, OutputError, WorkFailed
from batchnorm_tool.pipeline.output_schema import fixed_size_list
from batchnorm_tool.storage import FileRecord, Storage, files, local, open_storage


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "out")


def names(output: Storage) -> list[str]:
    return sorted(str(p.relative_to(output.root)) for p in output.root.rglob("*") if p.is_file())


def failing(error: int) -> Callable[..., int]:
    def fail(*arguments: object) -> int:
        raise OSError(error, os.strerror(error))

    return fail


# ---- files


def test_a_file_appears_whole_and_only_by_its_commit(output: Storage) -> None:
    file = output.create("vectors/part-000000.parquet")
    file.write(b"unit")
    file.write(memoryview(b" vectors"))
    assert output.get("vectors/part-000000.parquet") is None
    assert file.tell() == 12
    record = file.commit()
    digest = hashlib.sha256(b"unit vectors").hexdigest()
    assert record == FileRecord("vectors/part-000000.parquet", 12, digest)
    assert output.get("vectors/part-000000.parquet") == b"unit vectors"
    assert output.size("vectors/part-000000.parquet") == 12
    assert names(output) == ["vectors/part-000000.parquet"]


def test_a_patched_file_has_the_checksum_of_what_is_stored(output: Storage) -> None:
    file = output.create("a")
    file.write(b"rows: 9999; data")
    file.patch(6, b"0042")
    record = file.commit()
    assert output.get("a") == b"rows: 0042; data"
    assert record.sha256 == hashlib.sha256(b"rows: 0042; data").hexdigest()


def test_a_patch_stays_within_what_is_written(output: Storage) -> None:
    file = output.create("a")
    file.write(b"1234")
    with pytest.raises(ValueError, match="beyond 4 bytes"):
        file.patch(2, b"abc")


def test_a_commit_replaces_what_was_there(output: Storage) -> None:
    output.put("a", b"old")
    file = output.create("a")
    file.write(b"new")
    assert output.get("a") == b"old"
    file.commit()
    assert output.get("a") == b"new"


def test_what_is_discarded_leaves_nothing(output: Storage) -> None:
    file = output.create("a")
    file.write(b"data")
    file.discard()
    file.discard()
    assert names(output) == []


def test_a_late_footer_of_a_discarded_file_goes_nowhere(output: Storage) -> None:
    """A dropped `pq.ParquetWriter` writes its footer; the descriptor is another file's by then."""
    dropped = output.create("a")
    dropped.write(b"data")
    dropped.discard()
    other = output.create("b")
    other.write(b"good")
    assert dropped.write(b"footer") == 6
    dropped.patch(0, b"head")
    other.commit()
    assert output.get("b") == b"good"


def test_a_committed_file_takes_no_more(output: Storage) -> None:
    file = output.create("a")
    file.commit()
    with pytest.raises(ValueError, match="committed"):
        file.write(b"late")
    file.discard()
    assert output.get("a") == b""


def test_what_is_short_is_written_on(output: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    write, pwrite = os.write, os.pwrite
    monkeypatch.setattr(os, "write", lambda file, data: write(file, bytes(data)[:3]))
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, bytes(data)[:1], at))
    file = output.create("a")
    assert file.write(b"0123456789") == 10
    file.patch(4, b"abc")
    file.commit()
    assert output.get("a") == b"0123abc789"


@pytest.mark.parametrize(
    ("call", "error", "advice"),
    [
        ("write", errno.ENOSPC, "Free some space"),
        ("write", errno.EIO, "fix the cause"),
        ("fsync", errno.EIO, "fix the cause"),
        ("fsync", errno.EDQUOT, "Free some space"),
        ("replace", errno.EMFILE, "ulimit -n"),
    ],
)
def test_a_failure_throws_the_file_away(
    output: Storage, monkeypatch: pytest.MonkeyPatch, call: str, error: int, advice: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing(error))
        with pytest.raises(WorkFailed, match=advice) as failure:
            output.put("a", b"data")
    assert f"Cannot write `{output.root / 'a'}`: {os.strerror(error)}" in str(failure.value)
    assert isinstance(failure.value.__cause__, OSError)
    assert names(output) == []
    output.put("a", b"data")
    assert output.get("a") == b"data"


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_failure_is_final_for_its_file(
    output: Storage, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    file = output.create("a")
    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing(errno.EIO))
        if call == "write":
            with pytest.raises(WorkFailed):
                file.write(b"data")
        with pytest.raises(WorkFailed):
            file.commit()
    with pytest.raises(WorkFailed):
        file.write(b"data")
    with pytest.raises(WorkFailed):
        file.commit()
    assert output.get("a") is None


def test_a_name_that_could_not_be_synced_does_not_stay(
    output: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    output.put("folder/other", b"")
    with monkeypatch.context() as patched:
        patched.setattr(files, "sync_directory", failing(errno.EIO))
        with pytest.raises(WorkFailed):
            output.put("folder/a", b"data")
    assert names(output) == ["folder/other"]


def test_a_file_that_an_earlier_process_left_is_not_in_the_way(output: Storage) -> None:
    """In a container every attempt may have the same process number."""
    output.create("a").write(b"killed here")
    Storage(output.root).put("a", b"data")
    assert output.get("a") == b"data"


def test_many_threads_write_many_files(output: Storage) -> None:
    def write(first: int) -> None:
        for number in range(first, 200, 4):
            output.put(f"{number % 5}/{number}", b"%d" % number)

    threads = [threading.Thread(target=write, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(output.get(f"{number % 5}/{number}") == b"%d" % number for number in range(200))
    assert sum(len(output.names(str(folder))) for folder in range(5)) == 200


def test_what_is_not_there(output: Storage) -> None:
    assert output.get("no/such") is None
    assert output.size("no/such") is None
    assert output.names("no/such") == []
    output.remove("no/such")
    output.put("a", b"")
    assert output.get("a/below") is None
    assert output.names("a") == []


def test_what_cannot_be_read_is_said(output: Storage) -> None:
    (output.root / "a").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"Cannot read `.*/a`: Is a directory"):
        output.get("a")
    with pytest.raises(WorkFailed, match=r"Cannot read `.*/b`: No such file"):
        output.open("b")


def test_removing_takes_a_whole_directory_but_follows_no_link(
    output: Storage, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("x")
    output.put("folder/below/a", b"")
    (output.root / "link").symlink_to(other)
    output.remove("folder")
    output.remove("link")
    assert output.names() == ["_state"]
    assert (other / "precious").exists()


# ---- syncing, as the system sees it


@pytest.mark.needs("strace")
def test_each_publishing_rename_is_synced_before_and_after(tmp_path: Path) -> None:
    """SIGKILL does not show what a power cut loses: the order of the calls does."""
    table = pa.table({"id": np.arange(9), "v": fixed_size_list(np.ones((9, 2), np.float32))})
    pq.write_table(table, tmp_path / "in.parquet")
    run = [sys.executable, "-m", "batchnorm_tool", "normalize", "in.parquet", "new/out"]
    flags = ["--column", "v", "--part-rows", "4", "--workers", "1", "--quiet"]
    trace = "trace=/^(rename|renameat|renameat2|fsync|mkdir|mkdirat)$"
    strace = ["strace", "-f", "-y", "-qq", "-o", "log", "-e", trace]
    root = str(Path(__file__).parent.parent.parent)
    subprocess.run(
        [*strace, *run, *flags], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": root}
    )
    events = list(_events((tmp_path / "log").read_text(), tmp_path))
    renames = [number for number, event in enumerate(events) if event.call == "rename"]
    targets = [events[number].target for number in renames]
    assert targets[-1] == "new/out/_SUCCESS"
    assert {"new/out/vectors", "new/out/_stats", "new/out/_manifest.json"} <= set(targets)
    records = [number for number in renames if "/records/" in events[number].target]
    assert len(records) == 3
    for number in renames:
        if number not in records:  # which a power cut may take: their parts are then made again
            assert_synced(events, number)
    for number, event in enumerate(events):
        if event.call == "mkdir":
            assert events[number + 1] == Event("fsync", folder_of(event.path))
    parts = [number for number in renames if "part-" in events[number].target]
    assert len(parts) == 3
    assert max(parts) < renames[targets.index("new/out/vectors")]


@dataclass(frozen=True)
class Event:
    call: str
    path: str
    target: str = ""


def folder_of(path: str) -> str:
    return str(Path(path).parent)


def assert_synced(events: list[Event], number: int) -> None:
    """What was renamed was synced before, and the directories that it left and entered after."""
    source, target = events[number].path, events[number].target
    after = [event.path for event in events[number + 1 : number + 3] if event.call == "fsync"]
    assert folder_of(target) in after
    if "/tmp/" in source:
        assert events[number - 1] == Event("fsync", source)
    else:  # a directory, whose files were committed one by one
        assert folder_of(source) in after
        last = max(at for at in range(number) if events[at].target.startswith(f"{source}/"))
        assert events[last + 1] == Event("fsync", source)


def _events(log: str, root: Path) -> Iterator[Event]:
    """The successful calls, their paths relative to `root`."""
    for line in log.splitlines():
        call = re.match(r"\d+ +(\w+)\((.*)\) += 0", line)
        if call is not None:
            quoted = re.findall(r'"([^"]*)"', call[2]) or re.findall(r"<([^>]*)>", call[2])
            paths = [os.path.relpath(root / path, root) for path in quoted]
            yield Event(re.sub(r"at2?$", "", call[1]), *paths)


# ---- the lock


HOLD = """
import sys, time
from batchnorm_tool.storage import Storage
with Storage(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def held_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_turned_away_and_a_dead_one_holds_nothing(
    output: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps, real = list[float](), time.sleep
    with held_elsewhere(output.root) as process:
        assert output.is_locked()
        with monkeypatch.context() as patch:
            patch.setattr(
                local.time, "sleep", lambda seconds: naps.append(seconds) or real(seconds)
            )
            with (
                pytest.raises(Busy, match=r"Another run is using `.*/out`.*--wait 10m"),
                output.lock(),
            ):
                pass
        assert sum(naps) < 1
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not output.is_locked()
        with output.lock():
            assert output.root.is_dir()


def test_waiting_for_the_lock(output: Storage) -> None:
    with held_elsewhere(output.root) as process:
        threading.Timer(0.5, process.kill).start()
        with output.lock(wait_seconds=30):
            assert process.wait() == -signal.SIGKILL


def test_a_look_at_the_lock_does_not_turn_a_run_away(output: Storage) -> None:
    output.put("a", b"")
    done = threading.Event()

    def keep_looking() -> None:
        while not done.is_set():
            Storage(output.root).is_locked()

    thread = threading.Thread(target=keep_looking)
    thread.start()
    try:
        for _ in range(50):
            with Storage(output.root).lock():
                pass
    finally:
        done.set()
        thread.join()


def test_an_output_in_which_nothing_was_written_is_taken_back(tmp_path: Path) -> None:
    output = Storage(tmp_path / "a" / "b")
    with output.lock():
        assert output.root.is_dir()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with Storage(tmp_path / "mine").lock():
        pass
    assert (tmp_path / "mine").is_dir()


def test_whoever_is_turned_away_takes_nothing_back(
    output: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both made the directory; the one that got the lock has written nothing yet."""
    with output.lock():
        monkeypatch.setattr(local, "_make_root", lambda root: {root})
        with pytest.raises(Busy), Storage(output.root).lock():
            pass
        assert output.root.is_dir()


def test_the_directory_is_taken_back_while_it_is_held(
    output: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After that, it may be another run's, which has written nothing yet."""
    held = []
    monkeypatch.setattr(local, "_remove_if_empty", lambda made: held.append(output.is_locked()))
    with output.lock():
        pass
    assert held == [True]


def test_the_lock_of_a_directory_that_was_taken_back_is_no_lock(output: Storage) -> None:
    """The one that waits holds, in the end, the directory that has the name."""
    waiting = threading.Event()

    def wait_and_write() -> None:
        waiting.set()
        with Storage(output.root).lock(wait_seconds=30) as held:
            assert held is None
            Storage(output.root).put("a", b"mine")

    thread = threading.Thread(target=wait_and_write)
    with output.lock():
        thread.start()
        waiting.wait()
        time.sleep(0.2)
    thread.join()
    assert output.get("a") == b"mine"


def test_only_one_of_many_holds_it_at_a_time(output: Storage) -> None:
    inside, most, guard = 0, 0, threading.Lock()

    def enter() -> None:
        nonlocal inside, most
        for _ in range(5):
            with Storage(output.root).lock(wait_seconds=60):
                with guard:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.002)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not output.root.exists()


def test_a_directory_that_another_takes_back_on_the_way_is_made_and_taken_back(
    output: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there when it was looked for, and gone when it was to be made."""
    output.root.mkdir()
    real = files.make_directories

    def make(path: Path) -> list[Path]:
        with contextlib.suppress(OSError):
            output.root.rmdir()
        return real(path)

    monkeypatch.setattr(files, "make_directories", make)
    with output.lock():
        assert output.root.is_dir()
    assert not output.root.exists()


def test_a_parent_that_another_takes_back_on_the_way_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Path.mkdir, iter([1])

    def make(path: Path) -> None:
        if path.name == "out" and next(calls, None):
            path.parent.rmdir()
        real(path)

    monkeypatch.setattr(Path, "mkdir", make)
    with Storage(tmp_path / "parent" / "out").lock():
        assert os.listdir(tmp_path / "parent") == ["out"]
    assert os.listdir(tmp_path) == []


def test_a_place_that_stays_missing_is_refused() -> None:
    nowhere = Storage("/proc/no/such/place")
    with pytest.raises(OutputError, match="cannot be created: No such file"), nowhere.lock(600):
        pass


# ---- places that do not serve


def in_child_without_rights(action: Callable[[], None]) -> str:
    """What an error says to a process that is nobody's (root may write anywhere)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            action()
        except BaseException as error:  # noqa: BLE001
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as file:
        return file.read()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def enter(path: Path) -> Callable[[], None]:
    def action() -> None:
        with Storage(path).lock():
            pass

    return action


def test_a_read_only_directory_is_refused(open_folder: Path) -> None:
    path = open_folder / "out"
    path.mkdir(mode=0o555)
    said = in_child_without_rights(enter(path))
    assert said == (
        f"OutputError: The output directory `{path}` is read-only. Choose another `output.path`."
    )


def test_a_directory_that_cannot_be_made_is_refused(open_folder: Path) -> None:
    said = in_child_without_rights(enter(open_folder / "new" / "out"))
    assert said.startswith("OutputError: The output directory")
    assert "cannot be created: Permission denied" in said


def test_a_full_disk_where_the_directory_is_made_is_no_refusal(
    output: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "mkdir", failing(errno.ENOSPC))
    with pytest.raises(WorkFailed, match="Free some space"), output.lock():
        pass


def test_a_file_system_without_locks_is_refused(
    output: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local.fcntl, "flock", failing(errno.ENOLCK))
    with pytest.raises(OutputError, match="cannot be locked: No locks available"), output.lock():
        pass


@pytest.mark.parametrize(
    ("path", "words"),
    [("s3://bucket/out", "must be a local directory"), (__file__, "is a file")],
    ids=["object store", "file"],
)
def test_paths_that_are_no_directory_are_refused(path: str, words: str) -> None:
    with pytest.raises(OutputError, match=words):
        open_storage(path)


# ---- publishing


def stage(output: Storage, **content: bytes) -> None:
    for name, data in content.items():
        output.put(output.staged(f"{name}/part"), data)


@pytest.mark.parametrize("older", [False, True], ids=["first", "over an older one"])
def test_publishing_may_stop_anywhere_and_be_repeated(
    output: Storage, monkeypatch: pytest.MonkeyPatch, *, older: bool
) -> None:
    """Stopped before its Nth step, for every N, and then repeated; and repeated once more."""
    for stop in range(1, 20):
        with contextlib.suppress(FileNotFoundError):
            output.remove("")
        if older:
            for name in ("vectors", "norms", "gone"):
                output.put(f"{name}/part", b"old")
        stage(output, vectors=b"new", norms=b"new")
        output.begin_publish(["vectors", "norms"], ["gone"] if older else [])
        steps = iter(range(1, 100))
        stopped = False
        with monkeypatch.context() as patched:
            for module, name in ((local, "exchange"), (files, "sync_directory")):
                patched.setattr(module, name, stopping(getattr(module, name), steps, stop))
            try:
                output.finish_publish()
            except KeyboardInterrupt:
                stopped = True
            assert not older or output.get("vectors/part") in (b"old", b"new")
        assert output.publishing()
        output.finish_publish()
        output.finish_publish()
        assert [output.get(f"{name}/part") for name in ("vectors", "norms")] == [b"new", b"new"]
        assert output.get("gone/part") is None
        output.end_publish()
        assert not output.publishing()
        if not stopped:
            assert stop > 5
            return
    pytest.fail("it never came to its end")


def stopping(real: Callable[..., None], steps: Iterator[int], stop: int) -> Callable[..., None]:
    def step(*arguments: object) -> None:
        if next(steps) == stop:
            raise KeyboardInterrupt
        real(*arguments)

    return step


def test_without_an_atomic_exchange_the_new_takes_the_place(
    output: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local.sys, "platform", "another")
    output.put("vectors/part", b"old")
    stage(output, vectors=b"new")
    output.begin_publish(["vectors"], [])
    output.finish_publish()
    output.finish_publish()
    assert output.get("vectors/part") == b"new"


def test_a_disk_that_numbers_files_anew_does_not_confuse_publishing(output: Storage) -> None:
    """Some file systems give other inode numbers after a restart."""
    stage(output, vectors=b"new")
    output.begin_publish(["vectors"], [])
    output.finish_publish()
    note = output.root / "_state" / "publishing.json"
    note.write_text(re.sub(r"\d+", "1", note.read_text()))
    output.finish_publish()
    assert output.get("vectors/part") == b"new"
