"""Runs on another back end: without TensorFlow once converted, and where it cannot be used."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from keras import layers

from batchnorm_tool import Job, read, refresh, run, score
from batchnorm_tool.errors import BatchnormToolError, JobError, ModelError, WorkFailed, explained
from batchnorm_tool.job import Engine, Model
from batchnorm_tool.models import cache as cache_module
from batchnorm_tool.models import conversion
from batchnorm_tool.models.cache import ModelCache
from tests.command_line import DIGITS, ENCODER, invoke, python

pytestmark = pytest.mark.usefixtures("tensorflow")

# In a process that cannot import TensorFlow, nor can any that it starts.
WITHOUT_TENSORFLOW = """
import sys
import numpy as np
from batchnorm_tool import Job, refresh, run, score
from batchnorm_tool.readers.run import open_run
job = Job.load(sys.argv[1])
result = run(job, fresh=True)
assert result.rows["out"] == 1797
pixels = np.load("data_samples/digits.npy").reshape(-1, 64)
assert score(job.model.path, pixels, backend="onnxruntime").vectors.shape == (1797, 32)
stored = Job.load(sys.argv[2])
assert refresh(stored).version == 1
assert not {"tensorflow", "keras"} & {*sys.modules}
print("done")
"""


def sections_of(out: Path, **settings: Any) -> dict[str, Any]:
    return {
        "input": {"path": DIGITS, "key": "id"},
        **settings,
        "model": {"path": ENCODER, "backend": "onnxruntime", **settings.get("model", {})},
        "output": {"path": str(out), **settings.get("output", {})},
    }


def job_of(out: Path, **settings: Any) -> Job:
    return Job.from_dict(sections_of(out, **settings))


def stored_bytes(path: str) -> bytes:
    _, vectors, norms = read(path).to_numpy()
    return vectors.tobytes() + norms.tobytes()


def store_of(folder: Path, backend: str, **store: object) -> dict[str, Any]:
    return {
        "input": {"path": DIGITS, "key": "id"},
        "model": {"path": ENCODER, "backend": backend},
        "store": {"path": str(folder / "store.lance"), **store},
    }


@pytest.fixture(scope="module")
def converted(tensorflow: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has converted the model of the samples."""
    out = tmp_path_factory.mktemp("converted") / "out"
    run(job_of(out))
    return out


@pytest.fixture
def asked(converted: Path, monkeypatch: pytest.MonkeyPatch) -> list[conversion.ConversionRequest]:
    """What would be converted; nothing is."""
    requests: list[conversion.ConversionRequest] = []
    monkeypatch.setattr(conversion, "_ask", requests.append)
    return requests


@pytest.fixture
def own_cache(converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelCache:
    """A copy of the cache, to be damaged."""
    shutil.copytree(ModelCache.of_user().root, tmp_path / "batchnorm-tool" / "models")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return ModelCache.of_user()


def test_the_manifest_says_what_computed(converted: Path, tmp_path: Path) -> None:
    manifest = json.loads((converted / "_manifest.json").read_text())
    (entry,) = (each for each in ModelCache.of_user().entries() if each.entry.model == ENCODER)
    proof = entry.entry.proof
    assert proof is not None
    assert proof.independent
    assert manifest["backend"] == {
        "name": "onnxruntime",
        "version": manifest["identity"]["bits"]["backend"]["version"],
        "graph_sha256": entry.entry.files[0].sha256,
        "largest_difference": proof.largest_difference,
    }
    assert proof.largest_difference is not None
    assert proof.largest_difference <= 1e-5
    assert "batch_size" not in manifest["identity"]["bits"]
    assert not {"tensorflow", "keras"} & {*manifest["identity"]["bits"]["versions"]}
    plain = run(job_of(tmp_path / "plain", model={"backend": "tensorflow"})).manifest
    assert {*plain["backend"].values()} == {"tensorflow", plain["backend"]["version"], None}
    assert plain["identity"]["bits"]["versions"]["tensorflow"] == plain["backend"]["version"]
    assert "backend" not in plain["identity"]["bits"]
    _, vectors, _ = read(str(converted)).to_numpy()
    _, expected, _ = read(str(tmp_path / "plain")).to_numpy()
    assert np.linalg.norm(vectors - expected, axis=1).max() < 1e-5


def test_bits_depend_neither_on_the_batch_size_nor_on_parts(
    converted: Path, asked: list[Any], tmp_path: Path
) -> None:
    for batch_size, part_rows in ((7, 700), (500, 1000), (1, 9)):
        sizes = {"model": {"batch_size": batch_size}, "output": {"part_rows": part_rows}}
        again = run(job_of(tmp_path / "out", **sizes), fresh=True)
        assert stored_bytes(again.path) == stored_bytes(str(converted))
    assert asked == []
    for batch_size in (7, 500):
        sizes = {"model": {"batch_size": batch_size}}
        assert run(job_of(tmp_path / "again", **sizes)).nothing_to_do is (batch_size != 7)


def test_nothing_imports_tensorflow_once_a_model_is_converted(
    converted: Path, tmp_path: Path
) -> None:
    for name in ("tensorflow", "keras"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported')")
    parts = {"output": {"part_rows": 500}, "engine": {"devices": ["cpu", "cpu"], "workers": 2}}
    jobs = [sections_of(tmp_path / "out", **parts), store_of(tmp_path, "onnxruntime")]
    files = [str(tmp_path / name) for name in ("run.yaml", "refresh.yaml")]
    for file, job in zip(files, jobs, strict=True):
        Path(file).write_text(json.dumps(job))
    done = python("-c", WITHOUT_TENSORFLOW, *files, PYTHONPATH=f"{tmp_path}:{Path.cwd()}")
    assert done.stdout == "done\n", done.stderr
    assert stored_bytes(str(tmp_path / "out")) == stored_bytes(str(converted))


@pytest.mark.parametrize("file", ["model.onnx", "entry.json"])
def test_a_damaged_entry_is_made_anew(file: str, own_cache: ModelCache, tmp_path: Path) -> None:
    job = job_of(tmp_path / "out")
    (entry,) = (each for each in own_cache.entries() if each.entry.model == ENCODER)
    content = bytearray((entry.path / file).read_bytes())
    content[len(content) // 2] ^= 1
    (entry.path / file).write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        requests: list[conversion.ConversionRequest] = []
        patch.setattr(conversion, "_ask", requests.append)
        with pytest.raises(ModelError, match="no longer in the model cache"):
            run(job)
        assert [request.model for request in requests] == [job.model]
    assert not entry.path.exists()


def test_a_model_that_does_not_convert_is_refused_or_left_to_tensorflow(tmp_path: Path) -> None:
    policy = keras.dtype_policies.DTypePolicy("mixed_float16")
    inside = [layers.Dense(64, "gelu", dtype=policy), layers.Dense(4, dtype=policy)]
    path = str(tmp_path / "model.keras")
    keras.Sequential([keras.Input((64,)), *inside]).save(path)
    with pytest.raises(ModelError, match=r"a row differs by .* of its length") as error:
        run(job_of(tmp_path / "out", model={"path": path}))
    assert error.value.exit_code == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "_ask", None)  # that it failed once is remembered
        flags = ("--key", "id", "--backend", "auto")
        shown = invoke("run", path, DIGITS, tmp_path / "auto", *flags)
    assert shown.exit_code == 0, shown.output
    manifest = json.loads((tmp_path / "auto" / "_manifest.json").read_text())
    assert manifest["backend"]["name"] == "tensorflow"
    (warning,) = (text for text in manifest["warnings"] if "auto" in text)
    assert "computes with TensorFlow: the converted model predicts otherwise" in warning
    assert shown.stderr.count("computes with TensorFlow") == 1


UNFIT = {
    "no extra": ({}, {}, r"onnx.* is not installed .*pip install 'batchnorm-tool\[onnxruntime\]'"),
    "dependent batches": ({"batch_dependent": "accept", "batch_size": 8}, {}, "batch_dependent"),
    "a GPU": ({}, {"devices": "gpu"}, "asks for a GPU, and onnxruntime computes on the CPU"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_another_back_end_cannot_do_is_told_before_tensorflow_is_imported(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, engine, said = UNFIT[case]
    if case == "no extra":
        monkeypatch.setattr(conversion, "find_spec", lambda name: None if "onnx" in name else name)
    monkeypatch.setattr("batchnorm_tool.models._load", None)
    with pytest.raises(JobError, match=said):
        run(job_of(tmp_path / "out", model=model, engine=engine))
    if case == "no extra":
        monkeypatch.undo()
        monkeypatch.setattr(conversion, "find_spec", lambda name: None if "onnx" in name else name)
        result = run(job_of(tmp_path / "out", model={"backend": "auto"}))
        assert "is not installed" in result.warnings[0]


DIES = """
import os, sys
sys.stdin.buffer.read()
print("last words", file=sys.stderr, flush=True)
os.kill(os.getpid(), 9)
"""
ANSWERS = """
import os, pickle, sys
sys.stdin.buffer.read()
with os.fdopen(int(sys.argv[2]), "wb") as answers:
    pickle.dump("long" * 100_000, answers)
"""


def test_auto_says_what_ended_the_conversion_and_goes_on(
    own_cache: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(own_cache.root)
    monkeypatch.setattr(conversion, "_PROGRAM", DIES)
    result = run(job_of(tmp_path / "auto", model={"backend": "auto"}))
    (warning,) = (text for text in result.warnings if "computes with TensorFlow" in text)
    assert "exit code -9 (last words)" in warning
    assert result.manifest["backend"]["name"] == "tensorflow"
    assert warning in run(job_of(tmp_path / "auto", model={"backend": "auto"}), fresh=True).warnings
    with pytest.raises(WorkFailed, match=r"exit code -9 \(last words\)"):
        run(job_of(tmp_path / "out"))
    for number in (errno.ENOSPC, errno.EROFS):

        def fail(_: object, number: int = number) -> None:
            raise explained(OSError(number, "no place to write"))

        monkeypatch.setattr(conversion, "_ask", fail)
        again = run(job_of(tmp_path / str(number), model={"backend": "auto"}))
        assert "no place to write" in " ".join(again.warnings)
        with pytest.raises(BatchnormToolError, match="no place to write"):
            run(job_of(tmp_path / "out"))


def test_an_answer_may_be_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "_PROGRAM", ANSWERS)
    request = conversion.ConversionRequest(Model(path="x"), "", Engine())
    assert len(str(conversion._ask(request))) == 400_000


def test_what_is_converted_needs_no_converters_and_is_hashed_once(
    converted: Path, asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = {"tf2onnx": None, "onnx": None}
    monkeypatch.setattr(conversion, "find_spec", lambda name: without.get(name, name))
    monkeypatch.setattr(cache_module, "record_of", None)
    result = run(job_of(tmp_path / "out"))
    assert stored_bytes(result.path) == stored_bytes(str(converted))
    assert asked == []


def test_a_proof_on_few_rows_is_good_for_as_many(
    own_cache: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (entry,) = (each for each in own_cache.entries() if each.entry.model == ENCODER)
    assert entry.entry.rows == 1024
    graph = entry.read("model.onnx")
    shutil.rmtree(entry.path)
    few = replace(entry.entry, rows=9)
    own_cache.keep(few, lambda place: (place / "model.onnx").write_bytes(graph))
    requests: list[conversion.ConversionRequest] = []
    monkeypatch.setattr(conversion, "_ask", requests.append)
    run(job_of(tmp_path / "few"), limit=9)
    assert requests == []
    run(job_of(tmp_path / "many"))
    assert [request.proof_rows for request in requests] == [1024]
    own_cache.keep(entry.entry, lambda place: (place / "model.onnx").write_bytes(graph))
    run(job_of(tmp_path / "more"))
    assert len(requests) == 1


def test_auto_takes_the_faster_one(
    own_cache: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = {"backend": "auto"}
    entry = next(each for each in own_cache.entries() if each.entry.model == ENCODER).entry
    assert entry.speeds is not None
    for slower, chosen in (("onnxruntime", "tensorflow"), ("tensorflow", "onnxruntime")):
        monkeypatch.setitem(entry.speeds, "onnxruntime", 10.0)
        monkeypatch.setitem(entry.speeds, "tensorflow", 10.0)
        monkeypatch.setitem(entry.speeds, slower, 5.0)
        monkeypatch.setattr(ModelCache, "find", lambda *_, e=entry, **__: FoundEntry(e, own_cache))
        made = run(job_of(tmp_path / slower, model=auto)).manifest
        assert made["backend"]["name"] == chosen
        faster = "`model.backend: auto` computes with TensorFlow: it was the faster one"
        found = [warning.startswith(faster) for warning in made["warnings"]]
        assert found == [True] * (chosen == "tensorflow")


class FoundEntry:
    """An entry as the cache gives it."""

    def __init__(self, entry: Any, cache: ModelCache) -> None:
        self.entry = entry
        (place,) = (each for each in cache.entries() if each.entry.model == ENCODER)
        self.read = place.read


@pytest.mark.parametrize("on_new_bits", ["keep", "recompute"])
def test_a_store_takes_another_back_end_for_other_bits(
    on_new_bits: str, converted: Path, tmp_path: Path
) -> None:
    for backend in ("tensorflow", "onnxruntime"):
        job = Job.from_dict(store_of(tmp_path, backend, on_new_bits=on_new_bits))
        night = refresh(job)
    (note,) = (text for text in night.record["warnings"] if "Low-order bits" in text)
    assert "back end tensorflow → onnxruntime" in note
    assert (night.record["rows"]["predicted"] > 0) is (on_new_bits == "recompute")


def convert_otherwise(cache: ModelCache, **changes: Any) -> str:
    """Let the model be converted to other bytes, as other versions do it; returns their SHA-256."""
    (found,) = (each for each in cache.entries() if each.entry.model == ENCODER)
    graph = onnx.load(found.path / "model.onnx")
    graph.doc_string = "converted by another version"
    content = graph.SerializeToString()
    digest = hashlib.sha256(content).hexdigest()
    assert found.entry.facts is not None
    assert found.entry.proof is not None
    proof = replace(found.entry.proof, graph_sha256=digest)
    entry = replace(found.entry, facts=replace(found.entry.facts, backend=proof))
    shutil.rmtree(found.path)
    cache.keep(replace(entry, **changes), lambda place: (place / "model.onnx").write_bytes(content))
    return digest


@pytest.mark.parametrize("on_new_bits", ["keep", "recompute"])
def test_a_store_takes_another_graph_of_its_model_for_other_bits(
    on_new_bits: str, own_cache: ModelCache, tmp_path: Path
) -> None:
    rows, sections = tmp_path / "in.parquet", store_of(tmp_path, "onnxruntime")
    sections["input"]["path"], sections["store"]["on_new_bits"] = str(rows), on_new_bits
    digits = pq.read_table(DIGITS)
    pq.write_table(digits.slice(2), rows)
    refresh(Job.from_dict(sections))
    graph = convert_otherwise(own_cache)
    pq.write_table(digits.slice(1), rows)
    night = refresh(Job.from_dict(sections))
    (note,) = (text for text in night.record["warnings"] if "Low-order bits" in text)
    assert f"{graph[:6]}" in note
    assert (night.rows["new"], night.rows["predicted"] > 1) == (1, on_new_bits == "recompute")
    assert night.record["settings"]["backend"]["graph_sha256"] == graph
    pq.write_table(digits, rows)
    last = refresh(Job.from_dict(sections))
    assert (last.record["warnings"], last.rows["predicted"]) == ([], 1)


def test_a_store_under_auto_goes_on_with_tensorflow_once_its_model_does_not_convert(
    own_cache: ModelCache, tmp_path: Path
) -> None:
    sections = store_of(tmp_path, "auto", on_new_bits="recompute")
    assert "backend" in refresh(Job.from_dict(sections)).record["settings"]
    convert_otherwise(own_cache, kind="none", facts=None, cause="an operation is not known")
    night = refresh(Job.from_dict(sections))
    assert "back end onnxruntime → tensorflow" in " ".join(night.record["warnings"])
    assert any("an operation is not known" in text for text in night.record["warnings"])
    assert "backend" not in night.record["settings"]


def test_score_takes_it_for_the_file_of_a_model(converted: Path, pixels: np.ndarray) -> None:
    result = score(ENCODER, pixels, backend="onnxruntime")
    _, vectors, _ = read(str(converted)).to_numpy()
    assert result.vectors.tobytes() == vectors.tobytes()
    model = keras.Sequential([keras.Input((64,)), layers.Dense(2)])
    with pytest.raises(JobError, match="Received: a Sequential"):
        score(model, pixels, backend="onnxruntime")


def test_rows_are_converted_for_a_proof_alone_and_no_more_of_them(
    asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: np.ndarray
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="no longer in the model cache"):
        score(ENCODER, {"pixels": pixels}, backend="onnxruntime")
    (request,) = asked
    # As the other process gets it.
    sample = pickle.loads(pickle.dumps(request.sample))  # noqa: S301
    np.testing.assert_array_equal(sample.data["pixels"], pixels[:1024])


def test_a_cache_that_cannot_be_used_is_told_and_replaced(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "batchnorm-tool").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("BATCHNORM_TOOL_CACHE_INSTEAD", "")
    monkeypatch.setattr(conversion, "_ask", lambda request: None)
    result = run(job_of(tmp_path / "out", model={"backend": "auto"}))
    assert (
        len([text for text in result.warnings if "cannot be used (Not a directory)" in text]) == 1
    )


def test_the_cache_is_shown(own_cache: ModelCache) -> None:
    entry = next(each for each in own_cache.entries() if each.entry.model == ENCODER)
    shown = json.loads(invoke("show", "--cache", "--json").stdout)
    assert (shown["kind"], shown["path"]) == ("model cache", str(own_cache.root))
    (model,) = (each for each in shown["models"] if each["model"] == ENCODER)
    assert (model["kind"], model["bytes"]) == ("onnx", entry.size)
    assert entry.entry.proof is not None
    assert model["largest_difference"] == entry.entry.proof.largest_difference
    assert "of a row's length at most" in invoke("show", "--cache").stdout
    assert invoke("show").exit_code == invoke("show", ENCODER, "--cache").exit_code == 2
