"""The page about two sets of predictions: whether they differ, where, and by how much."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from batchnorm_tool.display import count, fixed, number, percent, plural, signed, span
from batchnorm_tool.norms.stats import QUANTILES, NormStats, quantile_label
from batchnorm_tool.report import Html, compare_page, join, page, svg, tag
from batchnorm_tool.report.axes import Axis
from batchnorm_tool.report.charts import IntervalSeries, Places, interval_axis, interval_chart
from batchnorm_tool.report.figures import base_name, describe_key, interval
from batchnorm_tool.report.page import Column
from batchnorm_tool.report.run_charts import Overlay, norm_overlay, norm_table

if TYPE_CHECKING:
    from batchnorm_tool.comparison.drift import DifferenceDocument
    from batchnorm_tool.comparison.norm_survey import Distribution, SetFacts

_STYLE = svg.STYLE + compare_page.VERDICT_STYLE
_SPACES = {True: "the same", False: "different", None: "unknown"}
_LOG_FROM = 32.0
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
        *page.warnings(document.get("warnings") or []),
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
        compare_page.verdict_panel(document["verdict"]),
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
    lost = rows["common"] - rows["compared"]
    if lost:
        yield "not comparable", count(lost), True


def _examples(document: DifferenceDocument) -> Iterator[Html]:
    examples = document.get("examples") or {}
    for name, label in (("added", "Only in B, for instance: "), ("removed", "Only in A: ")):
        keys = examples.get(name)
        if keys:
            named = [page.code(describe_key(key)) for key in keys]
            yield page.note(label, named[0], *(join(", ", key) for key in named[1:]))


def _pairs(document: DifferenceDocument) -> Html:
    return page.section(
        "Rows that are in both",
        tag("h3", "Cosine of each pair"),
        pair_histogram("cosine", "cosine", document["cosine"], fixed),
        *_worst(document),
        tag("h3", "Length of B's vector relative to A's"),
        pair_histogram("ratio", "ratio of L2 norms, B to A", document["norm_ratio"], number),
    )


def _worst(document: DifferenceDocument) -> Iterator[Html]:
    if not document.get("worst"):
        return
    columns = [Column("key", numeric=False), Column("cosine")]
    columns += [Column("L2 norm in A"), Column("L2 norm in B")]
    rows = [
        [
            page.code(describe_key(row["key"])),
            fixed(row["cosine"], 6),
            number(row["norm_a"]),
            number(row["norm_b"]),
        ]
        for row in document["worst"]
    ]
    yield page.table("Rows whose direction changed most", columns, rows)


def _norms(document: DifferenceDocument) -> Html:
    norms = document["norms"]
    both = {"A": NormStats.from_dict(norms["a"]), "B": NormStats.from_dict(norms["b"])}
    overlay = Overlay(both, svg.series_styles(both), "L2 norm", _LOG_FROM)
    return page.section(
        "L2 norms of A and B",
        page.figures(
            [
                ("PSI", fixed(norms.get("psi")), False),
                ("KS distance", fixed(norms.get("ks")), False),
            ]
        ),
        norm_overlay("norms", "L2 norms of A and B", overlay),
        norm_table(both, "L2 norms", "set"),
        page.note(_PSI),
    )


def _shift(document: DifferenceDocument) -> Html:
    centroid, dimensions = document.get("centroid") or {}, document.get("dimensions") or {}
    figures = [
        ("centroid moved", number(centroid.get("shift")), False),
        ("relative to A's spread", percent(centroid.get("relative"), 2), False),
        ("cosine of centroids", fixed(centroid.get("cosine")), False),
        ("Fréchet distance", number(document.get("frechet")), False),
    ]
    return page.section(
        "Shift of the whole set",
        page.figures(figures),
        page.note(_SHIFT),
        shift_chart("shift", dimensions.get("shift") or []),
        *_largest(dimensions.get("largest") or []),
    )


def _largest(dimensions: Sequence[Any]) -> Iterator[Html]:
    largest = [row for row in dimensions if round(row["shift"], 4)]
    if largest:
        columns = [Column("dimension"), Column("shift, standard deviations of A")]
        rows = [[count(row["dimension"]), signed(row["shift"])] for row in largest]
        yield page.table("Dimensions that moved most", columns, rows)


def _neighbours(document: DifferenceDocument) -> Iterator[Html]:
    overlap = document.get("overlap")
    if not overlap:
        return
    ks = sorted(overlap, key=int)
    series_ = IntervalSeries(
        {"overlap": [interval(overlap[k]) for k in ks]}, svg.series_styles(["overlap"])
    )
    axes = Places.of("k", ks), interval_axis("overlap@k", series_)
    said = " ".join(f"overlap@{k}: {fixed(overlap[k].get('value'))}." for k in ks)
    words = svg.ChartText("overlap", "Neighbours kept", said)
    columns = [Column("k"), Column("overlap@k"), Column("95 % interval")]
    rows = [
        [k, fixed(overlap[k].get("value")), span(its.low, its.high)]
        for k in ks
        for its in [interval(overlap[k])]
    ]
    yield page.section(
        "Neighbours kept",
        page.note(
            "The share of a row's k nearest neighbours within A that are also its nearest within "
            f"B, under {document['metric']}; "
            f"over {plural(document['sample'], 'query', 'queries')}. Whiskers are 95 % bootstrap "
            "intervals over them."
        ),
        page.chart(words, partial(interval_chart, axes=axes, series=series_)),
        page.table("overlap@k", columns, rows),
    )


def _sets(document: DifferenceDocument) -> Html:
    columns = [Column("", numeric=False), Column("A", numeric=False), Column("B", numeric=False)]
    pairs = zip(_facts(document["a"]), _facts(document["b"]), strict=True)
    rows = [[label, one, other] for (label, one), (_, other) in pairs]
    return page.section(
        "What was compared",
        page.quiet(f"Vector spaces: {_SPACES[document.get('same_space')]}."),
        page.table("The two sets", columns, rows),
    )


def _facts(facts: SetFacts) -> Iterator[tuple[str, object]]:
    provenance = facts.get("provenance") or {}
    yield "path", page.code(facts["path"])
    yield "kind", "a finished run" if facts.get("kind") == "run" else "stored vectors"
    yield "rows", count(facts["rows"])
    yield "vectors", f"{count(facts['width'])} \N{MULTIPLICATION SIGN} {facts.get('dtype', '')}"
    for name in ("column", "key"):
        yield name, _coded(describe_key(facts.get(name) or ""))
    yield "model", _coded(provenance.get("model"))
    space = provenance.get("space")
    yield "space", page.identity(str(space)) if space else _coded(None)


def _coded(value: object) -> object:
    return page.code(value) if value else "\N{EN DASH}"


def shift_chart(id_: str, shift: Sequence[float | None]) -> Html:
    """Draw the shift of each dimension in standard deviations, as bars from zero.

    It is ``None`` where A never changes and B differs.
    """
    values = [math.nan if value is None else float(value) for value in shift]
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return page.note("No dimension has a shift.")
    axes = Axis("dimension", 0, len(values), "whole"), _y_axis(known)
    words = svg.ChartText(
        id_,
        "Shift of each dimension",
        f"{plural(len(values), 'dimension')}; shifts from {signed(min(known))} "
        f"to {signed(max(known))} standard deviations of A.",
    )
    draw = partial(svg.bar_chart, axes=axes, bars=list(_bars(values)))
    data = page.behind("The numbers behind this chart", _shift_table(values))
    return page.chart(words, draw, *map(page.note, _remarks(values)), data)


def _y_axis(known: Sequence[float]) -> Axis:
    low, high = min(0.0, *known), max(0.0, *known)
    room = max(_NARROWEST - (high - low), 0.0) / 2 + _ROOM * (high - low)
    label = "shift of the mean, standard deviations of A"
    return Axis(label, low - room if low < 0 or not high else 0.0, high + room)


def _group(values: Sequence[float]) -> int:
    return -(-len(values) // _MOST_BARS)


def _bars(values: Sequence[float]) -> Iterator[svg.Bar]:
    group = _group(values)
    for start in range(0, len(values), group):
        piece = [value for value in values[start : start + group] if math.isfinite(value)]
        end = min(start + group, len(values))
        # A group reaches to both of its extremes, so that no dimension is averaged away.
        for extreme in sorted({min(piece, default=0.0), max(piece, default=0.0)}):
            yield svg.Bar(start, end, extreme, f"{_label(start, end - 1)}: {signed(extreme)}")


def _label(first: int, last: int) -> str:
    return f"dimension {first}" if first == last else f"dimensions {first} to {last}"


def _remarks(values: Sequence[float]) -> Iterator[str]:
    group = _group(values)
    if group > 1:
        yield f"Each bar groups {group} dimensions and reaches to their extremes."
    lacking = sum(map(math.isnan, values))
    if lacking:
        yield (
            f"Omitted: {plural(lacking, 'dimension')} constant in A and different in B, whose "
            "shift has no unit."
        )


def _shift_table(values: Sequence[float]) -> Html:
    columns = [Column("dimension"), Column("shift, standard deviations of A")]
    rows = [[count(index), signed(value)] for index, value in enumerate(values)]
    return page.table("Shift of each dimension", columns, rows)


@dataclass(frozen=True)
class _Pairs:
    """What is shown: the name of the figure, its distribution, and how a value is printed."""

    measure: str
    figures: Distribution
    show: Callable[[float | None], str]


def pair_histogram(
    id_: str, measure: str, figures: Distribution, show: Callable[[float | None, int], str]
) -> Html:
    """Draw how a figure is distributed over pairs of rows."""
    histogram = figures.get("histogram") or []
    if not histogram or not figures.get("count"):
        return page.note("No pair of rows is finite in both sets.")
    digits = _digits(histogram, show)
    pairs = _Pairs(measure, figures, lambda value: show(value, digits))
    said = f"{plural(figures['count'], 'pair')}, mean {pairs.show(figures['mean'])}"
    if len(histogram) == 1:
        return page.note(f"{said}: all are alike to six digits.")
    bars = [_bar(pairs, low, high, int(rows)) for low, high, rows in histogram]
    axes = (
        Axis(measure, bars[0].lower, bars[-1].upper),
        Axis("pairs", 0, max(bar.height for bar in bars) * _HEADROOM, "whole"),
    )
    words = svg.ChartText(id_, f"Histogram of the {measure}", _description(pairs))
    data = page.behind("The numbers behind this chart", _pair_table(pairs, bars))
    drawn = page.chart(words, partial(svg.bar_chart, axes=axes, bars=bars), data)
    return join(drawn, page.note(f"{said}."), _quantiles(pairs))


def _digits(histogram: Sequence[Sequence[float]], show: Callable[[float | None, int], str]) -> int:
    edges = [low for low, _, _ in histogram]
    different = (n for n in _DIGITS if len({show(edge, n) for edge in edges}) == len(edges))
    return next(different, _DIGITS[-1])


def _bar(pairs: _Pairs, lower: float, upper: float, amount: int) -> svg.Bar:
    words = f"{pairs.show(lower)} to {pairs.show(upper)}: {count(amount)}"
    return svg.Bar(lower, upper, amount, words)


def _description(pairs: _Pairs) -> str:
    figures = pairs.figures
    low, high = pairs.show(figures["min"]), pairs.show(figures["max"])
    median = pairs.show((figures.get("quantiles") or {}).get("0.5"))
    return f"{plural(figures['count'], 'pair')} from {low} to {high}, median {median}."


def _pair_table(pairs: _Pairs, bars: Sequence[svg.Bar]) -> Html:
    columns = [Column("from"), Column("to"), Column("pairs")]
    rows = [
        [pairs.show(bar.lower), pairs.show(bar.upper), count(int(bar.height))]
        for bar in bars
        if bar.height
    ]
    return page.table(f"Pairs by {pairs.measure}", columns, rows)


def _quantiles(pairs: _Pairs) -> Html:
    quantiles = pairs.figures.get("quantiles") or {}
    inner = (quantiles.get(str(q)) for q in QUANTILES)
    row = [pairs.show(value) for value in (pairs.figures["min"], *inner, pairs.figures["max"])]
    headings = ("min", *map(quantile_label, QUANTILES), "max")
    return page.table(f"Quantiles of the {pairs.measure}", [*map(Column, headings)], [row])
