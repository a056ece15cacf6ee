"""Several processes divide the parts evenly, leave the same bytes, and end together."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchnorm_tool.commands.run.prepare import Preparation
from batchnorm_tool.commands.run.run import run
from batchnorm_tool.engines import open_engine, processes
from batchnorm_tool.engines.local import LocalEngine
from batchnorm_tool.engines.process_worker import _portable
from batchnorm_tool.engines.processes import ProcessEngine, _RemoteWorker, open_processes
from batchnorm_tool.errors import Refused, WorkFailed
from batchnorm_tool.job import Job
from batchnorm_tool.models import backends
from batchnorm_tool.pipeline.plan import PLAN_PATH
from batchnorm_tool.pipeline.worker import Worker, make_worker
from batchnorm_tool.storage import open_storage
from tests.kill_points import tree

ROWS, PART_ROWS, PARTS = 320, 40, 8
TWO = ["cpu", "cpu"]


@pytest.fixture
def job_on(tmp_path: Path) -> Callable[..., Job]:
    """Makes the same small job over stored predictions, for given devices."""
    np.save(tmp_path / "in.npy", np.random.default_rng(3).normal(size=(ROWS, 4)).astype("float32"))

    def make(devices: object) -> Job:
        data = {
            "input": {"path": "in.npy"},
            "output": {"path": "out", "part_rows": PART_ROWS},
            "engine": {"devices": devices, "workers": 2},
        }
        return Job.from_dict(data, tmp_path)

    return make


@pytest.fixture
def opened(job_on: Callable[..., Job]) -> Worker:
    """A worker, the plan in its output."""
    preparation = Preparation(job_on(TWO))
    plan = preparation.plan()
    storage = open_storage(plan.job.output.path)
    storage.put(PLAN_PATH, plan.to_json())
    return make_worker(storage, plan, preparation.predictor())


@pytest.fixture
def done_by(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts who did parts: two workers that wait for each other after each part."""
    meeting, done = threading.Barrier(2, timeout=60), Counter[str]()

    def counted(who: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def process_part(*arguments: Any) -> None:
            real(*arguments)
            done[who] += 1
            meeting.wait()

        return process_part

    monkeypatch.setattr(Worker, "process_part", counted("here", Worker.process_part))
    there = counted("there", _RemoteWorker.process_part)
    monkeypatch.setattr(_RemoteWorker, "process_part", there)
    return done


def before_each(monkeypatch: pytest.MonkeyPatch, act: Callable[[_RemoteWorker], None]) -> None:
    """Do something before each part of the other process."""
    real = _RemoteWorker.process_part

    def process_part(remote: _RemoteWorker, *arguments: Any) -> None:
        act(remote)
        real(remote, *arguments)

    monkeypatch.setattr(_RemoteWorker, "process_part", process_part)


def has_ended(pid: int, patience: float = 60.0) -> bool:
    """Whether a process is gone within some seconds; an orphan may stay for whoever reaps it."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def children(pid: int) -> list[int]:
    """Numbers of the processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone since
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


def test_two_processes_divide_the_rows_and_leave_the_same_bytes(
    job_on: Callable[..., Job], done_by: Counter[str]
) -> None:
    result = run(job_on(TWO))
    assert done_by == {"here": PARTS / 2, "there": PARTS / 2}
    shared = tree(Path(result.path))
    done_by.clear()
    run(job_on("cpu"), fresh=True)
    assert done_by == {"here": PARTS}
    assert tree(Path(result.path)) == shared
    assert run(job_on(TWO)).nothing_to_do


def test_models_and_transforms_are_found_by_every_process(
    tmp_path: Path, samples: Path, tensorflow: None, done_by: Counter[str]
) -> None:
    source = (
        "def prepare(table):\n"
        "    pixels = table['pixels'].combine_chunks()\n"
        "    return {'pixels': pixels.flatten().to_numpy().reshape(-1, 64) / 2}\n"
    )
    (tmp_path / "transform_in_processes.py").write_text(source)

    def job(devices: object) -> Job:
        data = {
            "input": {
                "path": str(samples / "digits.parquet"),
                "key": "id",
                "features": "pixels",
                "transform": "transform_in_processes:prepare",
            },
            "model": {"path": str(samples / "digits_encoder.keras"), "batch_size": 32},
            "output": {"path": "out", "part_rows": 256},
            "engine": {"devices": devices, "workers": 2},
        }
        return Job.from_dict(data, tmp_path)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        result = run(job(TWO))
        assert done_by == {"here": 4, "there": 4}
        shared = tree(Path(result.path))
        run(job("cpu"), fresh=True)
    assert tree(Path(result.path)) == shared


def test_rows_and_times_of_another_process_are_counted(opened: Worker) -> None:
    rows: list[int] = []
    with open_processes(TWO, 2, opened.plan.job.output.path) as engine:
        alone = ProcessEngine(0, engine._children)
        assert sorted(alone.run(opened, range(PARTS), rows.append)) == [*range(PARTS)]
    assert sum(rows) == ROWS
    assert all(seconds > 0 for seconds, _ in opened.timings.totals().values())


def test_workers_are_shared_as_evenly_as_can_be() -> None:
    assert processes.shared(5, 2) == [3, 2]
    assert processes.shared(1, 3) == [1, 1, 1]


@pytest.mark.parametrize("devices", ["cpu", TWO], ids=["one process", "two"])
def test_a_process_that_is_killed_is_named_and_the_run_resumes(
    devices: object, job_on: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(run(job_on(devices)).path)
    expected = tree(out)
    shutil.rmtree(out)
    others = children(os.getpid())
    with monkeypatch.context() as patch:
        before_each(patch, lambda remote: os.kill(remote.child.pid, signal.SIGKILL))
        with pytest.raises(WorkFailed, match=r"process on the CPU .*killed by signal 9 \(Killed\)"):
            run(job_on(TWO))
    assert children(os.getpid()) == others
    assert [path.name for path in out.iterdir()] == ["_state"]
    run(job_on(devices))
    assert tree(out) == expected


def test_a_failure_in_another_process_arrives_as_it_is_and_stops_all(
    job_on: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def idle(worker: Worker, number: int, advance: object, stopped: Callable[[], bool]) -> None:
        while not stopped():
            time.sleep(0.01)

    monkeypatch.setattr(Worker, "process_part", idle)
    before_each(monkeypatch, lambda remote: (tmp_path / "in.npy").unlink())
    with pytest.raises(
        WorkFailed, match=r"in\.npy: file not found.*Finished work is kept"
    ) as caught:
        run(job_on(TWO))
    assert "In a worker process:" in "".join(notes(caught.value))


def notes(error: BaseException | None) -> list[str]:
    """The notes of an error and of its causes."""
    return [] if error is None else [*getattr(error, "__notes__", []), *notes(error.__cause__)]


class _Local(Exception):  # noqa: N818
    """Cannot be copied: it takes two arguments and remembers one."""

    def __init__(self, text: str, more: object) -> None:
        super().__init__(text)


def test_an_error_that_cannot_travel_is_told_in_words() -> None:
    told = _portable(_Local("lost", None))
    assert isinstance(told, Refused)
    assert "_Local: lost" in told.message
    error = OSError(errno.ENOSPC, "no space")
    assert _portable(error) is error


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (
            "import os; os.kill(os.getpid(), 9)",
            r"killed by signal 9 \(Killed\), which the system does",
        ),
        ("raise SystemExit(3)", "ended with exit code 3"),
    ],
    ids=["killed", "ended"],
)
def test_a_process_that_dies_as_it_starts_is_named(
    program: str, words: str, opened: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_PROGRAM", program)
    with (
        pytest.raises(WorkFailed, match=words),
        open_processes(TWO, 2, opened.plan.job.output.path),
    ):
        pass


def test_what_a_process_cannot_do_it_says_in_its_own_words(tmp_path: Path) -> None:
    with (
        pytest.raises(WorkFailed, match="plan of this run is missing"),
        open_processes(TWO, 2, str(tmp_path)),
    ):
        pass


def test_a_process_that_hangs_is_killed(opened: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_PROGRAM", "import time; time.sleep(600)")
    monkeypatch.setattr(processes, "_GRACE_SECONDS", 0.1)
    with processes._Child("cpu", 1, opened.plan.job.output.path) as child:
        assert not has_ended(child.pid, 0.2)
    assert has_ended(child.pid)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_signal_to_the_run_leaves_no_process(
    number: int, code: int, tmp_path: Path, job_on: Callable[..., Job]
) -> None:
    flags = ["--workers", "2", "--part-rows", "1", "--set", "engine.devices=[cpu, cpu]"]
    with subprocess.Popen(
        [sys.executable, "-m", "batchnorm_tool", "normalize", "in.npy", "out", *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
    ) as started:
        while len(list(tmp_path.glob("out/_state/records/*"))) < 10:
            assert started.poll() is None
            time.sleep(0.01)
        (child,) = children(started.pid)
        started.send_signal(number)
        assert started.wait(60) == code
    assert has_ended(child)


def test_a_script_needs_no_guard(tmp_path: Path, job_on: Callable[..., Job]) -> None:
    script = tmp_path / "script.py"
    lines = [
        f"import sys; sys.path[:] = {sys.path}",
        "from batchnorm_tool import Job, run",
        f"print(run(Job.from_dict({job_on(TWO).to_dict()})).rows['out'])",
    ]
    script.write_text("\n".join(lines))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (f"{ROWS}\n", "", 0)


@pytest.mark.parametrize(
    ("devices", "parts"), [("cpu", 9), (["cpu"], 9), ([0, 1], 9), ("auto", 9), (TWO, 1), (TWO, 0)]
)
def test_one_process_is_enough(devices: object, parts: int, job_on: Callable[..., Job]) -> None:
    """For one device, for predictions that are stored already, and for one part."""
    with open_engine(Preparation(job_on(devices)).plan(), parts) as engine:
        assert isinstance(engine, LocalEngine)


def test_what_was_planned_on_the_cpu_stays_there(
    job_on: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where TensorFlow was begun without the GPUs that the machine has, `auto` means the CPU."""
    monkeypatch.setattr(backends, "every_device", lambda devices: [0, 1])
    with open_engine(Preparation(job_on("auto")).plan(), 9) as engine:
        assert isinstance(engine, LocalEngine)
