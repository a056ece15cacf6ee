"""Job files: any value at any key, any text as YAML or TOML, any text behind `--set`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from batchnorm_tool.job import Job
from tests.fuzz.fuzzing import fuzzed, json_values, mutated, mutated_bytes, only_our_errors

JOB: dict[str, Any] = {
    "input": {
        "path": ["in.parquet", "more"],
        "key": ["id"],
        "features": {"x": ["a", "b"]},
        "passthrough": ["label"],
        "invalid": "drop",
        "fill": {"price": 0.0},
        "decode": {"image": "jpeg"},
    },
    "model": {"path": "m.keras", "batch_size": "auto", "trust": {"classes": ["mine.L2"]}},
    "normalize": {"norm": "lp", "p": 3, "axis": -1, "outputs": {"a": {"norm": "l1"}}},
    "output": {"path": "out", "columns": {"vector": "v", "norm": "n"}, "part_rows": 4096},
    "engine": {"devices": [0, 1], "workers": "auto"},
    "store": {"path": "items.lance", "keep": {"count": 3}},
    "gate": {"action": "hold"},
    "publish": [{"to": "parquet", "path": "snapshots"}, {"to": "pgvector", "table": "items"}],
}
WORDS = (
    *JOB,
    *("path", "key", "features", "norm", "p", "axis", "dtype", "devices", "workers", "keep", "to"),
    *("sha256", "trust", "classes", "columns", "part_rows", "count", "age", "action", "index"),
    *("${HOME}", "${NO_SUCH_VARIABLE}", "${A:-b}", "${", "$${", "a/**", "../x", "~", "lp:3"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def use(job: Job) -> None:
    """What every command does with a job first."""
    assert Job.from_dict(job.to_dict()) == job
    job.to_yaml()
    job.masked()


@fuzzed()
@given(data=mutated(JOB, WORDS))
def test_any_value(data: Any) -> None:
    if isinstance(data, dict):
        with only_our_errors():
            use(Job.from_dict(data))


PIECES = st.sampled_from(
    [
        *(
            "- ",
            ": ",
            "{",
            "}",
            "[",
            "]",
            ", ",
            "\n",
            "\n  ",
            "&a ",
            "*a",
            "!!python/name:os.system ",
        ),
        *(
            "!!binary ",
            "? ",
            "| ",
            "> ",
            "'",
            '"',
            "# ",
            "%YAML 9\n",
            "---\n",
            "...\n",
            "<<: ",
            "@",
        ),
        *(
            "2020-02-31",
            "1e999",
            ".nan",
            "0o8",
            "1_000",
            "12:30:45",
            "yes",
            "\x00",
            "\x1b",
            "\ufeff",
        ),
        *("=", "[[", "]]", '"""', "\\u0000", "\ud800", "\t", "[" * 300, "{a: " * 300, "- " * 300),
        *WORDS,
    ]
)
TEXT = yaml.safe_dump(JOB).encode()


@fuzzed()
@given(
    content=mutated_bytes(TEXT)
    | st.lists(PIECES, max_size=12).map(lambda all_: "".join(all_).encode(errors="surrogatepass")),
    suffix=st.sampled_from([".yaml", ".toml"]),
)
def test_any_text(place: Path, content: bytes, suffix: str) -> None:
    path = place / f"job{suffix}"
    path.write_bytes(content)
    with only_our_errors():
        use(Job.load(path))


@fuzzed()
@given(
    key=st.lists(st.sampled_from([*WORDS, "", "0", "-1"]), min_size=1, max_size=4).map(".".join),
    value=st.lists(PIECES, max_size=5).map("".join) | st.text(max_size=9),
    equals=st.sampled_from(["=", "=", "==", ""]),
)
def test_any_override(place: Path, key: str, value: str, equals: str) -> None:
    (place / "whole.yaml").write_bytes(TEXT)
    with only_our_errors():
        use(Job.load(place / "whole.yaml", [f"{key}{equals}{value}"]))


@fuzzed()
@given(value=json_values(WORDS), key=st.sampled_from(WORDS), section=st.sampled_from([*JOB]))
def test_any_key(value: Any, key: str, section: str) -> None:
    data = {**JOB, section: {key: value}, key: value}
    with only_our_errors():
        use(Job.from_dict(data))
