from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from batchnorm_tool.errors import JobError
from batchnorm_tool.job import Engine, Input, Job, Model, Output
from batchnorm_tool.job.messages import format_value
from tests.job.job_texts import MINIMAL, job_of, refusal_of, with_value

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
        "deduplicate": True,
    },
    "model": {
        "path": "/models/encoder.keras",
        "layer": "tower",
        "signature": "embed",
        "outputs": ["embedding", "halves"],
        "backend": "auto",
        "batch_size": 512,
        "batch_dependent": "accept",
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
    "engine": {"kind": "local", "devices": [0, 1], "workers": 3, "threads": 2, "mixed_bits": True},
}


def run_sections(job: Job) -> dict[str, Any]:
    """The sections that a run looks at; those of a refresh are in test_job_store.py."""
    data = job.to_dict()
    return {name: data[name] for name in ("input", "model", "normalize", "output", "engine")}


def test_every_key_of_the_job_file_is_read_and_written_back() -> None:
    job = Job.from_dict(FULL)

    assert run_sections(job) == FULL
    assert job.model is not None
    assert job.model.trust is not None
    assert not isinstance(job.model.trust, str)
    assert job.model.trust.classes == ["my_package.layers.L2Distance"]


def test_defaults_are_those_of_the_documented_job_file() -> None:
    job = Job.from_dict(MINIMAL, base="/jobs")

    assert run_sections(job) == {
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
            "deduplicate": False,
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
    values: dict[str, Any], *, defaults: bool, tmp_path: Path
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
    ("featurs", 1, "is not a key. Known keys: `input`, `model`, `normalize`, `output`"),
    ("norm", "l1", "is not a key. Did you mean `normalize.norm`?"),
    ("input.featurs", "x", "is not a key. Did you mean `features`?"),
    ("input.batch_size", 3, "is not a key. Did you mean `model.batch_size`?"),
    ("output.columns.vectors", "v", "is not a key. Did you mean `vector`?"),
    ("outputs", {}, "is not a key. Did you mean `output`?"),
    ("model.output", ["a"], "is not a key. Did you mean `outputs`?"),
    ("normalize.output", {}, "is not a key. Did you mean `outputs`?"),
    ("normalize.outputs.e.norms", "l1", "is not a key. Did you mean `norm`?"),
    ("engine.threads", 1025, "must be at most 1,024. Received: 1025"),
    ("input.keys", ["id"], "Did you mean `input.key`, which names columns?"),
    ("input.passthrough", "a,b", "Write `[a,b]` for a list."),
    ("normalize.outputs.e.axs", -1, "is not a key. Did you mean `axis`?"),
    ("input.path", None, "must be a path, a list of paths, or {column: path}"),
    ("input.path", "", "Received: '' (text)."),
    ("input.path", [], "Received: [] (a list)."),
    ("input.path", "a\0b", "contains a NUL character"),
    ("input.format", "parqet", "Did you mean `parquet`?"),
    ("input.key", 3, "must be a column name, or a list of column names. Received: 3 (an integer"),
    ("input.key", False, "YAML converts yes, no, on, off and dates"),
    ("input.key", ["id", "id"], "lists the column `id` twice"),
    ("input.features", {}, "or {model input: column or list of columns}. Received: {}"),
    (
        "input.passthrough",
        "label",
        "must be a list of column names. Received: 'label' (text). Write `[label]` for a list of",
    ),
    ("input.passthrough", ["a", "b", "a"], "lists the column `a` twice"),
    (
        "input.invalid",
        "quarantin",
        "or `drop`. Received: 'quarantin' (text). Did you mean `quarantine`?",
    ),
    ("input.fill.price", float("nan"), "must be text or a finite number. Received: nan"),
    ("input.fill.price", True, "Received: true (a boolean)."),
    (
        "input.decode.image",
        "jpg",
        "must be `jpeg` or `png`. Received: 'jpg' (text). Did you mean `jpeg`?",
    ),
    ("input.transform", "features.py", "must be `module:function`"),
    ("input.transform", "os;x:y", "must be `module:function`"),
    ("input.dtype", "bf16", "must be `bfloat16`. Received: 'bf16'"),
    ("model", "m.keras", "must be a section with the keys `path`, `layer`"),
    ("model.path", 5, "must be a path. Received: 5 (an integer)."),
    ("model.outputs", "embedding", "Write `[embedding]` for a list of one."),
    ("model.outputs", ["a", "a"], "lists the output `a` twice"),
    ("model.batch_size", 0, "must be a positive integer, or `auto`. Received: 0"),
    ("model.batch_size", 1.5, "Received: 1.5 (a number)."),
    ("model.batch_size", True, "Received: true (a boolean)."),
    ("model.batch_size", "aut", "Received: 'aut' (text). Did you mean `auto`?"),
    ("model.sha256", "abc", "must be a SHA-256 of 64 hexadecimal digits. Received: 'abc'"),
    ("model.trust", True, "must be `sha256:` and 64 hexadecimal digits, or {classes: "),
    ("model.trust", HASH, "must be `sha256:` and 64 hexadecimal digits"),
    ("model.trust", {"clases": ["a.B"]}, "must be `sha256:` and 64 hexadecimal digits, or"),
    ("model.trust", {"classes": ["os; rm"]}, "must be `sha256:` and 64 hexadecimal digits, or"),
    (
        "normalize.norm",
        False,
        "is false: YAML reads an unquoted `no`, `off` or `false` that way. Write `norm: none`",
    ),
    ("normalize.norm", None, "is empty. Write `norm: none`"),
    ("normalize.norm", 2, "Received: 2. Did you mean `l2`?"),
    ("normalize.norm", "cosin", "Did you mean `cosine`?"),
    ("normalize.norm", "lp:0.5", "Received: "),
    ("normalize.p", 0, "must be a number of at least 1. Received: 0"),
    ("normalize.p", -2, "must be a number of at least 1. Received: -2"),
    ("normalize.p", float("nan"), "must be a number of at least 1. Received: nan"),
    ("normalize.p", "three", "must be a number of at least 1. Received: 'three'"),
    ("normalize.p", 3, "is only for the norm 'lp'"),
    ("normalize.axis", 1, "must be `-1` or `all`. Received: 1 (an integer). -1 is the last"),
    ("normalize.zero", "quarantined", "Did you mean `quarantine`?"),
    ("normalize.nonfinite", "raise", "must be `quarantine`, `fail`, `nullify`, `keep` or `drop`"),
    ("normalize.max_bad_fraction", 1.01, "must be a fraction from 0 to 1. Received: 1.01"),
    ("normalize.max_bad_fraction", float("nan"), "must be a fraction from 0 to 1. Received: nan"),
    ("normalize.max_bad_fraction", "1%", "must be a fraction from 0 to 1. Received: '1%'"),
    ("normalize.outputs.e.norm", "l7", "Unknown norm"),
    ("normalize.outputs.e.p", 3, "is only for the norm 'lp'"),
    ("output.format", "feather", "must be `parquet`, `npy` or `arrow`. Received: 'feather'"),
    ("output.dtype", "bfloat16", "must be `float32`, `float16` or `float64`."),
    ("output.columns.norm", "vector", "is `vector`, the name of the vector column."),
    ("output.part_rows", -1, "must be a positive integer, or `auto`. Received: -1"),
    ("engine.kind", "ray", "must be `local`. Received: 'ray' (text)."),
    ("output.columns.vector", 3, "must be a column name. Received: 3 (an integer)."),
    ("engine.devices", 0, "Received: 0 (an integer). Write `[0]` for the first GPU alone."),
    ("engine.devices", [0, "cpu"], "mixes the CPU with GPUs, whose low-order bits differ."),
    ("engine.devices", [1, 0, 1], "lists a GPU twice, but each GPU is used by one process."),
    ("engine.devices", ["gpu"], "or a list of GPU numbers, such as [0, 1], or of processes on"),
    ("engine.devices", "tpu", "must be `auto`, `cpu`, `gpu`, or a list of GPU numbers"),
    ("engine.threads", "auto", "must be a positive integer. Received: 'auto' (text)."),
    ("engine.mixed_bits", 1, "must be true or false. Received: 1 (an integer)."),
]


@pytest.mark.parametrize(("devices", "kind"), [([0, 1], "gpu"), (["cpu", "cpu"], "cpu")])
def test_devices_are_of_one_kind_however_many(devices: list[int | str], kind: str) -> None:
    assert Engine(devices=devices).device == kind


@pytest.mark.parametrize("data", [None, 3, "job.yaml", ["input"]], ids=repr)
def test_what_is_no_mapping_is_no_job(data: object) -> None:
    with pytest.raises(JobError, match="A job must be a mapping of sections"):
        Job.from_dict(data)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "words"),
    [("s3://me:secret@bucket", "'s3://***@bucket' (text)"), (False, "false (a boolean)")],
    ids=["secret", "boolean"],
)
def test_a_value_received_is_spelled_as_yaml_would_without_secrets(
    value: object, words: str
) -> None:
    assert format_value(value) == words


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
        ("normalize", {"norm": "lp"}, "normalize.p", "needs `p`"),
        ("normalize", {"norm": "max", "p": 3}, "normalize.p", "is only for the norm 'lp'"),
        ("input", {"path": "x", "format": "parquet", "keys": "k"}, "input.keys", "is for NPY"),
        ("input", {"path": "x", "features": ["a", "a"]}, "input.features", "column `a` twice"),
        ("input", {"path": "x", "features": {"i": ["a", "b", "a"]}}, "input.features", "`a` twice"),
        ("input", {"path": "x", "format": "arrow", "keys": "k"}, "input.keys", "you mean `key`"),
        ("input", {"path": "x", "format": "arrow", "dtype": "bfloat16"}, "input.dtype", "NPY"),
        ("input", {"path": {"a": "x"}, "format": "parquet"}, "input.path", "several NPY files"),
        ("input", {"path": "x", "key": "i", "passthrough": ["i"]}, "input.passthrough", "`i`"),
        (
            "output",
            {"path": "out", "format": "npy", "byte_stream_split": True},
            "output.byte_stream_split",
            "`output.format` is `npy`",
        ),
        (
            "output",
            {"path": "out", "format": "npy", "compression": "lz4"},
            "output.compression",
            "`output.format` is `npy`",
        ),
        ("output", {"path": "out", "compression": "zstd:23"}, "output.compression", "from 1 to 22"),
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
    assert message.startswith(f"{tmp_path / 'job.yaml'}: 10 errors:")


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
    with pytest.raises(JobError, match=r"^Engine: `threads` must be a positive integer"):
        Engine(threads=0)
    with pytest.raises(JobError, match=r"^Job: `output.path` is inside the input"):
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
        ("engine.devices", "[cpu, cpu]", ["cpu", "cpu"]),
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


@pytest.mark.parametrize(
    ("form", "given", "kept"),
    [
        ("parquet", "zstd", None),
        ("parquet", "zstd:1", None),
        ("arrow", "none", None),
        ("parquet", "none", "none"),
        ("parquet", "zstd:9", "zstd:9"),
        ("arrow", "zstd", "zstd:1"),
        ("arrow", "lz4", "lz4"),
    ],
)
def test_a_compression_is_kept_where_it_is_not_the_formats_own(
    form: str, given: str, kept: str | None
) -> None:
    output = {"path": "out", "format": form}
    job = Job.from_dict({**MINIMAL, "output": {**output, "compression": given}})
    plain = Job.from_dict({**MINIMAL, "output": output}).to_dict()["output"]
    assert job.to_dict()["output"] == plain | ({} if kept is None else {"compression": kept})
    assert Job.from_dict(job.to_dict()) == job
