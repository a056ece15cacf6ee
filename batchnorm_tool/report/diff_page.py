"""The page about two sets of predictions: whether they differ, where, and by how much."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from batchnorm_tool.comparison.drift import DifferenceDocument
from batchnorm_tool.comparison.norm_survey import Distribution, SetFacts
from batchnorm_tool.display import count, fixed, number, percent, plural, signed, span
from batchnorm_tool.norms.stats import QUANTILES, NormStats, quantile_label
from batchnorm_tool.report import Html, charts, join, page, svg, tag
from batchnorm_tool.report.figures import base_name, describe_key, interval, turned_cells
from batchnorm_tool.report.norm_charts import norm_overlay, norm_table
from batchnorm_tool.report.svg import Axis, ChartText

_STYLE = svg.STYLE + page.VERDICT_STYLE
_SPACES = {True: "the same", False: "different", None: "unknown"}
_PSI = (
    "Population stability index (PSI) of the norms: below 0.1 is taken for stable, above 0.25 for "
    "a shift (Siddiqi 2006). Kolmogorov-Smirnov distance (KS): the largest gap between the two "
    "cumulative distributions."
)
_SHIFT = (
    "A's spread is the root mean square distance of its rows from their centroid. The Fréchet "
    "distance is that of the two fitted normal distributions, squared as in the FID: 0 for the "
    "same mean and covariance."
)
# A wide chart has about as many pixels; more dimensions than this share a bar.
_MOST_BARS = 512
# A narrower range than this would fill the chart with shifts that nobody will notice.
_NARROWEST = 0.1
_ROOM = 0.05
_HEADROOM = 1.04
# Cosines of a model's two dates may differ from one in the sixth digit, or the seventh.
_DIGITS = range(6, 17)


def diff_page(document: DifferenceDocument) -> str:
    """Describe what changed between two sets of predictions on one HTML page that works offline."""
    one, other = _names(document)
    sections = [
        *page.warnings(document["warnings"]),
        _pairs(document),
        _norms(document),
        _shift(document),
        *_neighbours(document),
        _sets(document),
    ]
    return page.document(
        f"{one} and {other}", _header(document), sections, document["version"], _STYLE
    )


def _names(document: DifferenceDocument) -> tuple[str, str]:
    paths = str(document["a"]["path"]), str(document["b"]["path"])
    one, other = (path.rstrip("/").split("/") for path in paths)
    # As much of the end of both paths as tells them apart: `monday/vectors`, `tuesday/vectors`.
    ends = (("/".join(one[-n:]), "/".join(other[-n:])) for n in range(1, len(one) + len(other)))
    different = (names for names in ends if names[0] != names[1])
    return next(different, (base_name(paths[0]), base_name(paths[1])))


def _header(document: DifferenceDocument) -> Html:
    one, other = _names(document)
    return page.header(
        "What changed between two sets of predictions, A and B",
        join(page.name(one), " \N{RIGHTWARDS ARROW} ", page.name(other)),
        page.verdict(document["verdict"]),
        page.figures(_figures(document["rows"])),
        *_examples(document),
    )


def _figures(rows: Mapping[str, int]) -> Iterator[tuple[str, object, bool]]:
    for name, label in (
        ("common", "rows in both"),
        ("identical", "identical"),
        ("added", "only in B"),
        ("removed", "only in A"),
    ):
        yield label, count(rows[name]), False
    # Rows that are in both and not compared hold NaN, inf or no vector somewhere.
    if lost := rows["common"] - rows["compared"]:
        yield "not comparable", count(lost), True


def _examples(document: DifferenceDocument) -> Iterator[Html]:
    for name, label in (("added", "Only in B, for instance: "), ("removed", "Only in A: ")):
        if keys := document["examples"][name]:
            yield page.note(label, page.codes(map(describe_key, keys)))


def _pairs(document: DifferenceDocument) -> Html:
    return page.section(
        "Rows that are in both",
        tag("h3", "Cosine of each pair"),
        _pair_histogram("cosine", "cosine", document["cosine"], fixed),
        *_worst(document),
        tag("h3", "Length of B's vector relative to A's"),
        _pair_histogram("ratio", "ratio of L2 norms, B to A", document["norm_ratio"], number),
    )


def _worst(document: DifferenceDocument) -> Iterator[Html]:
    rows = [[page.code(describe_key(row["key"])), *turned_cells(row)] for row in document["worst"]]
    if rows:
        headings = ("key", "cosine", "L2 norm in A", "L2 norm in B")
        yield page.table("Rows whose direction changed most", headings, rows)


def _norms(document: DifferenceDocument) -> Html:
    norms, title = document["norms"], "L2 norms of A and B"
    both = {"A": NormStats.from_dict(norms["a"]), "B": NormStats.from_dict(norms["b"])}
    figures = [("PSI", fixed(norms["psi"]), False), ("KS distance", fixed(norms["ks"]), False)]
    return page.section(
        title,
        page.figures(figures),
        norm_overlay(title, both, svg.series_styles(both), "L2 norm"),
        norm_table(both, "L2 norms", "set"),
        page.note(_PSI),
    )


def _shift(document: DifferenceDocument) -> Html:
    centroid, dimensions = document["centroid"], document["dimensions"]
    figures = [
        ("centroid moved", number(centroid["shift"]), False),
        ("relative to A's spread", percent(centroid["relative"], 2), False),
        ("cosine of centroids", fixed(centroid["cosine"]), False),
        ("Fréchet distance", number(document["frechet"]), False),
    ]
    largest = [
        [count(row["dimension"]), signed(row["shift"])]
        for row in dimensions["largest"]
        if round(row["shift"], 4)
    ]
    return page.section(
        "Shift of the whole set",
        page.figures(figures),
        page.note(_SHIFT),
        _shift_chart(dimensions["shift"]),
        _shift_table("Dimensions that moved most", largest) if largest else None,
    )


def _neighbours(document: DifferenceDocument) -> Iterator[Html]:
    if not (overlap := document["overlap"]):
        return
    by_k = {k: interval(overlap[k]) for k in sorted(overlap, key=int)}
    styles = svg.series_styles(["overlap"])
    series = charts.IntervalSeries({"overlap": list(by_k.values())}, styles)
    axes = charts.Places.of("k", by_k), charts.interval_axis("overlap@k", series)
    said = " ".join(f"overlap@{k}: {fixed(its.value)}." for k, its in by_k.items())
    words = ChartText("overlap", "Neighbours kept", said)
    rows = [[k, fixed(its.value), span(its.low, its.high)] for k, its in by_k.items()]
    yield page.section(
        "Neighbours kept",
        page.note(
            "The share of a row's k nearest neighbours within A that are also its nearest within "
            f"B, under {document['metric']}; "
            f"over {plural(document['sample'], 'query', 'queries')}. Whiskers are 95 % bootstrap "
            "intervals over them."
        ),
        page.chart(words, partial(charts.interval_chart, axes=axes, series=series)),
        page.table("overlap@k", ("k", "overlap@k", "95 % interval"), rows, ""),
    )


def _sets(document: DifferenceDocument) -> Html:
    pairs = zip(_facts(document["a"]), _facts(document["b"]), strict=True)
    rows = [[label, one, other] for (label, one), (_, other) in pairs]
    return page.section(
        "What was compared",
        page.quiet(f"Vector spaces: {_SPACES[document['same_space']]}."),
        page.table("The two sets", ("", "A", "B"), rows, "lll"),
    )


def _facts(facts: SetFacts) -> Iterator[tuple[str, object]]:
    provenance = facts["provenance"] or {}
    yield "path", page.code(facts["path"])
    yield "kind", "a finished run" if facts["kind"] == "run" else "stored vectors"
    yield "rows", count(facts["rows"])
    yield "vectors", f"{count(facts['width'])} \N{MULTIPLICATION SIGN} {facts['dtype']}"
    yield "column", _coded(describe_key(facts["column"]))
    yield "key", _coded(describe_key(facts["key"]))
    yield "model", _coded(provenance.get("model"))
    space = provenance.get("space")
    yield "space", page.identity(space) if space else _coded(None)


def _coded(value: object) -> object:
    return page.code(value) if value else "\N{EN DASH}"


def _shift_chart(shift: Sequence[float | None]) -> Html:
    """Draw the shift of each dimension in standard deviations, as bars from zero.

    It is ``None`` where A never changes and B differs.
    """
    values = [math.nan if value is None else float(value) for value in shift]
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return page.note("No dimension has a shift.")
    low, high = min(0.0, *known), max(0.0, *known)
    room = max(_NARROWEST - (high - low), 0.0) / 2 + _ROOM * (high - low)
    lowest = low - room if low < 0 or not high else 0.0
    up = Axis("shift of the mean, standard deviations of A", lowest, high + room)
    axes = Axis("dimension", 0, len(values), "whole"), up
    title = "Shift of each dimension"
    said = (
        f"{plural(len(values), 'dimension')}; shifts from {signed(min(known))} "
        f"to {signed(max(known))} standard deviations of A."
    )
    draw = partial(charts.bar_chart, axes=axes, bars=list(_bars(values)))
    rows = [[count(index), signed(value)] for index, value in enumerate(values)]
    data = _shift_table(title, rows)
    return page.chart(ChartText("shift", title, said), draw, _remarks(values), data)


def _shift_table(caption: str, rows: Sequence[Sequence[str]]) -> Html:
    return page.table(caption, ("dimension", "shift, standard deviations of A"), rows, "")


def _group(values: Sequence[float]) -> int:
    return -(-len(values) // _MOST_BARS)


def _bars(values: Sequence[float]) -> Iterator[charts.Bar]:
    group = _group(values)
    for start in range(0, len(values), group):
        piece = [value for value in values[start : start + group] if math.isfinite(value)]
        end = min(start + group, len(values))
        name = f"dimension {start}" if end - start == 1 else f"dimensions {start} to {end - 1}"
        # A group reaches to both of its extremes, so that no dimension is averaged away.
        for extreme in sorted({min(piece, default=0.0), max(piece, default=0.0)}):
            yield charts.Bar(start, end, extreme, f"{name}: {signed(extreme)}")


def _remarks(values: Sequence[float]) -> Iterator[str]:
    if (group := _group(values)) > 1:
        yield f"Each bar groups {group} dimensions and reaches to their extremes."
    if lacking := sum(map(math.isnan, values)):
        yield (
            f"Omitted: {plural(lacking, 'dimension')} constant in A and different in B, whose "
            "shift has no unit."
        )


def _pair_histogram(
    id_: str, measure: str, figures: Distribution, show: Callable[[float | None, int], str]
) -> Html:
    """Draw how a figure is distributed over pairs of rows, in as many digits as tell bars apart."""
    lows = [low for low, _, _ in figures["histogram"]]
    if not lows:
        return page.note("No pair of rows is finite in both sets.")
    different = (n for n in _DIGITS if len({show(low, n) for low in lows}) == len(lows))
    digits = next(different, _DIGITS[-1])
    return _pair_chart(id_, measure, figures, lambda value: show(value, digits))


def _pair_chart(
    id_: str, measure: str, figures: Distribution, show: Callable[[float | None], str]
) -> Html:
    pairs = plural(figures["count"], "pair")
    said = f"{pairs}, mean {show(figures['mean'])}"
    if len(figures["histogram"]) == 1:
        return page.note(f"{said}: all are alike to six digits.")
    bars = [
        charts.Bar(low, high, rows, f"{show(low)} to {show(high)}: {count(int(rows))}")
        for low, high, rows in figures["histogram"]
    ]
    highest = max(bar.height for bar in bars) * _HEADROOM
    axes = Axis(measure, bars[0].lower, bars[-1].upper), Axis("pairs", 0, highest, "whole")
    inner = [show(figures["quantiles"][str(q)]) for q in QUANTILES]
    low, high, median = show(figures["min"]), show(figures["max"]), inner[QUANTILES.index(0.5)]
    title, seen = f"Histogram of the {measure}", f"{pairs} from {low} to {high}, median {median}."
    rows = [
        [show(bar.lower), show(bar.upper), count(int(bar.height))] for bar in bars if bar.height
    ]
    data = page.table(f"Pairs by {measure}", ("from", "to", "pairs"), rows, "")
    draw = partial(charts.bar_chart, axes=axes, bars=bars)
    headings = ("min", *map(quantile_label, QUANTILES), "max")
    return join(
        page.chart(ChartText(id_, title, seen), draw, numbers=data),
        page.note(f"{said}."),
        page.table(f"Quantiles of the {measure}", headings, [[low, *inner, high]], ""),
    )
