"""The terminal's summary of a comparison and of a diff: the verdict, then small tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchnorm_tool.display import (
    DASH,
    count,
    cut,
    entry,
    fixed,
    number,
    percent,
    plural,
    probability,
    signed,
    span,
    table,
    visible,
    wrapped,
)
from batchnorm_tool.norms.stats import quantile_label
from batchnorm_tool.report.figures import (
    between,
    describe_key,
    headline,
    interval,
    measured_norms,
    metric_name,
    quality,
    real,
    shown_k,
    tested,
)
from batchnorm_tool.report.text_run import quantile_table

if TYPE_CHECKING:
    from batchnorm_tool.comparison.drift import DifferenceDocument
    from batchnorm_tool.comparison.verdict import ComparisonDocument, GroupFigures, VerdictEntry

# A cosine has no use for its upper quantiles: they crowd at 1.
_SHOWN_QUANTILES = (0.01, 0.05, 0.5, 0.95)
# As many as fit on a screen under all else.
_GROUPS = 10
_WORST = 5
_DIMENSIONS = 3
_EXAMPLES = 3
_KEY_WIDTH = 28


def comparison_lines(document: ComparisonDocument, width: int = 72) -> list[str]:
    """Summarize a comparison of norms."""
    pieces = [
        _verdict(document["verdict"], width),
        _quality(document, width),
        _groups(document, width),
        _overlap(document),
        _hubness(document),
        _norms(document),
        _rows_and_ranks(document, width),
    ]
    return _apart(pieces)


def difference_lines(document: DifferenceDocument, width: int = 72) -> list[str]:
    """Summarize what changed between two sets of predictions."""
    pieces = [
        _verdict(document["verdict"], width),
        _rows(document, width),
        _distributions(document),
        _shift(document, width),
        _kept(document, width),
        _worst(document),
    ]
    return _apart(pieces)


def _apart(pieces: Sequence[Sequence[str]]) -> list[str]:
    lines = [line for piece in pieces if piece for line in ["", *piece]]
    return [visible(line) for line in lines[1:]]


def _verdict(verdict: VerdictEntry, width: int) -> list[str]:
    lines = wrapped(str(verdict["words"]), width)
    for heading, said in (("Why", verdict.get("reason")), ("Cost", verdict.get("cost"))):
        if said:
            lines += wrapped(f"{heading}: {said}", width, "  ")
    for note in verdict.get("notes") or []:
        lines += wrapped(f"Note: {note}", width, "  ")
    return lines


def _quality(document: ComparisonDocument, width: int) -> list[str]:
    metric = headline(document)
    if metric is None:
        return []
    against = (document.get("tests") or {}).get("against")
    rows = [["norm", metric_name(metric), "95 % interval", f"vs {against}", "p (Holm)"]]
    for norm in document["compared"]:
        its, test = quality(document, norm, metric), tested(document, norm, metric)
        cells = [norm, fixed(its.value), span(its.low, its.high)]
        cells += (
            [signed(real(test["difference"])), probability(test["p_holm"])] if test else ["", ""]
        )
        rows.append(cells)
    judged = plural(document["queries"]["judged"] or 0, "judged query", "judged queries")
    heading = f"retrieval quality, {judged}"
    shown = table(rows if against else [row[:3] for row in rows])
    return [*wrapped(heading, width), "", *shown]


def _rows_and_ranks(document: ComparisonDocument, width: int) -> list[str]:
    """Return what the norms are of, and how far they and relevance agree."""
    source = document["source"]
    bad = [f"{count(source[name])} {name}" for name in ("zero", "nonfinite", "missing")]
    unit = ", ".join(
        f"{norm} {percent(real(share))}" for norm, share in document["unit_share"].items()
    )
    ranks = (document.get("rank_correlation") or {}).get("l1", {}).get("l2")
    lines = [
        (
            f"of {plural(source['rows'], 'row')} {', '.join(bad)}; already of unit "
            f"length: {unit}; rank correlation of l1 and l2 norms: {fixed(real(ranks))}"
        )
    ]
    popularity = document.get("popularity") or {}
    if popularity:
        said = ", ".join(f"{norm} {fixed(real(rho))}" for norm, rho in popularity.items())
        lines.append(f"rank correlation of a row's norm with how often the row is relevant: {said}")
    return [line for text in lines for line in wrapped(text, width)]


def _groups(document: ComparisonDocument, width: int) -> list[str]:
    by, metric = document.get("by"), headline(document)
    if not by or not by["groups"]:
        return []
    norms = document["compared"]
    shown = by["groups"][:_GROUPS]
    room = width - len("  queries") - sum(max(len(norm), 6) + 2 for norm in norms)
    what = metric_name(metric) if metric else f"overlap@{shown_k(document)} with {norms[0]}"
    rows = [["group", "queries", *norms]]
    for group in shown:
        values = (_group_value(document, group, norm, metric) for norm in norms)
        rows.append([cut(group["group"], room), count(group["queries"]), *map(fixed, values)])
    deciles = "deciles of " if by["kind"] == "deciles" else ""
    more = len(by["groups"]) - len(shown)
    rest = [f"… and {plural(more, 'more group')} in the report"] if more else []
    heading = wrapped(f"{what} by {deciles}{by['column']}", width)
    return [*heading, "", *table(rows), *rest]


def _group_value(
    document: ComparisonDocument, group: GroupFigures, norm: str, metric: str | None
) -> float:
    if metric:
        return quality(group, norm, metric).value
    first = document["compared"][0]
    if norm == first:
        return 1.0
    found = between(group.get("overlap"), first, norm) or {}
    return real(found.get(str(shown_k(document))))


def _overlap(document: ComparisonDocument) -> list[str]:
    norms, k = document["compared"], shown_k(document)
    if len(norms) < 2:
        return []
    rows = [[f"overlap@{k}", *norms]]
    for one in norms:
        found = (between(document.get("overlap"), one, other) or {} for other in norms)
        values = (fixed(entry.get(str(k)), 2) for entry in found)
        rows.append([one, *values])
    return table(rows)


def _hubness(document: ComparisonDocument) -> list[str]:
    hubness = document.get("hubness") or {}
    found = {norm: hubness[norm] for norm in document["compared"] if hubness.get(norm)}
    if not found:
        return []
    k = next(iter(found.values()))["k"]
    rows = [[f"hubness, k = {k}", "skewness", "no query's neighbour", "largest hub"]]
    for norm, its in found.items():
        times = DASH if its.get("largest") is None else count(int(its["largest"] or 0))
        cells = [fixed(its.get("skewness"), 2), percent(its.get("antihubs")), times]
        rows.append([norm, *cells])
    return table(rows)


def _norms(document: ComparisonDocument) -> list[str]:
    norms = measured_norms(document)
    return ["norms of the raw predictions", "", *quantile_table(norms)] if norms else []


def _rows(document: DifferenceDocument, width: int) -> list[str]:
    rows = document["rows"]
    said = (
        f"{count(rows['a'])} rows in A, {count(rows['b'])} in B: {count(rows['common'])} in both, "
        f"{count(rows['added'])} added, {count(rows['removed'])} removed; "
        f"{count(rows['compared'])} compared, {count(rows['identical'])} identical"
    )
    lines = wrapped(said, width)
    for name in ("added", "removed"):
        keys = (document.get("examples") or {}).get(name) or []
        if keys:
            named = ", ".join(cut(describe_key(key), _KEY_WIDTH) for key in keys[:_EXAMPLES])
            lines += wrapped(f"{name}, for example: {named}", width, "  ")
    return lines


def _distributions(document: DifferenceDocument) -> list[str]:
    norms = document["norms"]
    named = {
        "cosine": document["cosine"],
        "norm B/A": document["norm_ratio"],
        "L2 norm in A": norms["a"],
        "L2 norm in B": norms["b"],
    }
    rows = [["", "min", *map(quantile_label, _SHOWN_QUANTILES), "max"]]
    for label, figures in named.items():
        quantiles = figures.get("quantiles") or {}
        inner = (quantiles.get(str(q)) for q in _SHOWN_QUANTILES)
        values = [figures.get("min"), *inner, figures.get("max")]
        # Cosines crowd below 1, where digits after the point tell more than significant ones.
        cells = (fixed(v, 6) if label == "cosine" else number(v, 5) for v in values)
        rows.append([label, *cells])
    return table(rows)


def _shift(document: DifferenceDocument, width: int) -> list[str]:
    centroid, norms = document.get("centroid") or {}, document["norms"]
    relative = centroid.get("relative")
    share = "" if relative is None else f", {percent(relative, 2)} of A's spread"
    largest = (document.get("dimensions") or {}).get("largest") or []
    moved = [row for row in largest if round(row["shift"], 3)][:_DIMENSIONS]
    rows = [
        ("norms", f"PSI {fixed(norms.get('psi'))}, KS distance {fixed(norms.get('ks'))}"),
        ("centroid", f"moved by {number(centroid.get('shift'))}{share}"),
        ("Fréchet", f"distance {number(document.get('frechet'))}"),
    ]
    if moved:
        named = (f"{row['dimension']} by {signed(row['shift'], 3)}" for row in moved)
        rows.append(("dimension", f"{', '.join(named)} standard deviations"))
    return [line for name, words in rows for line in entry(name, words, width)]


def _kept(document: DifferenceDocument, width: int) -> list[str]:
    overlap = document.get("overlap") or {}
    if not overlap:
        return []
    rows = [["neighbours kept", "overlap", "95 % interval"]]
    for k in sorted(overlap, key=int):
        its = interval(overlap[k])
        rows.append([f"k = {k}", fixed(its.value), span(its.low, its.high)])
    heading = f"{plural(document['sample'], 'query', 'queries')}, under {document['metric']}"
    return [*table(rows), *wrapped(heading, width)]


def _worst(document: DifferenceDocument) -> list[str]:
    worst = (document.get("worst") or [])[:_WORST]
    if not worst:
        return []
    rows = [["changed most", "cosine", "norm in A", "norm in B"]]
    for row in worst:
        norms = number(row["norm_a"]), number(row["norm_b"])
        rows.append([cut(describe_key(row["key"]), _KEY_WIDTH), fixed(row["cosine"], 6), *norms])
    return table(rows)
