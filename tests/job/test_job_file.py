from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from batchnorm_tool.errors import JobError
from batchnorm_tool.job import Job, Model
from batchnorm_tool.job.loader import (
    escape_variables,
    expand_environment,
    read_job_file,
    set_values,
)
from tests.job.job_texts import job_of, refusal_of

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


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
        ("input: {key: ${ID}}\n", "quote strings that contain `${`"),
        ("? [a]\n: 1\n", "a key must be a string"),
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
        "large": "at most 1,048,576 bytes",
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
        ("input.path.x=1", "--set input.path.x: `input.path` is a single value"),
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


def test_escaped_texts_are_expanded_to_themselves() -> None:
    values = {"column": "a${b}", "more": ["${SET}", 3, None]}

    escaped = escape_variables(values)

    assert escaped == {"column": "a$${b}", "more": ["$${SET}", 3, None]}
    assert expand_environment(escaped, {"SET": "here"}) == (values, {})


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


# Examples


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_an_example_job_loads_and_its_files_are_there(path: Path) -> None:
    job = Job.load(path)

    assert job.model is not None
    assert all(Path(each).exists() for each in [*job.input.paths, job.model.path])
    place = job.store.path if job.store else job.output.path
    assert Path(place).parent == ROOT / "runs"


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


def test_reading_a_job_imports_no_tensorflow_pandas_or_pyarrow() -> None:
    code = (
        "import sys, batchnorm_tool.job as j; j.Job.load('configs/quickstart.yaml');"
        "print(sorted({'tensorflow', 'keras', 'pandas', 'pyarrow'} & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"
