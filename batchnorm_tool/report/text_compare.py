"""The terminal's summary of a comparison and of a diff: the verdict, then small tables."""

from __future__ import annotations

from collections.abc import Sequence

from batchnorm_tool import display
from batchnorm_tool.comparison.drift import DifferenceDocument
from batchnorm_tool.comparison.verdict import ComparisonDocument, VerdictEntry, headline_k
from batchnorm_tool.display import count, cut, fixed, number, percent, plural, span, table, wrapped
from batchnorm_tool.norms.stats import quantile_label
from batchnorm_tool.report import figures
from batchnorm_tool.report.text_run import quantile_table

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
        _options(document),
        _groups(document, width),
        _overlap(document),
        _hubness(document),
        ["norms of the raw predictions", "", *quantile_table(figures.measured_norms(document))],
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
    return [display.visible(line) for line in lines[1:]]


def _verdict(verdict: VerdictEntry, width: int) -> list[str]:
    lines = wrapped(str(verdict["words"]), width)
    for heading, said in (("Why", verdict.get("reason")), ("Cost", verdict.get("cost"))):
        if said:
            lines += wrapped(f"{heading}: {said}", width, "  ")
    for note in verdict.get("notes") or []:
        lines += wrapped(f"Note: {note}", width, "  ")
    return lines


def _quality(document: ComparisonDocument, width: int) -> list[str]:
    metric = document["headline"]
    if metric is None:
        return []
    against = (document["tests"] or {}).get("against")
    tests = [f"vs {against}", "p (Holm)"] if against else []
    rows = [["norm", figures.metric_name(metric), "95 % interval", *tests]]
    for norm in document["compared"]:
        value, interval, *test = figures.quality_cells(document, norm, metric)
        rows.append([norm, value, interval, *test[:1], *test[3:]])
    judged = plural(document["queries"]["judged"] or 0, "judged query", "judged queries")
    return [*wrapped(f"retrieval quality, {judged}", width), "", *table(rows)]


def _options(document: ComparisonDocument) -> list[str]:
    """Return what options of a norm change in quality."""
    if not (rows := figures.option_cells(document)):
        return []
    metric = figures.metric_name(str(document["headline"]))
    return table([["with options", "without", metric, "95 % interval", "p (Holm)"], *rows])


def _rows_and_ranks(document: ComparisonDocument, width: int) -> list[str]:
    """Return what the norms are of, and how far they and relevance agree."""
    source = document["source"]
    bad = [f"{count(source[name])} {name}" for name in ("zero", "nonfinite", "missing")]
    unit = ", ".join(f"{norm} {percent(part)}" for norm, part in document["unit_share"].items())
    ranks = document["rank_correlation"]["l1"]["l2"]
    lines = wrapped(
        f"of {plural(source['rows'], 'row')} {', '.join(bad)}; already of unit length: {unit}; "
        f"rank correlation of l1 and l2 norms: {fixed(ranks)}",
        width,
    )
    if document["popularity"]:
        said = ", ".join(f"{norm} {fixed(rho)}" for norm, rho in document["popularity"].items())
        words = "rank correlation of a row's norm with how often the row is relevant"
        lines += wrapped(f"{words}: {said}", width)
    return lines


def _groups(document: ComparisonDocument, width: int) -> list[str]:
    by, metric = document["by"], document["headline"]
    if not by:
        return []
    norms, k = document["compared"], headline_k(document["k"])
    room = width - len("  queries") - sum(max(len(norm), 6) + 2 for norm in norms)
    rows = [["group", "queries", *norms]]
    for group in by["groups"][:_GROUPS]:
        values = (
            figures.quality(group, norm, metric).value
            if metric
            else figures.overlap(group, norms[0], norm, k)
            for norm in norms
        )
        rows.append([cut(group["group"], room), count(group["queries"]), *map(fixed, values)])
    what = figures.metric_name(metric) if metric else f"overlap@{k} with {norms[0]}"
    deciles = "deciles of " if by["kind"] == "deciles" else ""
    more = len(by["groups"]) - _GROUPS
    rest = [f"… and {plural(more, 'more group')} in the report"] if more > 0 else []
    return [*wrapped(f"{what} by {deciles}{by['column']}", width), "", *table(rows), *rest]


def _overlap(document: ComparisonDocument) -> list[str]:
    norms, k = document["compared"], headline_k(document["k"])
    if len(norms) < 2:
        return []
    rows = [
        [one, *(fixed(figures.overlap(document, one, other, k), 2) for other in norms)]
        for one in norms
    ]
    return table([[f"overlap@{k}", *norms], *rows])


def _hubness(document: ComparisonDocument) -> list[str]:
    heading = f"hubness, k = {headline_k(document['k'])}"
    rows = [[heading, "skewness", "no query's neighbour", "largest hub"]]
    for norm in document["compared"]:
        its = document["hubness"][norm]
        largest = count(int(its["largest"] or 0))
        rows.append([norm, fixed(its["skewness"], 2), percent(its["antihubs"]), largest])
    return table(rows)


def _rows(document: DifferenceDocument, width: int) -> list[str]:
    rows = {name: count(amount) for name, amount in document["rows"].items()}
    said = (
        f"{rows['a']} rows in A, {rows['b']} in B: {rows['common']} in both, {rows['added']} "
        f"added, {rows['removed']} removed; {rows['compared']} compared, "
        f"{rows['identical']} identical"
    )
    lines = wrapped(said, width)
    for name in ("added", "removed"):
        keys = map(figures.describe_key, document["examples"][name][:_EXAMPLES])
        named = ", ".join(cut(key, _KEY_WIDTH) for key in keys)
        lines += wrapped(f"{name}, for example: {named}", width, "  ") if named else []
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
    for label, its in named.items():
        inner = (its["quantiles"][str(q)] for q in _SHOWN_QUANTILES)
        values = [its["min"], *inner, its["max"]]
        # Cosines crowd below 1, where digits after the point tell more than significant ones.
        cells = (fixed(v, 6) if label == "cosine" else number(v, 5) for v in values)
        rows.append([label, *cells])
    return table(rows)


def _shift(document: DifferenceDocument, width: int) -> list[str]:
    centroid, norms = document["centroid"], document["norms"]
    relative = centroid["relative"]
    share = "" if relative is None else f", {percent(relative, 2)} of A's spread"
    moved = [row for row in document["dimensions"]["largest"] if round(row["shift"], 3)]
    rows = [
        ("norms", f"PSI {fixed(norms['psi'])}, KS distance {fixed(norms['ks'])}"),
        ("centroid", f"moved by {number(centroid['shift'])}{share}"),
        ("Fréchet", f"distance {number(document['frechet'])}"),
    ]
    if moved:
        named = ", ".join(
            f"{row['dimension']} by {display.signed(row['shift'], 3)}"
            for row in moved[:_DIMENSIONS]
        )
        rows.append(("dimension", f"{named} standard deviations"))
    return [line for name, words in rows for line in display.entry(name, words, width)]


def _kept(document: DifferenceDocument, width: int) -> list[str]:
    if not (overlap := document["overlap"]):
        return []
    rows = [["neighbours kept", "overlap", "95 % interval"]]
    for k in sorted(overlap, key=int):
        its = figures.interval(overlap[k])
        rows.append([f"k = {k}", fixed(its.value), span(its.low, its.high)])
    heading = f"{plural(document['sample'], 'query', 'queries')}, under {document['metric']}"
    return [*table(rows), *wrapped(heading, width)]


def _worst(document: DifferenceDocument) -> list[str]:
    rows = [
        [cut(figures.describe_key(row["key"]), _KEY_WIDTH), *figures.turned_cells(row)]
        for row in document["worst"][:_WORST]
    ]
    return table([["changed most", "cosine", "norm in A", "norm in B"], *rows]) if rows else []
