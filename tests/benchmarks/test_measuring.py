from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import pytest

from benchmarks.measure import ContenderFailed, measure
from benchmarks.process_family import Family

MEBIBYTE = 1 << 20

# It starts a daemon, with a session and a parent of its own, and ends when that has done its work.
_DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        held = b"x" * (200 << 20)
        while time.process_time() < 1:
            pass
        with open(sys.argv[1], "w") as file:
            file.write(str(os.getpid()))
        time.sleep(60)
    os._exit(0)
os.wait()
while not os.path.exists(sys.argv[1]):
    time.sleep(0.1)
time.sleep(0.5)
"""


def run(program: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]


def test_a_daemon_is_counted_and_does_not_outlive_the_measurement(tmp_path: Path) -> None:
    taken = measure(run(_DAEMON, tmp_path / "pid"))
    assert taken.cpu_seconds >= 0.7
    assert taken.peak_bytes >= 200 * MEBIBYTE
    assert taken.peak_rss_bytes < 200 * MEBIBYTE
    assert taken.seconds >= 1.5
    command = Path("/proc") / (tmp_path / "pid").read_text() / "cmdline"
    assert not command.exists() or command.read_bytes() == b""  # ended, maybe not yet collected


def test_what_the_process_says_last_is_read() -> None:
    said = json.dumps({"body_seconds": 1.5, "body_cpu_seconds": 2.5})
    taken = measure(run(f"print('no JSON'); print('{said}')"))
    assert (taken.body_seconds, taken.body_cpu_seconds) == (1.5, 2.5)


def test_the_memory_that_a_process_tells_at_its_end_counts() -> None:
    said = json.dumps({"peak_rss_bytes": 1 << 40})
    taken = measure(run(f"print('{said}')"))
    assert (taken.peak_rss_bytes, taken.peak_bytes) == (1 << 40, 1 << 40)


def test_a_stopwatch_tells_the_memory_of_its_process() -> None:
    taken = measure(
        run("""
        from benchmarks.contenders.stopwatch import Stopwatch
        with Stopwatch() as watch:
            held = bytes(range(256)) * (100 << 12)
            del held
        watch.say()
        """)
    )
    assert 100 * MEBIBYTE <= taken.said["peak_rss_bytes"] < 200 * MEBIBYTE


def test_cpu_time_and_memory_of_a_process_are_its_own() -> None:
    taken = measure(
        run("""
        import time
        held = bytes(range(256)) * (100 << 12)
        while time.process_time() < 1:
            held.count(b"no such bytes")  # in use, so that the system takes none of it away
        """)
    )
    assert 1 <= taken.cpu_seconds < 3
    # Less than is held: a system may take back pages between two uses.
    assert 50 * MEBIBYTE <= taken.peak_rss_bytes < 200 * MEBIBYTE
    assert taken.said == {}


def test_a_process_that_fails_is_an_error_with_its_last_words() -> None:
    with pytest.raises(ContenderFailed, match=r"exit code 3: no such model"):
        measure(run("import sys; sys.stderr.write('no such model'); sys.exit(3)"))


def test_other_processes_do_not_belong_to_the_family() -> None:
    family = Family("nobody has this mark")
    family.look()
    assert (family.living, family.cpu_seconds, family.peak_bytes) == ([], 0, 0)
