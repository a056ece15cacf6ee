from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from batchnorm_tool.report.text_compare import comparison_lines, difference_lines
from tests.report import comparison_documents as documents
from tests.report import difference_documents as differences

Document = dict[str, Any]

COMPARISONS = {
    "with labels": documents.comparison,
    "with clicks": documents.with_clicks,
    "without judgements": lambda: documents.comparison(judged=False),
    "under cosine": documents.under_cosine,
    "by deciles": documents.by_column,
    "long groups": lambda: documents.by_column(["x" * 90] * 12),
    "two norms at one k": lambda: documents.comparison(("none", "l2"), (10,)),
    "one norm": lambda: documents.comparison(("l2",)),
    "full of gaps": documents.full_of_gaps,
}
DIFFS = {"two nights": differences.difference, "nothing in common": differences.nothing_in_common}


def table(lines: list[str], heading: str) -> list[list[str]]:
    """The rows of the table whose first line begins so, up to the next empty line."""
    start = next(n for n, line in enumerate(lines) if line.startswith(heading))
    rest = lines[start:]
    end = rest.index("") if "" in rest else len(rest)
    return [re.split(r"\s{2,}", line) for line in rest[:end]]


def test_the_verdict_comes_first() -> None:
    lines = comparison_lines(documents.comparison())
    first = " ".join(line.strip() for line in lines[: lines.index("")])
    verdict = documents.comparison()["verdict"]
    assert first.startswith(verdict["words"])
    assert first.index(f"Why: {verdict['reason']}") < first.index(f"Cost: {verdict['cost']}")
    assert first.endswith(f"Note: {verdict['notes'][0]}")


def test_quality_comes_with_interval_difference_and_corrected_p() -> None:
    rows = table(comparison_lines(documents.comparison()), "norm  precision@10")
    assert rows[0] == ["norm", "precision@10", "95 % interval", "vs none", "p (Holm)"]
    assert rows[1] == ["none", "0.6500", "0.6365\u20130.6635"]
    assert rows[3] == ["l2", "0.9100", "0.9003\u20130.9197", "+0.2600", "0.0003"]


def test_without_tests_the_columns_for_them_are_left_out() -> None:
    rows = table(comparison_lines(documents.under_cosine()), "norm  precision@10")
    assert rows[0] == ["norm", "precision@10", "95 % interval"]


def test_overlap_hubness_and_norms_follow() -> None:
    lines = comparison_lines(documents.comparison())
    assert table(lines, "overlap@10")[1] == ["none", "1.00", "0.52", "0.38", "0.89"]
    assert table(lines, "hubness, k = 10")[1] == ["none", "2.10", "30.0 %", "310"]
    l2 = documents.comparison()["norms"]["l2"]
    row = table(lines, "norm  min")[2]
    assert float(row[4]) == pytest.approx(l2["quantiles"]["0.5"], rel=1e-3)


def test_groups_are_shown_at_the_headline_and_cut() -> None:
    document = documents.by_column([f"class {n}" for n in range(25)])
    rows = table(comparison_lines(document), "group")
    assert rows[3] == ["class 2", "178", "0.6300", "0.8200", "0.8900", "0.6350"]
    assert rows[-1] == ["… and 15 more groups in the report"]
    assert len(rows) == 12


def test_groups_without_judgements_show_the_overlap_with_the_first_norm() -> None:
    lines = comparison_lines(documents.by_column(["a", "b"], judged=False))
    assert "overlap@10 with none by label" in lines
    assert table(lines, "group")[1] == ["a", "180", "1.0000", "0.5150", "0.3750", "0.8850"]


def test_a_diff_shows_counts_quantiles_shift_and_neighbours() -> None:
    document = differences.difference()
    lines = difference_lines(document)
    assert lines[0].startswith("The vectors moved")
    assert any(
        line.startswith("1,797 rows in A, 1,801 in B: 1,797 in both, 4 added") for line in lines
    )
    assert "added, for example: a-1797, a-1798, a-1799" in lines
    rows = {row[0]: row[1:] for row in table(lines, "  ")}
    assert float(rows["cosine"][3]) == pytest.approx(
        document["cosine"]["quantiles"]["0.5"], rel=1e-4
    )
    assert float(rows["L2 norm in B"][0]) == pytest.approx(document["norms"]["b"]["min"], rel=1e-4)
    assert "norms       PSI 0.0120, KS distance 0.0312" in lines
    assert "centroid    moved by 1.510, 7.31 % of A's spread" in lines
    assert table(lines, "neighbours kept")[3] == ["k = 10", "0.9200", "0.9080\u20130.9310"]
    worst = table(lines, "changed most")
    assert worst[1][0] == document["worst"][0]["key"]
    assert len(worst) == 6


@pytest.mark.parametrize("make", COMPARISONS.values(), ids=COMPARISONS)
@pytest.mark.parametrize("width", [72, 100])
def test_a_comparison_fits_and_hides_nothing_unknown(
    make: Callable[[], Document], width: int
) -> None:
    lines = comparison_lines(make(), width)
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)
    assert not re.search(r"\b(None|nan|inf)\b", "\n".join(lines))


@pytest.mark.parametrize("make", DIFFS.values(), ids=DIFFS)
def test_a_diff_fits_and_hides_nothing_unknown(make: Callable[[], Document]) -> None:
    lines = difference_lines(make())
    assert max(map(len, lines)) <= 72
    assert all(line == line.rstrip() for line in lines)
    assert not re.search(r"\b(None|nan|inf)\b", "\n".join(lines))


def test_hostile_names_cannot_steer_the_terminal() -> None:
    hostile = "\x1b[2J\n\u202erow"
    comparison = documents.by_column([hostile])
    comparison["by"]["column"] = hostile
    diff = differences.difference()
    diff["worst"][0]["key"] = hostile
    diff["examples"]["added"] = [hostile]
    for lines in (comparison_lines(comparison), difference_lines(diff)):
        assert not re.search("[\x00-\x1f\u202a-\u202e]", "".join(lines))
        assert any("\ufffd[2J\ufffd\ufffdrow" in line for line in lines)
