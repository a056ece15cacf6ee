"""The page about two sets of predictions: whether they differ, where, and by how much."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from batchnorm_tool.report import page, series, svg, verdict_panel
from batchnorm_tool.report.comparison_document import base_name, interval, key_words
from batchnorm_tool.report.interval_chart import (
    IntervalSeries,
    Places,
    interval_axis,
    interval_chart,
)
from batchnorm_tool.report.markup import join, tag
from batchnorm_tool.report.norm_overlay import Overlay, norm_overlay
from batchnorm_tool.report.norm_table import norm_table
from batchnorm_tool.report.page import Column
from batchnorm_tool.report.pair_histogram import pair_histogram
from batchnorm_tool.report.scale import count, fixed, number, percent, signed
from batchnorm_tool.report.shift_chart import shift_chart

if TYPE_CHECKING:
    from batchnorm_tool.report.markup import Html
    from batchnorm_tool.report.plot import Frame
    from batchnorm_tool.report.scale import Axis

_STYLE = series.STYLE + verdict_panel.STYLE
_SPACES = {True: "the same", False: "different", None: "not known of both"}
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


def diff_page(document: Mapping[str, Any]) -> str:
    """Describe what changed between two sets of predictions on one HTML page that works offline.

    Args:
        document: What `Difference.to_dict` gives; nothing else is read.

    Returns:
        An HTML document without scripts that loads nothing, to be written as UTF-8. Names from
        the data are text in it, whatever they contain.
    """
    one, other = _names(document)
    sections = [
        *page.warnings(document.get("warnings") or []),
        _pairs(document),
        _norms(document),
        _shift(document),
        *_neighbours(document),
        _sets(document),
    ]
    footer = f"batchnorm_tool {document['version']}. This page loads nothing and runs no script."
    return page.document(f"{one} and {other}", _header(document), sections, footer, _STYLE)


def _names(document: Mapping[str, Any]) -> tuple[str, str]:
    paths = str(document["a"]["path"]), str(document["b"]["path"])
    one, other = (path.rstrip("/").split("/") for path in paths)
    # As much of the end of both paths as tells them apart: `monday/vectors`, `tuesday/vectors`.
    ends = (("/".join(one[-n:]), "/".join(other[-n:])) for n in range(1, len(one) + len(other)))
    different = (names for names in ends if names[0] != names[1])
    return next(different, (base_name(paths[0]), base_name(paths[1])))


def _header(document: Mapping[str, Any]) -> Html:
    one, other = _names(document)
    return join(
        tag("p", "What changed from one set of predictions, A, to another, B", class_="quiet"),
        tag("h1", page.name(one), " \N{RIGHTWARDS ARROW} ", page.name(other)),
        verdict_panel.verdict_panel(document["verdict"]),
        page.figures(_figures(document["rows"])),
        *_examples(document),
    )


def _figures(rows: Mapping[str, Any]) -> Iterator[tuple[str, object, bool]]:
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


def _examples(document: Mapping[str, Any]) -> Iterator[Html]:
    examples = document.get("examples") or {}
    for name, label in (("added", "Only in B, for instance: "), ("removed", "Only in A: ")):
        keys = examples.get(name)
        if keys:
            named = [page.code(key_words(key)) for key in keys]
            yield page.note(label, named[0], *(join(", ", key) for key in named[1:]))


def _pairs(document: Mapping[str, Any]) -> Html:
    return page.section(
        "Rows that are in both",
        tag("h3", "Cosine of each pair"),
        pair_histogram("cosine", "cosine", document["cosine"], fixed),
        *_worst(document),
        tag("h3", "Length of B's vector over A's"),
        pair_histogram("ratio", "ratio of L2 norms, B over A", document["norm_ratio"], number),
    )


def _worst(document: Mapping[str, Any]) -> Iterator[Html]:
    if not document.get("worst"):
        return
    columns = [Column("key", numeric=False), Column("cosine")]
    columns += [Column("L2 norm in A"), Column("L2 norm in B")]
    rows = [
        [
            page.code(key_words(row["key"])),
            fixed(row["cosine"], 6),
            number(row["norm_a"]),
            number(row["norm_b"]),
        ]
        for row in document["worst"]
    ]
    yield page.table("The rows that changed direction most", columns, rows)


def _norms(document: Mapping[str, Any]) -> Html:
    norms = document["norms"]
    both = {"A": norms["a"], "B": norms["b"]}
    overlay = Overlay(both, series.looks(both), "L2 norm", _LOG_FROM)
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


def _shift(document: Mapping[str, Any]) -> Html:
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
        *_largest(dimensions),
    )


def _largest(dimensions: Mapping[str, Any]) -> Iterator[Html]:
    largest = [row for row in dimensions.get("largest") or [] if round(row["shift"], 4)]
    if largest:
        columns = [Column("dimension"), Column("shift, standard deviations of A")]
        rows = [[count(row["dimension"]), signed(row["shift"])] for row in largest]
        yield page.table("The dimensions that moved most", columns, rows)


def _neighbours(document: Mapping[str, Any]) -> Iterator[Html]:
    overlap = document.get("overlap")
    if not overlap:
        return
    ks = sorted(overlap, key=int)
    series_ = IntervalSeries(
        {"overlap": [interval(overlap[k]) for k in ks]}, series.looks(["overlap"])
    )
    axes = Places.of("k", ks), interval_axis("overlap@k", series_)
    said = " ".join(f"overlap@{k}: {fixed(overlap[k].get('value'))}." for k in ks)
    words = svg.Words("overlap", "Neighbours that rows keep", said)
    columns = [Column("k"), Column("overlap@k"), Column("95 % interval")]
    rows = [[k, fixed(overlap[k].get("value")), _span(overlap[k])] for k in ks]
    yield page.section(
        "Neighbours that rows keep",
        page.note(
            f"The share of a row's k nearest neighbours within A that are also its nearest within "
            f"B, under {document['metric']}; {count(document['sample'])} rows were asked. Whiskers "
            "are 95 % bootstrap intervals over them."
        ),
        page.chart(words, partial(_draw, axes=axes, shown=series_)),
        page.table("overlap@k", columns, rows),
    )


def _draw(words: svg.Words, frame: Frame, axes: tuple[Places, Axis], shown: IntervalSeries) -> Html:
    return interval_chart(words, axes, shown, frame)


def _span(entry: Mapping[str, Any]) -> str:
    its = interval(entry)
    dash = "\N{EN DASH}"
    return f"{fixed(its.low)}{dash}{fixed(its.high)}" if math.isfinite(its.low + its.high) else dash


def _sets(document: Mapping[str, Any]) -> Html:
    columns = [Column("", numeric=False), Column("A", numeric=False), Column("B", numeric=False)]
    pairs = zip(_facts(document["a"]), _facts(document["b"]), strict=True)
    rows = [[label, one, other] for (label, one), (_, other) in pairs]
    return page.section(
        "What was compared",
        tag("p", f"Vector spaces: {_SPACES[document.get('same_space')]}.", class_="quiet"),
        page.table("The two sets", columns, rows),
    )


def _facts(facts: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    provenance = facts.get("provenance") or {}
    yield "path", page.code(facts["path"])
    yield "kind", "a finished run" if facts.get("kind") == "run" else "stored vectors"
    yield "rows", count(facts["rows"])
    yield "vectors", f"{count(facts['width'])} \N{MULTIPLICATION SIGN} {facts.get('dtype', '')}"
    for name in ("column", "key"):
        yield name, _coded(key_words(facts.get(name) or ""))
    yield "model", _coded(provenance.get("model"))
    space = provenance.get("space")
    yield "space", page.identity(str(space)) if space else _coded(None)


def _coded(value: object) -> object:
    return page.code(value) if value else "\N{EN DASH}"
