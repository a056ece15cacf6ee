"""What cannot be compared is refused in clear words, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchnorm_tool.commands.compare.compare import compare
from batchnorm_tool.errors import BatchnormToolError, InputError, JobError
from tests.commands.compare.compared import WIDTH, draw, labelled_rows


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    return labelled_rows(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"norms": []}, JobError, "`norms` must name different norms. Received: no names"),
        ({"norms": ["l2", "cosine"]}, JobError, "different norms. Received: l2, cosine"),
        ({"norms": ["coisne"]}, JobError, r"Unknown norm.*'coisne'\. Did you mean `cosine`\?"),
        ({"norms": [3]}, JobError, "Unknown norm"),
        ({"norms": 3}, JobError, "Unknown norm"),
        ({"metric": "cosin"}, JobError, r"`metric` must be.*'cosin'\. Did you mean `cosine`\?"),
        (
            {"k": 200},
            InputError,
            r"base\.parquet: the base has only 199 others.*Received: 200\. Use",
        ),
        ({"k": [1, 500]}, InputError, "`k` of at most 199. Received: 500"),
        (
            {"k": []},
            JobError,
            r"`k` must be numbers of neighbours, 1 or more each\. Received: \[\]",
        ),
        ({"k": [0]}, JobError, "`k` must be"),
        ({"k": 1.5}, JobError, r"`k` must be.*Received: 1\.5"),
        ({"k": [True]}, JobError, "`k` must be"),
        ({"k": "10"}, JobError, "`k` must be"),
        ({"sample": 0}, JobError, r"`sample` must be an integer, 1 or more\. Received: 0"),
        ({"sample": 1.5}, JobError, "`sample` must be"),
        ({"seed": -1}, JobError, r"`seed` must be an integer, 0 or more\. Received: -1"),
        ({"seed": True}, JobError, "`seed` must be"),
        (
            {"label": "label", "relevance": "clicks.csv"},
            JobError,
            "`label` and `relevance` both.*Received: label and clicks.csv",
        ),
        (
            {"relevance_columns": ["a", "b"]},
            JobError,
            r"Expected `relevance`.*Received: a, b alone",
        ),
        ({"column": "row"}, InputError, r"no column `row`, which `column` names.*mean `raw`"),
        ({"key": "idd"}, InputError, r"no column `idd`, which `key` names \(did you mean `id`\?\)"),
        ({"label": "labl"}, InputError, r"no column `labl` \(did you mean `label`\?\)"),
        ({"column": 3}, JobError, "`column` must be the name of a column, or a list.*Received: 3"),
        ({"column": ["raw", None]}, JobError, "`column` must be"),
        ({"column": ["raw", "raw"]}, JobError, "`column` must be.*a list of distinct names"),
        ({"key": np.array("id")}, JobError, "`key` must be"),
        ({"label": 3}, JobError, "`label` must be the name of a column. Received: 3"),
        ({"by": ["label"]}, JobError, "`by` must be the name of a column"),
        ({"metric": 3}, JobError, "`metric` must be"),
        ({"relevance": 3}, JobError, "`relevance` must be a path. Received: 3"),
        (
            {"relevance": "clicks.csv", "relevance_columns": 3},
            JobError,
            "`relevance_columns` must be",
        ),
        ({"by": "labl"}, InputError, r"no column `labl` \(did you mean `label`\?\)"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused(
    labelled: Path, arguments: dict[str, Any], error: type[BatchnormToolError], words: str
) -> None:
    with pytest.raises(error, match=words):
        compare(labelled, **arguments)


@pytest.mark.parametrize(
    ("rows", "queries", "words"),
    [
        (
            0,
            None,
            "there are too few rows for neighbours. Expected: at least two rows. Received: 0",
        ),
        (
            1,
            None,
            "there are too few rows for neighbours. Expected: at least two rows. Received: 1",
        ),
        (0, 3, "there are too few rows for neighbours. Expected: at least one row. Received: 0"),
        (3, 0, "no query of 0 can be used.*Received: a source without rows"),
    ],
    ids=str,
)
def test_nothing_to_compare_is_refused(rows: int, queries: int | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        compare(draw(rows), queries=None if queries is None else draw(queries))


def test_queries_of_which_none_is_finite_are_refused() -> None:
    queries = np.full((2, WIDTH), np.nan)
    with pytest.raises(InputError, match=r"array: no query of 2.*Received: null, NaN"):
        compare(draw(), queries=queries)


def test_an_array_has_no_columns() -> None:
    with pytest.raises(JobError, match=r"name columns of a file\. Received: an array"):
        compare(draw(), key="id")
    with pytest.raises(InputError, match=r"array: has no column `label`\. It has only vectors"):
        compare(draw(), label="label")


def test_nothing_is_written_on_refusal(tmp_path: Path, labelled: Path) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError):
        compare(labelled, k=1000).save(tmp_path / "report")
    assert sorted(tmp_path.iterdir()) == before
