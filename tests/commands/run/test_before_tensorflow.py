"""Mistakes that are told before TensorFlow is imported, as they are once a model is loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather

from batchnorm_tool import environment
from batchnorm_tool.commands.run import run as run_module
from batchnorm_tool.commands.run.prepare import Preparation
from tests.command_line import DIGITS, ENCODER, PREDICTIONS, invoke

pytestmark = pytest.mark.usefixtures("tensorflow")
SAMPLES = Path(DIGITS).parent
IMAGES, TWO = str(SAMPLES / "digits_image_encoder.keras"), str(SAMPLES / "digits_two_inputs.keras")
HALVES = str(SAMPLES / "digits_halves.parquet")

# Model, input and flags of each mistake, and what is said of it. In braces: what fixtures make.
MISTAKES = {
    "feature": ([ENCODER, DIGITS, "--features", "pixls"], "no column `pixls`"),
    "width": ([ENCODER, PREDICTIONS, "--features", "prediction"], "its width differs"),
    "kind": ([ENCODER, "{odd}", "--features", "text"], "Expected numbers"),
    "no fit": ([ENCODER, PREDICTIONS], "does not fit the model input `pixels`"),
    "input": ([ENCODER, DIGITS, "--set", "input.features={pxls: pixels}"], "is not an input"),
    "two inputs": ([TWO, HALVES, "--outputs", "halves", "--features", "left"], "without the model"),
    "output": ([ENCODER, DIGITS, "--outputs", "embeding"], "Did you mean `embedding`?"),
    "no output chosen": ([TWO, HALVES], "The model has 2 outputs: embedding, halves."),
    "layer": ([ENCODER, DIGITS, "--layer", "hiden"], "no layer `hiden` (`model.layer`)"),
    "layer of a graph": (["{export}", DIGITS, "--layer", "hidden"], "a SavedModel has no layers"),
    "signature": (["{export}", DIGITS, "--set", "model.signature=srv"], "has no signature `srv`"),
    "output of a graph": (["{export}", DIGITS, "--outputs", "out"], "has no output `out`"),
    "width of a graph": (["{export}", PREDICTIONS], "does not fit the model input `pixels`"),
    "HDF5": (["{h5}", DIGITS, "--outputs", "embeding"], "Did you mean `embedding`?"),
    "norms": (
        [ENCODER, DIGITS, "--set", "normalize.outputs={dense: {norm: l1}}"],
        "not an output of this run",
    ),
    "mean": (
        [ENCODER, DIGITS, "--set", f"normalize.project_mean={SAMPLES}/digits.npy"],
        "is no direction. Expected: an array of one axis",
    ),
    "no mean": (
        [ENCODER, DIGITS, "--set", "normalize.project_mean=/nowhere/mean.npy"],
        "/nowhere/mean.npy",
    ),
    "quantized twice": (
        [ENCODER, DIGITS, "--set", "normalize.dtype=int8", "--set", "output.dtype=float16"],
        "`output.dtype` is for floats",
    ),
    "clash": (
        [ENCODER, DIGITS, "--passthrough", "label", "--set", "output.columns.vector=label"],
        "Two columns of the output would be named `label`",
    ),
    "type": ([ENCODER, "{odd}", "--passthrough", "span", "--features", "pixels"], "`span`"),
    "key": ([ENCODER, DIGITS, "--key", "idd"], "did you mean `id`?"),
    "extra": (
        [IMAGES, "{odd}", "--features", "jpeg", "--set", "input.decode={jpeg: jpeg}"],
        "pip install 'batchnorm-tool[images]'",
    ),
    "other norm": ([ENCODER, "{rows}", "{done}", "--norm", "l1"], "norm l2 → l1. Replace"),
    "other input": ([ENCODER, DIGITS, "{done}"], "`data`, with `pixels`, the input files. Replace"),
    "other model": (["{h5}", "{rows}", "{done}"], "another model"),
    "other policy": ([ENCODER, "{rows}", "{done}", "--zero", "drop"], "`normalize.zero` keep → dr"),
    "foreign files": ([ENCODER, DIGITS, "{made}"], "contains files that are not part of a run"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, samples: Path) -> Path:
    """Models in other formats, columns of odd types, and a finished run over some rows."""
    folder = tmp_path_factory.mktemp("made")
    model = keras.saving.load_model(samples / "digits_encoder.keras", compile=False)
    model.export(folder / "export", verbose=False)
    model.save(folder / "h5.h5")
    np.save(folder / "rows.npy", np.load(samples / "digits.npy").reshape(-1, 64)[:40])
    spans = pa.array([(1, 2, 3)] * 2, pa.month_day_nano_interval())
    pixels = pa.array([[0.5] * 64] * 2, pa.list_(pa.float32(), 64))
    columns = {"text": ["a", "b"], "jpeg": [b"", b""], "pixels": pixels, "span": spans}
    feather.write_feather(pa.table(columns), folder / "odd.arrow", compression="uncompressed")
    assert invoke("run", ENCODER, folder / "rows.npy", folder / "done").exit_code == 0
    return folder


@pytest.fixture
def refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[str]], str]:
    """Runs with a mistake; gives what is said of it."""
    suffixes = {"export": "", "h5": ".h5", "rows": ".npy", "odd": ".arrow", "done": "", "made": ""}
    paths = {name: str(made / f"{name}{suffix}") for name, suffix in suffixes.items()}
    paths["made"] = str(made)
    monkeypatch.setitem(sys.modules, "PIL", None)

    def start(arguments: list[str]) -> str:
        named = [
            paths.get(text.strip("{}"), text) if text[0] == "{" else text for text in arguments
        ]
        into = [] if arguments[2:3] in (["{done}"], ["{made}"]) else [str(tmp_path / "out")]
        done = invoke("run", *named[:2], *into, *named[2:], "--quiet")
        assert done.exit_code == 2, done.output
        return done.stderr

    return start


@pytest.mark.parametrize(("arguments", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_without_tensorflow_in_the_same_words_as_with_it(
    refused: Callable[[list[str]], str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    with monkeypatch.context() as late:
        late.setattr(Preparation, "_check_before_loading", lambda _: None)
        late.setattr(run_module, "_refuse_other", lambda *_: None)
        expected = refused(arguments)
    assert words in expected
    for name in ("tensorflow", "keras"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    assert refused(arguments) == expected


def test_what_comes_to_the_same_result_is_not_refused(made: Path, tmp_path: Path) -> None:
    rows, out, copy = made / "rows.npy", tmp_path / "out", tmp_path / "copy.keras"
    copy.write_bytes(Path(ENCODER).read_bytes())
    sizes = ("--batch-size", "32", "--norm", "l1")
    assert invoke("run", ENCODER, rows, out).exit_code == 0
    assert invoke("run", ENCODER, rows, out, *sizes, "--fresh").exit_code == 0
    again = invoke("run", copy, rows, out, *sizes, "--part-rows", "32", "--outputs", "embedding")
    assert "already holds this result" in again.output


def test_a_model_is_described_and_a_run_is_planned_without_tensorflow_the_second_time(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    planned = ("run", ENCODER, made / "rows.npy", "out", "--dry-run")
    commands = [("show", made / "export"), planned]
    first = [invoke(*command).stdout for command in commands]
    assert "pixels: 64 float32" in first[0]
    assert "batch size" in first[1]
    for name in ("tensorflow", "keras"):
        monkeypatch.setitem(sys.modules, name, None)
    assert [invoke(*command).stdout for command in commands] == first
    changed = invoke(*planned, "--batch-size", "32")
    assert "import of tensorflow" in changed.stderr
    monkeypatch.setattr(environment, "available_cores", lambda: 99)
    assert "import of tensorflow" in invoke(*planned).stderr
