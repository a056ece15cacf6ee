from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from batchnorm_tool.errors import JobError
from batchnorm_tool.job import Engine, Input, Job, Model, Normalize, Output, job_schema
from batchnorm_tool.job.file import expand_environment, read_job_file, set_values
from batchnorm_tool.job.paths import lies_within, mask_secrets

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
MINIMAL = {"input": {"path": "in.parquet"}, "output": {"path": "out"}}
HASH = "0123456789abcdef" * 4

# Every key, with a value that is not its default.
FULL = {
    "input": {
        "path": {"image": "/data/images.npy", "size": "/data/sizes.npy"},
        "format": "npy",
        "key": ["id", "part"],
        "keys": "/data/keys.parquet",
        "features": {"image": "image", "meta": ["size"]},
        "passthrough": ["label"],
        "invalid": "quarantine",
        "fill": {"price": 0.5, "count": 3, "name": "unknown"},
        "decode": {"image": "jpeg"},
        "transform": "my_package.features:prepare",
        "dtype": "bfloat16",
    },
    "model": {
        "path": "/models/encoder.keras",
        "layer": "tower",
        "signature": "embed",
        "outputs": ["embedding", "halves"],
        "batch_size": 512,
        "sha256": HASH,
        "trust": {"classes": ["my_package.layers.L2Distance"]},
    },
    "normalize": {
        "norm": "lp",
        "p": 3.0,
        "outputs": {"halves": {"norm": "l1", "p": None, "axis": "all"}},
        "axis": "all",
        "zero": "nullify",
        "nonfinite": "drop",
        "max_bad_fraction": 0.25,
    },
    "output": {
        "path": "/runs/full",
        "format": "parquet",
        "dtype": "float16",
        "columns": {"vector": "embedding", "norm": "length"},
        "part_rows": 4096,
        "byte_stream_split": True,
    },
    "engine": {
        "kind": "local",
        "devices": [0, 1],
        "workers": 3,
        "threads": 2,
        "mixed_bits": True,
    },
}


def job_of(text: str, tmp_path: Path, name: str = "job.yaml") -> Job:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return Job.load(path)


def refusal_of(text: str, tmp_path: Path, name: str = "job.yaml") -> str:
    with pytest.raises(JobError) as caught:
        job_of(text, tmp_path, name)
    return caught.value.message


def with_value(key: str, value: object) -> dict[str, Any]:
    data: dict[str, Any] = {**json.loads(json.dumps(MINIMAL)), "model": {"path": "model.keras"}}
    *sections, last = key.split(".")
    section = data
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = value
    return data


def test_every_key_of_the_job_file_is_read_and_written_back() -> None:
    job = Job.from_dict(FULL)

    assert job.to_dict() == FULL
    assert job.model is not None
    assert job.model.trust is not None
    assert not isinstance(job.model.trust, str)
    assert job.model.trust.classes == ["my_package.layers.L2Distance"]


def test_defaults_are_those_of_the_documented_job_file() -> None:
    job = Job.from_dict(MINIMAL, base="/jobs")

    assert job.to_dict() == {
        "input": {
            "path": "/jobs/in.parquet",
            "format": None,
            "key": None,
            "keys": None,
            "features": None,
            "passthrough": [],
            "invalid": "fail",
            "fill": {},
            "decode": {},
            "transform": None,
            "dtype": None,
        },
        "model": None,
        "normalize": {
            "norm": "l2",
            "p": None,
            "outputs": {},
            "axis": -1,
            "zero": "keep",
            "nonfinite": "quarantine",
            "max_bad_fraction": 0.001,
        },
        "output": {
            "path": "/jobs/out",
            "format": "parquet",
            "dtype": "float32",
            "columns": {"vector": "vector", "norm": "norm"},
            "part_rows": "auto",
            "byte_stream_split": False,
        },
        "engine": {
            "kind": "local",
            "devices": "auto",
            "workers": "auto",
            "threads": 1,
            "mixed_bits": False,
        },
    }
    model = Model(path="/m.keras")
    assert (model.batch_size, model.outputs, model.layer) == ("auto", None, None)
    assert (model.signature, model.sha256, model.trust) == (None, None, None)


@pytest.mark.parametrize(
    "values",
    [
        MINIMAL,
        FULL,
        with_value("normalize", {"norm": "lp", "p": float("inf")}),
        with_value("normalize.outputs", {"e": {"norm": "lp", "p": float("inf")}}),
    ],
    ids=["minimal", "full", "infinite-p", "infinite-p-of-an-output"],
)
@pytest.mark.parametrize("defaults", [True, False], ids=["all-keys", "changed-keys"])
def test_yaml_and_json_load_back_to_an_equal_job(
    values: dict[str, Any],
    *,
    defaults: bool,
    tmp_path: Path,
) -> None:
    job = Job.from_dict(values)
    through_json = json.loads(json.dumps(job.to_dict(), allow_nan=False))

    assert job_of(job.to_yaml(defaults=defaults), tmp_path) == job
    assert Job.from_dict(through_json) == job
    assert pickle.loads(pickle.dumps(job)) == job  # noqa: S301


def test_changed_keys_alone_are_written_unless_defaults_are_asked_for() -> None:
    job = Job.from_dict({**MINIMAL, "normalize": {"norm": "l1"}}, base="/jobs")

    assert yaml.safe_load(job.to_yaml()) == {
        "input": {"path": "/jobs/in.parquet"},
        "normalize": {"norm": "l1"},
        "output": {"path": "/jobs/out"},
    }


def test_a_text_that_looks_like_a_variable_survives_being_written(tmp_path: Path) -> None:
    job = Job.from_dict(with_value("input.key", "cost_${currency}"))

    assert job_of(job.to_yaml(), tmp_path).input.key == "cost_${currency}"


def test_a_job_is_frozen() -> None:
    job = Job.from_dict(MINIMAL)

    with pytest.raises(ValueError, match="frozen"):
        job.normalize.norm = "l1"


# Each: key, value, what stands after the key in backticks.
WRONG_VALUES = [
    ("inputs", {}, "is not a key. Did you mean `input`?"),
    ("featurs", 1, "is not a key. Known here: `input`, `model`, `normalize`, `output`"),
    ("norm", "l1", "is not a key. Did you mean `normalize.norm`?"),
    ("input.featurs", "x", "is not a key. Did you mean `features`?"),
    ("input.batch_size", 3, "is not a key. Did you mean `model.batch_size`?"),
    ("output.columns.vectors", "v", "is not a key. Did you mean `vector`?"),
    ("normalize.outputs.e.axs", -1, "is not a key. Did you mean `axis`?"),
    ("input.path", None, "must be a path, a list of paths, or {column: path}"),
    ("input.path", "", "Received: '' (text)."),
    ("input.path", [], "Received: [] (a list)."),
    ("input.path", "a\0b", "holds a NUL character"),
    ("input.format", "parqet", "Did you mean `parquet`?"),
    ("input.key", 3, "must be a column name, or a list of column names. Received: 3 (a whole"),
    ("input.key", False, "YAML reads yes, no, on, off and dates by rules of its own"),
    ("input.key", ["id", "id"], "names the column `id` twice"),
    ("input.features", {}, "or {model input: column or list of columns}. Received: {}"),
    (
        "input.passthrough",
        "label",
        "must be a list of column names. Received: 'label' (text). Write `[label]` for a list of",
    ),
    ("input.passthrough", ["a", "b", "a"], "names the column `a` twice"),
    (
        "input.invalid",
        "quarantin",
        "or `drop`. Received: 'quarantin' (text). Did you mean `quarantine`?",
    ),
    ("input.fill.price", float("nan"), "must be text or a finite number. Received: nan"),
    ("input.fill.price", True, "Received: true (a truth value)."),
    (
        "input.decode.image",
        "jpg",
        "must be `jpeg` or `png`. Received: 'jpg' (text). Did you mean `jpeg`?",
    ),
    ("input.transform", "features.py", "must be `module:function`"),
    ("input.transform", "os;x:y", "must be `module:function`"),
    ("input.dtype", "bf16", "must be `bfloat16`. Received: 'bf16'"),
    ("model", "m.keras", "must be a section with the keys `path`, `layer`"),
    ("model.path", 5, "must be a path. Received: 5 (a whole number)."),
    ("model.outputs", "embedding", "Write `[embedding]` for a list of one."),
    ("model.outputs", ["a", "a"], "names `a` twice"),
    ("model.batch_size", 0, "must be a whole number above 0, or `auto`. Received: 0"),
    ("model.batch_size", 1.5, "Received: 1.5 (a number)."),
    ("model.batch_size", True, "Received: true (a truth value)."),
    ("model.batch_size", "aut", "Received: 'aut' (text). Did you mean `auto`?"),
    ("model.sha256", "abc", "must be a SHA-256 of 64 hexadecimal digits. Received: 'abc'"),
    ("model.trust", True, "must be `sha256:` and 64 hexadecimal digits, or {classes: "),
    ("model.trust", HASH, "must be `sha256:` and 64 hexadecimal digits"),
    ("model.trust", {"clases": ["a.B"]}, "must be `sha256:` and 64 hexadecimal digits, or"),
    ("model.trust", {"classes": ["os; rm"]}, "must be `sha256:` and 64 hexadecimal digits, or"),
    (
        "normalize.norm",
        False,
        "is false: YAML reads an unquoted `no`, `off` or `false` as that. Write `norm: none`",
    ),
    ("normalize.norm", None, "is empty. Write `norm: none`"),
    ("normalize.norm", 2, "Received: 2. Did you mean `l2`?"),
    ("normalize.norm", "cosin", "Did you mean 'cosine'?"),
    ("normalize.norm", "lp:0.5", "Received: "),
    ("normalize.p", 0, "must be a number of at least 1. Received: 0"),
    ("normalize.p", -2, "must be a number of at least 1. Received: -2"),
    ("normalize.p", float("nan"), "must be a number of at least 1. Received: nan"),
    ("normalize.p", "three", "must be a number of at least 1. Received: 'three'"),
    ("normalize.p", 3, "belongs to the norm 'lp' alone"),
    ("normalize.axis", 1, "must be `-1` or `all`. Received: 1 (a whole number). -1 is the last"),
    ("normalize.zero", "quarantined", "Did you mean `quarantine`?"),
    ("normalize.nonfinite", "raise", "must be `quarantine`, `fail`, `nullify`, `keep` or `drop`"),
    ("normalize.max_bad_fraction", 1.01, "must be a fraction from 0 to 1. Received: 1.01"),
    ("normalize.max_bad_fraction", float("nan"), "must be a fraction from 0 to 1. Received: nan"),
    ("normalize.max_bad_fraction", "1%", "must be a fraction from 0 to 1. Received: '1%'"),
    ("normalize.outputs.e.norm", "l7", "Unknown norm"),
    ("normalize.outputs.e.p", 3, "belongs to the norm 'lp' alone"),
    ("output.format", "feather", "must be `parquet`, `npy` or `arrow`. Received: 'feather'"),
    ("output.dtype", "bfloat16", "must be `float32`, `float16` or `float64`."),
    ("output.columns.norm", "vector", "is `vector`, the name of the vector column."),
    ("output.part_rows", -1, "must be a whole number above 0, or `auto`. Received: -1"),
    ("engine.kind", "ray", "is `ray`, an engine that this version does not have. Write `local`."),
    ("engine.kind", "spark", "is `spark`, an engine that this version does not have."),
    ("engine.devices", 0, "Received: 0 (a whole number). Write `[0]` for the first GPU alone."),
    ("engine.devices", "tpu", "must be `auto`, `cpu`, `gpu`, or a list of GPU numbers"),
    ("engine.threads", "auto", "must be a whole number above 0. Received: 'auto' (text)."),
    ("engine.mixed_bits", 1, "must be true or false. Received: 1 (a whole number)."),
]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    WRONG_VALUES,
    ids=[f"{key}={value!r:.24}" for key, value, _ in WRONG_VALUES],
)
def test_a_wrong_value_is_named_by_its_key_alone(key: str, value: object, text: str) -> None:
    with pytest.raises(JobError) as caught:
        Job.from_dict(with_value(key, value))

    message = caught.value.message
    assert message.startswith(f"job: `{key}` ")
    assert text in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("section", "values", "key", "text"),
    [
        ("normalize", {"norm": "lp"}, "normalize.p", "needs its order"),
        ("normalize", {"norm": "max", "p": 3}, "normalize.p", "belongs to the norm 'lp' alone"),
        ("input", {"path": "x", "format": "parquet", "keys": "k"}, "input.keys", "is for NPY"),
        ("input", {"path": "x", "format": "arrow", "dtype": "bfloat16"}, "input.dtype", "NPY"),
        ("input", {"path": {"a": "x"}, "format": "parquet"}, "input.path", "several NPY files"),
        ("input", {"path": "x", "key": "i", "passthrough": ["i"]}, "input.passthrough", "`i`"),
        (
            "output",
            {"path": "out", "format": "npy", "byte_stream_split": True},
            "output.byte_stream_split",
            "`output.format` is `npy`",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused(
    section: str, values: dict[str, Any], key: str, text: str
) -> None:
    with pytest.raises(JobError) as caught:
        Job.from_dict({**MINIMAL, section: values})

    assert caught.value.message.startswith(f"job: `{key}` ")
    assert text in caught.value.message


def test_everything_wrong_is_reported_at_once(tmp_path: Path) -> None:
    message = refusal_of(
        """
        input: {featurs: pixels, invalid: skip, key: '${NO_SUCH_VARIABLE}'}
        model: {path: 3}
        normalize: {norm: no, max_bad_fraction: lots}
        output: {path: out, part_rows: 0}
        engine: {kind: ray, threads: 0}
        """,
        tmp_path,
    )

    keys = re.findall(r"^  `([\w.]+)` ", message, flags=re.MULTILINE)
    assert sorted(keys) == [
        "engine.kind",
        "engine.threads",
        "input.featurs",
        "input.invalid",
        "input.key",
        "input.path",
        "model.path",
        "normalize.max_bad_fraction",
        "normalize.norm",
        "output.part_rows",
    ]
    assert message.startswith(f"{tmp_path / 'job.yaml'}: 10 things need correcting:")


@pytest.mark.parametrize("key", ["input.path", "output.path"])
def test_a_missing_key_says_what_belongs_there(key: str) -> None:
    section = key.partition(".")[0]
    rest = {name: values for name, values in MINIMAL.items() if name != section}

    for data in (rest, {**rest, section: None}, {**rest, section: {}}):
        with pytest.raises(JobError, match=rf"^job: `{key}` is missing. Expected: a path"):
            Job.from_dict(data)


def test_sections_built_in_python_refuse_with_the_same_words() -> None:
    with pytest.raises(JobError, match=r"^Input: `featurs` is not a key. Did you mean `features`"):
        Input(path="x", featurs="y")  # type: ignore[call-arg]
    with pytest.raises(JobError, match=r"^Engine: `threads` must be a whole number above 0"):
        Engine(threads=0)
    with pytest.raises(JobError, match=r"^Job: `output.path` lies inside the input"):
        Job(input=Input(path="/data"), output=Output(path="/data/out"))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("normalize.max_bad_fraction", "1e-12", 1e-12),
        ("normalize.max_bad_fraction", "1", 1.0),
        ("model.batch_size", "1e3", 1000),
        ("model.batch_size", "'1024'", 1024),
        ("model.batch_size", "auto", "auto"),
        ("output.part_rows", "65_536", 65536),
        ("normalize.axis", "'-1'", -1),
        ("engine.mixed_bits", "'true'", True),
        ("engine.devices", "[0, 1]", [0, 1]),
        ("model.sha256", f"sha256:{HASH.upper()}", HASH),
        ("model.trust", f"sha256:{HASH.upper()}", f"sha256:{HASH}"),
        ("input.key", "'2024'", "2024"),
        ("normalize.norm", "none", "none"),
        ("normalize.norm", "lp:2.5", "lp:2.5"),
    ],
)
def test_values_as_yaml_spells_them(key: str, text: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("input: {path: a}\nmodel: {path: m}\noutput: {path: b}\n", encoding="utf-8")

    found: Any = Job.load(path, [f"{key}={text}"])
    for name in key.split("."):
        found = getattr(found, name)

    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("values", "name", "label", "axis"),
    [
        ({"norm": "cosine"}, "any", "l2", -1),
        ({"norm": "lp", "p": 3, "axis": "all"}, "any", "lp:3", "all"),
        ({"outputs": {"e": {"norm": "l1"}}}, "e", "l1", -1),
        ({"outputs": {"e": {"norm": "l1"}}}, "other", "l2", -1),
        ({"norm": "lp", "p": 3, "outputs": {"e": {"p": 4}}}, "e", "lp:4", -1),
        ({"norm": "lp", "p": 3, "outputs": {"e": {"norm": "max"}}}, "e", "max", -1),
        ({"norm": "lp", "p": 3, "outputs": {"e": {"axis": "all"}}}, "e", "lp:3", "all"),
        ({"norm": "max", "axis": "all", "outputs": {"e": {"axis": -1}}}, "e", "max", -1),
    ],
)
def test_each_output_gets_its_own_norm_and_axis(
    values: dict[str, Any], name: str, label: str, axis: object
) -> None:
    norm, its_axis = Job.from_dict({**MINIMAL, "normalize": values}).normalize.for_output(name)

    assert (norm.label, its_axis) == (label, axis)


# Paths


def test_relative_paths_start_from_the_job_file_whatever_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "job.yaml").write_text(
        """
        input: {path: [../data/*.parquet, s3://bucket/x, /abs/y], keys: keys.npy}
        model: {path: ../model.keras}
        output: {path: ../runs/x}
        """,
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)

    job = Job.load("jobs/job.yaml")

    assert job.input.path == [f"{tmp_path}/data/*.parquet", "s3://bucket/x", "/abs/y"]
    assert job.input.paths == job.input.path
    assert job.input.keys == f"{tmp_path}/jobs/keys.npy"
    assert job.model is not None
    assert job.model.path == f"{tmp_path}/model.keras"
    assert job.output.path == f"{tmp_path}/runs/x"


def test_paths_given_in_python_start_from_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")

    assert Input(path="x.npy").path == f"{tmp_path}/x.npy"
    assert Input(path=Path("x.npy")).path == f"{tmp_path}/x.npy"  # type: ignore[arg-type]
    assert Input(path={"a": "x.npy"}).paths == [f"{tmp_path}/x.npy"]
    assert Output(path="~/runs").path == "/home/someone/runs"


@pytest.mark.parametrize(
    ("given", "output", "text"),
    [
        ("/data", "/data", "lies inside the input"),
        ("/data", "/data/out", "lies inside the input"),
        (["/other", "/data"], "/data/../data/out/x", "lies inside the input"),
        ("/data/*", "/data/out", "lies inside the input"),
        ("/data/**/*.parquet", "/data/deep/out", "lies inside the input"),
        ("/runs/in.npy", "/runs", "holds /runs/in.npy, which a new result would replace"),
        ({"a": "/runs/in.npy"}, "/runs", "holds /runs/in.npy"),
        ("s3://bucket/data", "s3://bucket/data/out", "lies inside the input"),
    ],
)
def test_input_and_output_lie_apart(given: Any, output: str, text: str) -> None:
    with pytest.raises(JobError, match=r"`output\.path` ") as caught:
        Job.from_dict({"input": {"path": given}, "output": {"path": output}})

    assert text in caught.value.message


def test_an_output_does_not_hold_the_model() -> None:
    model = {"path": "/runs/x/model.keras"}

    with pytest.raises(JobError, match=r"holds /runs/x/model\.keras"):
        Job.from_dict({**MINIMAL, "model": model, "output": {"path": "/runs/x"}})


@pytest.mark.parametrize(
    ("inner", "outer"),
    [("/database", "/data"), ("/data/out", "/data/*.parquet"), ("/data", "/data/out")],
)
def test_neighbours_are_not_inside(inner: str, outer: str) -> None:
    assert not lies_within(inner, outer)


SECRET_URIS = [
    "s3://AKIA:s3cr3t@bucket/x",
    "s3://AKIA:s3cr3t/with/slashes@bucket/x",
    "s3://AKIA:s3cr3t",
    "s3://s3cr3t@bucket/x",
    "https://s3cr3t@host/x",
    "abfss://box:s3cr3t@host/x",
    "s3://bucket/x?access_key=s3cr3t&region=eu",
    "s3://bucket/x?region=eu&secret_key=s3cr3t",
    "https://host/x?X-Amz-Signature=s3cr3t",
    "https://host/x?sv=1&sig=s3cr3t",
]


@pytest.mark.parametrize("uri", SECRET_URIS)
@pytest.mark.parametrize("key", ["input.path", "input.keys", "model.path", "output.path"])
def test_credentials_in_a_uri_are_refused_and_never_shown(key: str, uri: str) -> None:
    with pytest.raises(JobError, match=rf"`{key}` holds credentials") as caught:
        Job.from_dict(with_value(key, uri))

    assert "s3cr3t" not in caught.value.message
    assert "s3cr3t" not in repr(caught.value.__cause__)
    assert "***" in caught.value.message


def test_a_secret_beside_another_mistake_is_not_shown_either() -> None:
    with pytest.raises(JobError) as caught:
        Job.from_dict(with_value("input.path", ["s3://a:s3cr3t@bucket", 3]))

    assert "s3cr3t" not in caught.value.message


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a@b.parquet",
        "s3://bucket/x?region=eu-west-1&endpoint_override=localhost:9000",
        "http://localhost:9000/x",
        "abfss://container@account.dfs.core.windows.net/x",
        "gs://anonymous@bucket/x",
        "not a uri: me:you@here",
    ],
)
def test_uris_without_secrets_are_left_alone(uri: str) -> None:
    assert mask_secrets(uri) == uri


def test_masked_is_the_whole_job_with_secrets_hidden() -> None:
    job = Job.from_dict(with_value("input.fill.note", "s3://a:s3cr3t@bucket"))

    masked = job.masked()

    assert masked["input"]["fill"] == {"note": "s3://***@bucket"}
    assert {**masked, "input": None} == {**job.to_dict(), "input": None}


# Reading


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Received: nothing."),
        ("- a\n", "Received: list."),
        ("input: {path: a\n", "line 2, column 1: "),
        ("\tinput: 1\n", "line 1, column 1: "),
        ("input: &a {path: x}\noutput: *a\n", "line 2, column 9: the alias *a is not allowed"),
        ("a: !!python/name:os.system ''\n", "line 1, column 4: the tag "),
        ("a: !!binary eA==\n", "the tag tag:yaml.org,2002:binary is not allowed"),
        ("a: !x 1\n", "the tag !x is not allowed"),
        ("input: {a: b}\ninput: {a: b}\n", "line 2, column 1: the key `input` is given twice"),
        ("input: {path: a, path: b}\n", "line 1, column 18: the key `path` is given twice"),
        ("input: {key: ${ID}}\n", "put a text with `${` into quotes"),
        ("? [a]\n: 1\n", "a key must be text"),
        ("a: 2001-99-99\n", "the value of `a` is not a date or number"),
        ("a: " + "[" * 5000, "more than 20 levels are nested"),
        ("a: 1\n---\na: 2\n", "line 2, column 1: "),
        ("a: \x00\n", "a value or character cannot be read"),
    ],
    ids=[
        "empty", "list", "unclosed", "tab", "alias", "python-tag", "binary-tag", "own-tag",
        "key-twice", "inner-key-twice", "bare-variable", "list-as-key", "no-such-day", "deep",
        "two-documents", "nul",
    ],
)  # fmt: skip
def test_a_file_that_is_no_plain_yaml_is_refused(text: str, words: str, tmp_path: Path) -> None:
    message = refusal_of(text, tmp_path)

    assert message.startswith(str(tmp_path / "job.yaml"))
    assert words in message


def test_an_alias_bomb_is_refused_at_its_first_alias(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]

    assert "line 2, column 10: the alias *a0 is not allowed" in refusal_of(
        "\n".join(lines), tmp_path
    )


def test_a_syntax_error_does_not_quote_the_lines_around_it(tmp_path: Path) -> None:
    text = "input: {path: 's3://me:s3cr3t@bucket', key: [\noutput: }\n"

    assert "s3cr3t" not in refusal_of(text, tmp_path)


def test_keys_are_names_even_where_yaml_sees_something_else(tmp_path: Path) -> None:
    text = "input: {path: a, fill: {on: 1, 7: 2}}\noutput: {path: b}\n"

    assert job_of(text, tmp_path).input.fill == {"on": 1, "7": 2}


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "latin").write_bytes(b"input: \xff")
    (tmp_path / "large").write_bytes(b"#" * (1 << 20) + b"#")

    for name, words in {
        "missing.yaml": "cannot be read: No such file or directory",
        "fifo": "must be a regular file",
        ".": "must be a regular file",
        "latin": "it is not UTF-8 text",
        "large": "has at most 1048576 bytes",
    }.items():
        with pytest.raises(JobError, match=words):
            read_job_file(tmp_path / name)


def test_toml_makes_the_same_job_as_yaml(tmp_path: Path) -> None:
    toml = """
        [input]
        path = "in.parquet"
        features = {image = ["a", "b"]}
        [normalize]
        norm = "lp"
        p = 3
        [output]
        path = "out"
    """
    text = """
        input: {path: in.parquet, features: {image: [a, b]}}
        normalize: {norm: lp, p: 3}
        output: {path: out}
    """

    assert job_of(toml, tmp_path, "job.toml") == job_of(text, tmp_path)
    assert "is not valid TOML" in refusal_of("[input", tmp_path, "job.toml")
    assert "is not valid TOML" in refusal_of("a = " + "[" * 90000, tmp_path, "job.toml")


# Overrides and the environment


def test_overrides_are_read_as_yaml_and_the_last_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("input: {path: a, key: id}\nmodel:\noutput: {path: b}\n", encoding="utf-8")

    job = Job.load(
        path,
        [
            "normalize.norm=l1",
            "normalize.norm=max",
            "input.features=[x, y]",
            "input.key=",
            "model.path=m.keras",
            "output.columns.vector=a=b",
        ],
    )

    assert job.normalize.norm == "max"
    assert job.input.features == ["x", "y"]
    assert job.input.key is None
    assert job.model == Model(path=str(tmp_path / "m.keras"))
    assert job.output.columns.vector == "a=b"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("norm", "--set takes `section.key=value`. Received: 'norm'."),
        ("=l1", "Received: '=l1'."),
        ("a..b=l1", "Received: 'a..b=l1'."),
        ("input.path.x=1", "--set input.path.x: `input.path` holds one value"),
        ("input.key=[a", "--set input.key, line 1, column 3: "),
        ("input.key=!!str a", "the tag tag:yaml.org,2002:str is not allowed"),
        ("normalize.nrom=l1", "`normalize.nrom` is not a key. Did you mean `norm`?"),
    ],
)
def test_a_wrong_override_is_refused(override: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("input: {path: a}\noutput: {path: b}\n", encoding="utf-8")

    with pytest.raises(JobError, match=re.escape(words)):
        Job.load(path, [override])


def test_overriding_leaves_the_given_values_alone() -> None:
    data: dict[str, Any] = {"normalize": {"norm": "l2"}}

    assert set_values(data, ["normalize.norm=l1"]) == {"normalize": {"norm": "l1"}}
    assert data == {"normalize": {"norm": "l2"}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${SET}", "here"),
        ("${SET:-default}", "here"),
        ("${UNSET:-default}", "default"),
        ("${EMPTY:-default}", "default"),
        ("${UNSET:-}", None),
        ("${EMPTY}", None),
        ("a/${UNSET:-}/${SET}-${SET}", "a//here-here"),
        ("${NESTED}", "${SET}"),
        ("$${SET}", "${SET}"),
        ("$SET and $ alone", "$SET and $ alone"),
        ("${UNSET:-a:-b}", "a:-b"),
    ],
)
def test_variables_are_expanded_in_texts(text: str, value: str | None) -> None:
    environment = {"SET": "here", "EMPTY": "", "NESTED": "${SET}"}

    assert expand_environment({"a": {"b": [text, 3]}}, environment) == (
        {"a": {"b": [value, 3]}},
        {},
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("${NO_SUCH_VARIABLE}", "needs the environment variable `NO_SUCH_VARIABLE`, which is not"),
        ("x/${NO_SUCH_VARIABLE", "has a `${` that is not an environment variable."),
        ("${1}", "has a `${` that is not an environment variable."),
        ("${}", "has a `${` that is not an environment variable."),
        ("${A:=b}", "has a `${` that is not an environment variable."),
    ],
)
def test_a_variable_that_cannot_be_expanded_is_named_with_its_key(
    text: str, words: str, tmp_path: Path
) -> None:
    message = refusal_of(f"input: {{path: a, key: '{text}'}}\noutput: {{path: b}}\n", tmp_path)

    assert message.startswith(f"{tmp_path / 'job.yaml'}: `input.key` {words}")


def test_variables_give_numbers_and_flags_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH", "256")
    monkeypatch.setenv("FRACTION", "1e-3")
    monkeypatch.setenv("MIXED", "true")

    job = job_of(
        """
        input: {path: a}
        model: {path: m, batch_size: "${BATCH}", sha256: "${PIN:-}"}
        normalize: {max_bad_fraction: "${FRACTION}"}
        output: {path: b}
        engine: {mixed_bits: "${MIXED}", workers: "${WORKERS:-auto}"}
        """,
        tmp_path,
    )

    assert job.model is not None
    assert (job.model.batch_size, job.model.sha256) == (256, None)
    assert job.normalize.max_bad_fraction == 0.001
    assert (job.engine.mixed_bits, job.engine.workers) == (True, "auto")


# Examples, schema, import


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_an_example_job_loads_and_its_files_are_there(path: Path) -> None:
    job = Job.load(path)

    assert job.model is not None
    assert all(Path(each).exists() for each in [*job.input.paths, job.model.path])
    assert Path(job.output.path).parent == ROOT / "runs"


def test_the_nightly_example_takes_its_places_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SCORING_INPUT", "/data/items")
    monkeypatch.setenv("SCORING_NIGHT", "2025-01-31")
    monkeypatch.setenv("SCORING_MAX_BAD_FRACTION", "0.02")
    monkeypatch.setenv("SCORING_WORKERS", "4")

    job = Job.load(ROOT / "configs" / "nightly.yaml")

    assert job.input.path == "/data/items"
    assert job.output.path == str(ROOT / "runs" / "nightly-2025-01-31")
    assert (job.normalize.max_bad_fraction, job.engine.workers) == (0.02, 4)
    assert job.input.invalid == job.normalize.nonfinite == "quarantine"


def test_the_schema_describes_every_key() -> None:
    schema = job_schema()

    described = {
        name: list(definition["properties"])
        for name, definition in schema["$defs"].items()
        if "properties" in definition
    }
    assert list(schema["properties"]) == list(Job.model_fields)
    assert schema["required"] == ["input", "output"]
    assert schema["additionalProperties"] is False
    assert described["Normalize"] == list(Normalize.model_fields)
    assert described["Input"] == list(Input.model_fields)
    for definition in schema["$defs"].values():
        assert all("description" in key for key in definition["properties"].values())
    json.dumps(schema, allow_nan=False)


def test_the_schema_bounds_numbers_and_lets_a_variable_stand_for_one() -> None:
    fraction = job_schema()["$defs"]["Normalize"]["properties"]["max_bad_fraction"]

    assert fraction["anyOf"] == [
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "string", "pattern": r"^\$\{.+\}$"},
    ]


def test_reading_a_job_imports_no_tensorflow_pandas_or_pyarrow() -> None:
    code = (
        "import sys, batchnorm_tool.job as j; j.Job.load('configs/quickstart.yaml');"
        "print(sorted({'tensorflow', 'keras', 'pandas', 'pyarrow'} & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"
