"""What every test finds in place: quiet libraries, samples, and word of missing programs."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

# Read by these libraries when they are imported, which is later than this file.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("SE_OFFLINE", "true")
# The same device everywhere: models in tests are small, and their bits are compared.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from batchnorm_tool.models.backends import start_tensorflow

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "data_samples"
# Tests neither find what an earlier version kept in this user's cache, nor leave anything there.
_CACHE = tempfile.TemporaryDirectory(prefix="batchnorm_tool-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name

# A shell that starts the suite in the background lets it ignore SIGINT, and all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples every time, and no deadline: the first call of a model takes seconds.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

_NEEDS = "needs "


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `needs(program)` where the program is missing, or fail it if told so."""
    wanted = [program for marker in item.iter_markers("needs") for program in marker.args]
    missing = {program for program in wanted if shutil.which(program) is None}
    if not missing:
        return
    if os.environ.get("REQUIRE_ALL_SUITES") == "1":
        pytest.fail(f"needs {', '.join(sorted(missing))}, and REQUIRE_ALL_SUITES=1", pytrace=False)
    pytest.skip(_NEEDS + ", ".join(sorted(missing)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name each suite that could not run, and what to install for it."""
    skipped: dict[str, set[str]] = defaultdict(set)
    for report in terminalreporter.stats.get("skipped", []):
        # From the reports, because tests may run in other processes.
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        if reason.startswith(_NEEDS):
            programs = reason.removeprefix(_NEEDS).split(", ")
            skipped[report.nodeid.split("::")[0]] |= set(programs)
    if not skipped:
        return
    packages = debian_packages()
    terminalreporter.section("suites that could not run here")
    for suite, missing in sorted(skipped.items()):
        names = " ".join(sorted(packages.get(program, program) for program in missing))
        terminalreporter.line(f"{suite}: apt-get install {names}")


def debian_packages() -> dict[str, str]:
    """The Debian package of each program that tests need."""
    text = (ROOT / ".ci" / "system-packages.txt").read_text()
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {program: package for package, program, *_ in lines}


@pytest.fixture(scope="session")
def tensorflow() -> None:
    """TensorFlow as a run starts it; for every suite that computes with it in this process.

    Whoever comes first decides on devices and threads: without this, the order of the suites would.
    """
    start_tensorflow("cpu", 1)


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder `data_samples`."""
    return SAMPLES


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """The features of `digits.parquet`: float32 [1797, 64]; not to be written to."""
    array: np.ndarray = np.load(SAMPLES / "digits.npy").reshape(-1, 64)
    array.flags.writeable = False
    return array


@pytest.fixture(scope="session")
def predictions() -> np.ndarray:
    """What `digits_encoder.keras` says about them: float32 [1797, 32]; not to be written to."""
    column = pq.read_table(SAMPLES / "digits_predictions.parquet")["prediction"].combine_chunks()
    array: np.ndarray = column.flatten().to_numpy().reshape(-1, 32)
    array.flags.writeable = False
    return array


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    """Debian's chromium without a window; the test also needs the mark below.

    `@pytest.mark.needs("chromium", "chromedriver")`
    """
    options = Options()
    options.binary_location = str(shutil.which("chromium"))
    # Root has no sandbox, and containers have a small /dev/shm.
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()
