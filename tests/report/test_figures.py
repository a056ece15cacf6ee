"""What pages and summaries look up in the document of a comparison."""

from __future__ import annotations

from typing import Any

import pytest

from batchnorm_tool.report import figures


@pytest.mark.parametrize(
    ("path", "name"), [("runs/digits/", "digits"), ("a.npy", "a.npy"), ("/", "/")]
)
def test_the_last_piece_of_a_path(path: str, name: str) -> None:
    assert figures.base_name(path) == name


@pytest.mark.parametrize(("key", "text"), [(17, "17"), (["shop", 17], "shop, 17"), ([], "")])
def test_a_key_of_several_parts_is_separated_by_commas(key: object, text: str) -> None:
    assert figures.describe_key(key) == text


@pytest.mark.parametrize(
    ("metric", "name"), [("ndcg@10", "nDCG@10"), ("map", "MAP"), ("precision", "precision")]
)
def test_metrics_are_spelled_as_in_the_literature(metric: str, name: str) -> None:
    assert figures.metric_name(metric) == name


def test_metrics_come_by_family_that_of_the_headline_first() -> None:
    quality: dict[str, Any] = {"none": {"map@10": {}, "precision@10": {}, "precision@1": {}}}
    document: Any = {"quality": quality, "headline": "precision@1"}
    assert figures.families(document) == {
        "precision": ["precision@1", "precision@10"],
        "map": ["map@10"],
    }
