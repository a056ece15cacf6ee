"""Which norm serves predictions: the answer in words, and whether a difference is significant."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, NotRequired, TypedDict, cast

import numpy as np

from batchnorm_tool.comparison.norm_survey import SetFacts, SourceFacts
from batchnorm_tool.comparison.scores import Metric
from batchnorm_tool.comparison.variants import Variant
from batchnorm_tool.display import percent, plural
from batchnorm_tool.norms.norm import Float64s

Numbers = Mapping[str, float | None]
"""The ends of an interval, or the result of a test; all ``None`` where no query is judged."""
Quality = Mapping[str, Mapping[str, Numbers]]
Tests = Mapping[str, str | Mapping[str, Numbers]]
VerdictKind = Literal["better", "no difference", "cannot matter", "not judged"]
# Below this the first norm's lead or lag is called shown by the sample.
_SIGNIFICANCE = 0.05
# What people look at.
_FIRST_SCREEN = 10
# Neighbours that agree so far are the same for whoever reads the first screen.
_ALIKE = 0.99
RESAMPLES = 2_000
CONFIDENCE = 0.95
FLIPS = 10_000
# 8 MiB of float64: the draws of a block of resamples, whatever the number of queries.
_BLOCK_VALUES = 1 << 20
# A sum of 10,000 terms is off by less than this, relative to the sum of their sizes.
_ROUNDING = 1e-12


class VerdictEntry(TypedDict, total=False):
    """A verdict as documents have it; that of a difference has a kind, words and a reason alone.

    Where nothing speaks for a norm, there is none, and no cost of choosing it.
    """

    norm: str | None
    kind: str
    words: str
    reason: str
    cost: str
    notes: list[str]


class RankingFigures(TypedDict):
    """What rankings by several norms have in common, and how good they are.

    Overlaps are by two norms, and the number of neighbours. Quality and tests are ``None`` without
    judgements; tests are of all norms but the first one, which is ``against``; those of norms with
    options are against the same norm without, where both are compared and queries are judged.
    """

    overlap: dict[str, dict[str, dict[str, float]]]
    rbo: dict[str, dict[str, float]]
    hubness: dict[str, Numbers]
    quality: Quality | None
    tests: Tests | None
    option_tests: NotRequired[list[Tests]]


class GroupFigures(RankingFigures):
    """Rankings of some queries."""

    group: str
    queries: int


class GroupedFigures(TypedDict):
    """Rankings by the values of a column."""

    column: str
    kind: str
    groups: list[GroupFigures]


class SurveyFigures(TypedDict):
    """What was asked of a comparison, and what its vectors' norms are."""

    kind: Literal["comparison"]
    version: str
    source: SetFacts
    queries_from: SourceFacts | None
    metric: str
    compared: list[str]
    k: list[int]
    seed: int
    relevance: Mapping[str, object] | None
    norms: dict[str, dict[str, object]]
    rank_correlation: dict[str, Numbers]
    ranked_rows: int
    unit_share: dict[str, float]
    rbo_p: float


class ComparisonFigures(SurveyFigures, RankingFigures):
    """A comparison without its verdict."""

    queries: Mapping[str, int | None]
    by: GroupedFigures | None
    popularity: Numbers | None
    headline: str | None
    warnings: list[str]


class ComparisonDocument(ComparisonFigures):
    """A comparison, as it is written to ``comparison.json``."""

    verdict: VerdictEntry
    seconds: float


def headline_k(ks: Collection[int]) -> int:
    """Return the number of neighbours shown first: the largest up to 10, else the smallest."""
    return max((k for k in ks if k <= _FIRST_SCREEN), default=min(ks))


def verdict(document: ComparisonFigures) -> VerdictEntry:
    """Judge a comparison by its figures.

    A norm is called better than the first one where the paired randomization test at the headline
    metric, corrected for the number of norms, gives a p below 0.05.
    """
    return {**_judged(document), "notes": list(_notes(document))}


def _entry(
    norm: str | None, kind: VerdictKind, words: str, reason: str, cost: str = ""
) -> VerdictEntry:
    return {"norm": norm, "kind": kind, "words": words, "reason": reason, "cost": cost}


def _judged(document: ComparisonFigures) -> VerdictEntry:
    if document["metric"] == Metric.COSINE and not _with_options(document):
        return _entry(
            None,
            "cannot matter",
            "The norm makes no difference: the serving system ranks by cosine.",
            "Cosine divides every vector by its L2 norm before comparing, so that any earlier "
            "scaling of a row cancels out and every norm gives the same ranking.",
        )
    if len(document["compared"]) < 2:
        words = "A single norm leaves nothing to compare. Choose several with `--norms`."
        return _entry(None, "not judged", words, "Only one norm was given.")
    return (_without_relevance if document["quality"] is None else _with_relevance)(document)


def _with_options(document: ComparisonFigures) -> bool:
    return any(Variant.parse(label).plain != label for label in document["compared"])


def _notes(document: ComparisonFigures) -> Iterator[str]:
    if document["metric"] == Metric.COSINE and _with_options(document):
        yield (
            "Under cosine the norm itself cannot change a ranking. Truncation, projection and "
            "quantization change directions, and can."
        )
    if document["metric"] == Metric.DOT:
        yield (
            "Under dot product the query's own norm cannot change a ranking: it scales all scores "
            "of that query equally. Only the norms of the stored rows matter."
        )
    if dtype := _quantized(document):
        yield (
            f"The vectors are stored as {dtype}: norms are compared over what these tell of the "
            "predictions."
        )
    if document["unit_share"]["l2"] > _ALIKE:
        yield (
            "The rows already have unit L2 length, so that none and l2 give the same ranking, and "
            "their original lengths are lost."
        )
    if (document["relevance"] or {}).get("clicks"):
        yield (
            "The relevance file counts several events per query and item, as click logs do. "
            "Clicks favour the ranking that produced them: rows that it never showed cannot be "
            "clicked."
        )


def _without_relevance(document: ComparisonFigures) -> VerdictEntry:
    first, k = document["compared"][0], str(headline_k(document["k"]))
    overlaps = {norm: document["overlap"][first][norm][k] for norm in document["compared"][1:]}
    if min(overlaps.values()) >= _ALIKE:
        share = document["unit_share"]["l2"]
        unit = f"; {percent(share)} of the rows already have unit length" if share > 0.5 else ""
        return _entry(
            None,
            "no difference",
            f"No relevant difference: all norms find the same {k} nearest rows.",
            f"The overlap with {first} is at least {min(overlaps.values()):.3f} at {k}{unit}.",
        )
    said = ", ".join(f"{norm} {overlap:.2f}" for norm, overlap in overlaps.items())
    return _entry(
        None,
        "not judged",
        "The norm changes the neighbours, but there is no ground truth to say which are right. "
        "Add classes with `--label`, or judgements with `--relevance`.",
        f"Share of the {k} nearest rows in common with {first}: {said}.",
    )


def _with_relevance(document: ComparisonFigures) -> VerdictEntry:
    norms = document["compared"]
    values = {norm: _quality(document, norm)["value"] for norm in norms if _quality(document, norm)}
    if len(values) < len(norms):
        words = "No query is judged, so that no norm can be shown to be right."
        return _entry(None, "not judged", words, "No judgement matches a query.")
    first, tests = norms[0], {norm: _test(document, norm) for norm in norms[1:]}
    better = [norm for norm, test in tests.items() if _shown(test, 1)]
    # Options that are not shown to help give way to the norm without, where that is better, too.
    of_options = option_tests(document, str(document["headline"]))
    useless = {norm for norm, plain, test in of_options if plain in better and not _shown(test, 1)}
    better = [norm for norm in better if norm not in useless or norm == _stored(document)]
    worse = [norm for norm, test in tests.items() if _shown(test, -1)]
    if better:
        best = max(better, key=lambda norm: values[norm])
        return _entry(best, "better", *_choice(document, best, first))
    if worse:
        return _keep(document, worse)
    spread = max(values.values()) - min(values.values())
    p = min(test["p_holm"] for test in tests.values())
    headline = document["headline"]
    return _entry(
        None,
        "no difference",
        f"No significant difference in this sample: by {headline}, every norm is as good "
        f"as {first}.",
        f"The values lie within {spread:.4f} of one another over {_queries(document)}, and the "
        f"smallest corrected p is {p:.3f}.",
    )


def _quality(document: ComparisonFigures, norm: str) -> dict[str, float]:
    """Return the headline metric of a norm; nothing where no query is judged."""
    quality, headline = document["quality"], document["headline"]
    return _known(quality[norm][headline]) if quality and headline else {}


def _test(document: ComparisonFigures, norm: str) -> dict[str, float]:
    """Return the test of a norm against the first one at the headline metric."""
    of_norm, headline = (document["tests"] or {}).get(norm), document["headline"]
    return _known(of_norm[headline]) if isinstance(of_norm, Mapping) and headline else {}


def option_tests(document: ComparisonFigures, metric: str) -> list[tuple[str, str, Numbers]]:
    """Return each norm with options, the norm without, and the test of the difference."""
    return [
        (norm, str(tests["against"]), of_norm[metric])
        for tests in document.get("option_tests", [])
        for norm, of_norm in tests.items()
        if isinstance(of_norm, Mapping)
    ]


def _known(numbers: Numbers) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if value is not None}


def _shown(test: Numbers, sign: int) -> bool:
    known = _known(test)
    return known["p_holm"] < _SIGNIFICANCE and sign * known["difference"] > 0


def _choice(document: ComparisonFigures, best: str, first: str) -> tuple[str, str, str]:
    test = _test(document, best)
    quality = {norm: _interval(_quality(document, norm)) for norm in (best, first)}
    words = (
        f"{_advice(document, best)}: {document['headline']} is {quality[best]}, against "
        f"{quality[first]} with {first}."
    )
    p = "p below 0.001" if test["p_holm"] < 0.001 else f"p = {test['p_holm']:.3f}"
    reason = (
        f"The difference of {test['difference']:+.3f} (95 % interval {test['low']:+.3f} to "
        f"{test['high']:+.3f}) over {_queries(document)} is significant ({p}, corrected for "
        f"the number of norms).{_runner_up(document, best, first)}"
    )
    return words, reason, _cost(document, best)


def _runner_up(document: ComparisonFigures, best: str, first: str) -> str:
    """Return how far the next best norm is behind, if there is another one than the first."""
    others = [norm for norm in document["compared"] if norm not in {best, first}]
    if not others:
        return ""
    values = {norm: _quality(document, norm) for norm in [best, *others]}
    second = max(others, key=lambda norm: values[norm]["value"])
    behind = values[best]["value"] - values[second]["value"]
    if behind < 0:
        return f" {second} is {-behind:.4f} higher, which is not shown to be more than chance."
    apart = values[second]["high"] < values[best]["low"]
    hint = "" if apart else "; their intervals overlap, so that either may be used"
    return f" Next best is {second}, {behind:.3f} lower{hint}."


def _cost(document: ComparisonFigures, best: str) -> str:
    if best == _stored(document):
        return "Nothing: the vectors are stored that way."
    k = str(headline_k(document["k"]))
    share = document["overlap"].get(_stored(document), {}).get(best, {}).get(k)
    anew = "Stored vectors and the index must be rebuilt"
    if share is not None:
        anew += f"; {percent(share)} of the {k} nearest rows stay the same"
    chosen = Variant.parse(best)
    if chosen.how.norm.name == "none":
        return f"{anew}. Long rows then rank higher than short ones."
    if chosen.power < 1:
        return (
            f"{anew}. A row's length then affects its rank less. No command stores powers: "
            f"multiply unit vectors of l2 by their norms to the power of {1 - chosen.power:g}."
        )
    return (
        f"{anew}. A row's length then no longer affects its rank; it is kept only in the norm "
        "column."
    )


def _keep(document: ComparisonFigures, worse: Sequence[str]) -> VerdictEntry:
    first = document["compared"][0]
    losses = ", ".join(f"{norm} {_test(document, norm)['difference']:+.3f}" for norm in worse)
    return _entry(
        first,
        "better",
        f"{_advice(document, first)}: {document['headline']} "
        f"is {_interval(_quality(document, first))}, and no other norm is better.",
        f"Shown to be worse over {_queries(document)}: {losses}.",
        _cost(document, first),
    )


def _stored(document: ComparisonFigures) -> str:
    """Return how stored vectors are normalized: by a run's own norm, and by none in other files."""
    provenance = document.get("source", {}).get("provenance") or {}
    norm, dtype = provenance.get("norm", "none"), _quantized(document)
    return f"{norm}+{dtype}" if dtype else norm


def _quantized(document: ComparisonFigures) -> str | None:
    """Return ``int8`` or ``binary`` where a run or a store holds such vectors."""
    provenance = document.get("source", {}).get("provenance") or {}
    of_outputs = cast(
        "Mapping[str, Mapping[str, str]]", provenance.get("made_of", {}).get("norms", {})
    )
    return of_outputs.get(provenance.get("output", ""), {}).get("dtype")


def _advice(document: ComparisonFigures, norm: str) -> str:
    if norm == _stored(document):
        return f"Keep {norm}, as stored"
    if Variant.parse(norm).how.norm.name == "none":
        return f"Store the vectors unnormalized ({norm})"
    return f"Normalize by {norm}"


def _interval(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def _queries(document: ComparisonFigures) -> str:
    return plural(document["queries"]["judged"] or 0, "judged query", "judged queries")


def bootstrap(values: Float64s, seed: int) -> tuple[Float64s, Float64s]:
    """Put an interval around the mean of each column of ``float64[q, m]``, all finite, not empty.

    Returns:
        Low ends float64[m] and high ends float64[m], of a single query the value itself. Equal
        arguments give equal intervals; not promised: equal last bits on another machine.
    """
    # The percentile bootstrap: 2.5 % and 97.5 % of the means of 2,000 samples of rows, drawn with
    # replacement (Efron, Bootstrap Methods: Another Look at the Jackknife, Annals of Statistics
    # 7(1), 1979). All columns share their samples. Memory is bounded, whatever the number of rows.
    draws, queries = np.random.default_rng(seed), len(values)
    means = [
        _counts(draws.integers(queries, size=(size, queries))) @ values / queries
        for size in _blocks(RESAMPLES, queries)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return low, high


def _counts(drawn: np.ndarray) -> Float64s:
    """Return how often each query was drawn: float64[b, q] of int64[b, q]."""
    size, queries = drawn.shape
    places = drawn + np.arange(0, size * queries, queries)[:, None]
    counts = np.bincount(places.reshape(-1), minlength=size * queries)
    return counts.reshape(size, queries).astype(np.float64)


def paired_randomization(differences: Float64s, seed: int) -> Float64s:
    """Test whether the mean of each column of ``float64[q, m]``, all finite, could be chance.

    Returns:
        Two-sided p-values float64[m], above 0 and at most 1; 1 where every difference is 0. Equal
        arguments give equal ones.
    """
    # Fisher's randomization test with 10,000 random choices of signs (Smucker, Allan and
    # Carterette, A Comparison of Statistical Significance Tests for Information Retrieval
    # Evaluation, CIKM 2007). If both rankings were equally good, each query's difference could as
    # well have the other sign. The p-value is (1 + hits) / (1 + flips), which counts the signs that
    # were observed (Phipson and Smyth, Permutation P-values Should Never Be Zero, Statistical
    # Applications in Genetics and Molecular Biology 9(1), 2010).
    draws, queries = np.random.default_rng(seed), len(differences)
    totals = differences.sum(axis=0)
    # What equals the observed sum but for rounding is as extreme as that.
    least = np.abs(totals) - _ROUNDING * np.abs(differences).sum(axis=0)
    hits = np.zeros(differences.shape[1], np.int64)
    for size in _blocks(FLIPS, queries):
        flipped = draws.integers(2, size=(size, queries), dtype=np.int8).astype(np.float64)
        sums = totals - 2 * (flipped @ differences)
        hits += np.count_nonzero(np.abs(sums) >= least, axis=0)
    return (1 + hits) / (1 + FLIPS)


def _blocks(total: int, queries: int) -> Iterator[int]:
    """Yield sizes of blocks of draws that add up to ``total``."""
    most = max(1, _BLOCK_VALUES // max(1, queries))
    for start in range(0, total, most):
        yield min(most, total - start)


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for their number, so that an error among them stays as rare as for one.

    Reject those of the adjusted values that are at most the level wanted.
    """
    # The step-down procedure of Holm, A Simple Sequentially Rejective Multiple Test Procedure,
    # Scandinavian Journal of Statistics 6(2), 1979: the smallest of m times m, the next times m -
    # 1, and so on, none below the one before it and none above 1. The tests may depend on each
    # other.
    adjusted = [0.0] * len(p)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = least
    return adjusted
