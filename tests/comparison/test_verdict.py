"""Every verdict, from the figures that it is made of."""

from __future__ import annotations

from typing import Any

import pytest

from batchnorm_tool.comparison.verdict import verdict

HEADLINE = "precision@10"


def document(
    values: dict[str, float | None], p: dict[str, float], **changes: Any
) -> dict[str, Any]:
    """A comparison of the norms that have a value; each with its corrected p-value."""
    first, *others = values
    return {
        "metric": "euclidean",
        "compared": list(values),
        "headline": HEADLINE,
        "queries": {"judged": 1234},
        "quality": {norm: {HEADLINE: interval(value)} for norm, value in values.items()},
        "tests": {"against": first}
        | {
            norm: {HEADLINE: significance(values[first], values[norm], p.get(norm))}
            for norm in others
        },
        "overlap": {first: {norm: {"10": 0.38} for norm in values}},
        "k": [10],
        "unit_share": {"l1": 0.0, "l2": 0.0, "max": 0.0},
        "relevance": {"kind": "labels", "clicks": False},
    } | changes


def interval(value: float | None) -> dict[str, float | None]:
    if value is None:
        return dict.fromkeys(("value", "low", "high"))
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def significance(
    one: float | None, other: float | None, p: float | None
) -> dict[str, float | None]:
    if one is None or other is None:
        return dict.fromkeys(("difference", "low", "high", "p", "p_holm"))
    difference = other - one
    ends = {"low": difference - 0.02, "high": difference + 0.02}
    return {"difference": difference, **ends, "p": p, "p_holm": p}


def test_the_best_of_those_that_are_shown_to_be_better_is_named() -> None:
    values = {"none": 0.702, "l1": 0.89, "l2": 0.963, "max": 0.98}
    found = verdict(document(values, {"l1": 0.0003, "l2": 0.0003, "max": 0.2}))
    assert (found["norm"], found["kind"]) == ("l2", "better")
    assert found["words"] == (
        "Normalize by l2: precision@10 is 0.963 (0.953 to 0.973), against 0.702 (0.692 to 0.712) "
        "with none."
    )
    assert found["reason"].startswith(
        "The difference of +0.261 (95 % interval +0.241 to +0.281) over 1,234 judged queries is "
        "significant (p below 0.001, corrected for the number of norms)."
    )
    assert "38.0 % of the 10 nearest rows stay" in found["cost"]
    assert "no longer affects its rank" in found["cost"]
    assert found["notes"] == []


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (0.89, " Next best is l1, 0.073 lower."),
        (
            0.95,
            " Next best is l1, 0.013 lower; their intervals overlap, so that either may be used.",
        ),
        (0.6, " Next best is max, 0.263 lower."),
    ],
    ids=["apart", "overlapping", "third"],
)
def test_the_next_best_norm_is_named(second: float, words: str) -> None:
    values = {"none": 0.7, "l1": second, "l2": 0.963, "max": 0.7}
    p = {"l1": 0.001, "l2": 0.001, "max": 1.0}
    assert verdict(document(values, p))["reason"].endswith(f"number of norms).{words}")


def test_of_two_norms_none_is_next() -> None:
    found = verdict(document({"none": 0.7, "l2": 0.8}, {"l2": 0.012}))
    assert found["reason"].endswith("(p = 0.012, corrected for the number of norms).")


def test_leaving_vectors_as_they_are_can_be_better() -> None:
    found = verdict(document({"l2": 0.7, "none": 0.8}, {"none": 0.001}))
    assert (found["norm"], found["kind"]) == ("none", "better")
    assert found["words"].startswith("Keep none, as stored: precision@10")
    assert found["cost"] == "Nothing: the vectors are stored that way."


@pytest.mark.parametrize(
    ("stored", "words", "cost"),
    [
        ("l2", "Keep l2, as stored:", "Nothing: the vectors are stored that way."),
        ("l1", "Normalize by l2:", "Stored vectors and the index must be rebuilt"),
    ],
)
def test_what_a_run_stores_decides_what_a_choice_costs(stored: str, words: str, cost: str) -> None:
    figures = document({"none": 0.7, "l2": 0.8}, {"l2": 0.001})
    found = verdict({**figures, "source": {"provenance": {"norm": stored}}})
    assert found["norm"] == "l2"
    assert found["words"].startswith(words)
    assert found["cost"].startswith(cost)


def test_of_a_run_of_unit_vectors_leaving_them_as_they_were_has_a_cost() -> None:
    figures = document({"l2": 0.7, "none": 0.8}, {"none": 0.001})
    found = verdict({**figures, "source": {"provenance": {"norm": "l2"}}})
    assert "Long rows then rank higher than short ones." in found["cost"]


def test_rows_of_unit_length_are_noted() -> None:
    figures = document({"none": 0.7, "l2": 0.7}, {"l2": 1.0})
    found = verdict({**figures, "unit_share": {"l1": 0.0, "l2": 1.0, "max": 0.0}})
    assert found["notes"][-1].startswith("The rows already have unit L2 length")


def test_where_the_others_are_worse_it_stays_with_the_first() -> None:
    values = {"none": 0.8, "l1": 0.6, "l2": 0.79, "max": 0.7}
    found = verdict(document(values, {"l1": 0.001, "l2": 0.3, "max": 0.049}))
    assert (found["norm"], found["kind"]) == ("none", "better")
    assert found["words"].startswith("Keep none, as stored: precision@10 is 0.800 (0.790 to 0.810)")
    assert found["reason"] == "Shown to be worse over 1,234 judged queries: l1 -0.200, max -0.100."
    assert found["cost"].startswith("Nothing")


@pytest.mark.parametrize("l2", [0.9, 0.5], ids=["above", "below"])
def test_chance_is_no_difference(l2: float) -> None:
    found = verdict(document({"none": 0.7, "l1": 0.71, "l2": l2}, {"l1": 0.8, "l2": 0.05}))
    assert (found["norm"], found["kind"], found["cost"]) == (None, "no difference", "")
    assert found["words"].startswith("No significant difference in this sample: by precision@10")
    assert "1,234 judged queries" in found["reason"]
    assert "smallest corrected p is 0.050" in found["reason"]


def test_queries_without_judgements_tell_nothing() -> None:
    found = verdict(document({"none": None, "l2": None}, {}, queries={"judged": 0}))
    assert (found["norm"], found["kind"]) == (None, "not judged")
    assert found["words"].startswith("No query is judged")


@pytest.mark.parametrize("judged", [True, False], ids=["judged", "not judged"])
def test_one_norm_is_no_comparison(judged: bool) -> None:  # noqa: FBT001
    changes = {} if judged else {"quality": None, "tests": None, "headline": None}
    found = verdict(document({"l2": 0.7}, {}, **changes))
    assert (found["norm"], found["kind"]) == (None, "not judged")
    assert "A single norm" in found["words"]


def unjudged(share: float, **changes: Any) -> dict[str, Any]:
    overlap = {"none": {"none": {"10": 1.0}, "l1": {"10": 1.0}, "l2": {"10": share}}}
    nothing = {"quality": None, "tests": None, "headline": None, "relevance": None}
    values: dict[str, float | None] = dict.fromkeys(overlap["none"], 0.5)
    return document(values, {}, overlap=overlap, **nothing, **changes)


def test_other_neighbours_without_judgements_are_not_judged() -> None:
    found = verdict(unjudged(0.98))
    assert (found["norm"], found["kind"]) == (None, "not judged")
    assert "`--label`" in found["words"]
    assert "`--relevance`" in found["words"]
    words = "Share of the 10 nearest rows in common with none: l1 1.00, l2 0.98."
    assert found["reason"] == words


@pytest.mark.parametrize(
    ("unit", "words"),
    [(0.2, "at 10."), (1.0, "at 10; 100.0 % of the rows already have unit length.")],
    ids=["lengths", "unit rows"],
)
def test_the_same_neighbours_are_no_difference(unit: float, words: str) -> None:
    found = verdict(unjudged(0.995, unit_share={"l2": unit}))
    assert (found["norm"], found["kind"]) == (None, "no difference")
    assert found["words"] == "No relevant difference: all norms find the same 10 nearest rows."
    assert found["reason"] == f"The overlap with none is at least 0.995 {words}"


def test_under_cosine_no_norm_can_matter() -> None:
    values = {"none": 0.7, "l2": 0.9}
    found = verdict(document(values, {"l2": 0.001}, metric="cosine"))
    assert (found["norm"], found["kind"]) == (None, "cannot matter")
    assert (found["cost"], found["notes"]) == ("", [])
    assert found["words"].startswith("The norm makes no difference")
    assert "divides every vector by its L2 norm" in found["reason"]


@pytest.mark.parametrize("quality", [True, False], ids=["judged", "not judged"])
def test_under_dot_the_norm_of_the_query_is_noted(quality: bool) -> None:  # noqa: FBT001
    asked = document({"none": 0.7, "l2": 0.9}, {"l2": 0.001}) if quality else unjudged(0.5)
    (note,) = verdict(asked | {"metric": "dot"})["notes"]
    assert note.startswith("Under dot product the query's own norm cannot change a ranking")
    assert verdict(asked)["notes"] == []


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
def test_logged_clicks_are_noted(metric: str) -> None:
    changes = {"metric": metric, "relevance": {"kind": "file", "clicks": True}}
    notes = verdict(document({"none": 0.7, "l2": 0.9}, {"l2": 0.001}, **changes))["notes"]
    assert len(notes) == 1 + (metric == "dot")
    assert "Clicks favour the ranking that produced them" in notes[-1]


def test_a_verdict_is_plain_data() -> None:
    found = verdict(document({"none": 0.7, "l2": 0.9}, {"l2": 0.001}, metric="dot"))
    assert list(found) == ["norm", "kind", "words", "reason", "cost", "notes"]
    assert isinstance(found["notes"], list)


def with_options(difference: float, p: float) -> dict[str, Any]:
    """None, l2, and l2 in int8, which differs so far from l2."""
    values = {"none": 0.7, "l2": 0.9, "l2+int8": 0.9 + difference}
    test = {HEADLINE: significance(0.9, 0.9 + difference, p)}
    return document(
        values, {"l2": 0.001, "l2+int8": 0.001}, option_tests=[{"against": "l2", "l2+int8": test}]
    )


@pytest.mark.parametrize(
    ("difference", "p", "norm", "words"),
    [
        (
            0.0004,
            0.2,
            "l2",
            " l2+int8 is 0.0004 higher, which is not shown to be more than chance.",
        ),
        (-0.0004, 0.2, "l2", " Next best is l2+int8, 0.000 lower; their intervals overlap"),
        (0.05, 0.01, "l2+int8", " Next best is l2, 0.050 lower."),
    ],
    ids=["chance", "lower", "shown"],
)
def test_options_are_chosen_only_if_they_are_shown_to_help(
    difference: float, p: float, norm: str, words: str
) -> None:
    found = verdict(with_options(difference, p))
    assert (found["norm"], found["kind"]) == (norm, "better")
    assert words in found["reason"]


def test_under_cosine_options_can_matter() -> None:
    found = verdict(with_options(0.05, 0.01) | {"metric": "cosine"})
    assert (found["norm"], found["kind"]) == ("l2+int8", "better")
    (note,) = found["notes"]
    assert note.startswith("Under cosine the norm itself cannot change a ranking.")


def test_under_cosine_a_power_of_a_norm_cannot_matter() -> None:
    figures = document({"none": 0.7, "power:0.5": 0.9}, {"power:0.5": 0.001}, metric="cosine")
    assert verdict(figures)["kind"] == "cannot matter"


@pytest.mark.parametrize(
    ("best", "words", "cost"),
    [
        ("none:16", "Store the vectors unnormalized (none:16): ", "Long rows then rank higher"),
        ("power:0.25", "Normalize by power:0.25: ", "by their norms to the power of 0.75."),
        ("l2+int8", "Normalize by l2+int8: ", "no longer affects its rank"),
    ],
)
def test_what_the_best_one_costs_is_said_in_its_words(best: str, words: str, cost: str) -> None:
    found = verdict(document({"l1": 0.7, best: 0.8}, {best: 0.001}))
    assert found["words"].startswith(words)
    assert cost in found["cost"]


def test_quantized_vectors_are_stored_as_such() -> None:
    made_of = {"norms": {"vector": {"norm": "l2", "dtype": "int8"}}}
    source = {"provenance": {"norm": "l2", "output": "vector", "made_of": made_of}}
    found = verdict(with_options(0.0004, 0.2) | {"source": source})
    assert found["words"].startswith("Keep l2+int8, as stored: ")
    assert found["cost"].startswith("Nothing")
    assert found["notes"][0].startswith("The vectors are stored as int8: ")
    found = verdict(document({"none": 0.7, "l2": 0.8}, {"l2": 0.001}, source=source))
    assert found["words"].startswith("Normalize by l2: ")
    assert found["cost"].startswith("Stored vectors and the index must be rebuilt")
