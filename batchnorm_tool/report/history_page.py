"""The page about a store's refreshes: what became of them, rows, norms, and the gate over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from batchnorm_tool.display import DASH, count, number, plural
from batchnorm_tool.gate.record import History, RefreshRecord
from batchnorm_tool.norms.stats import MIDDLE_COLUMNS
from batchnorm_tool.report import Html, charts, page, svg, tag, text_refresh
from batchnorm_tool.report.figures import base_name, describe_key, real
from batchnorm_tool.report.svg import NARROW, Axis, ChartText, Frame, Plot, pixels

_KINDS = ("new", "changed", "vanished", "touched")
_SCOPES = {
    "input": "The input",
    "changed": "Vectors of the changed rows alone",
    "whole": "Vectors of all rows",
}
_SIDES = "rlllrrrrlll"
_MOST_ROWS = 50
_STYLE = """
.limit { stroke: var(--alarm, #a3341f); }
.beyond { fill: var(--alarm, #a3341f); }
.pair { display: grid; grid-template-columns: repeat(2, 1fr); gap: 1.5rem 2.5rem; }
.pair > * { min-width: 0; }
.pair h3 { margin-top: 0; }
.pair .narrow { display: block; }
@media (max-width: 40rem) { .pair { grid-template-columns: 1fr; } }
"""
_ROOM = 1.06
# Values beyond this many times the limit would press all others onto the axis.
_MOST_LIMITS = 4.0
_LANE = 24
_SMALL = Frame(NARROW.width, 170)


def history_page(history: History) -> str:
    """Draw the versions of a store on one HTML page that works offline."""
    records = history.nights
    sections = [_table(history)]
    if records:
        sections = [
            _outcomes(history),
            _rows(records),
            page.section("Norms before normalization", _norms_chart(records)),
            *_gates(records),
            *_acceptances(records),
            *sections,
        ]
    title = f"History of {base_name(history.path)}"
    return page.document(title, _header(history), sections, style=_STYLE)


def _header(history: History) -> Html:
    hold = history.hold
    why = f"Publication is on hold since {hold.since} ({hold.reason})." if hold else ""
    return page.header(
        "Versions of an embedding store",
        page.name(base_name(history.path)),
        tag("p", page.code(history.path)),
        page.figures(_figures(history)),
        page.note(why) if hold else None,
    )


def _figures(history: History) -> Iterator[tuple[str, object, bool]]:
    records = {record.version: record for record in history.nights}
    live, waiting = history.live, history.waiting
    yield "live version", "none" if live is None else str(live), live is None
    shown = records.get(live or 0)
    yield "live rows", count(shown.rows.live) if shown else DASH, False
    yield "waiting", "none" if waiting is None else str(waiting), waiting is not None
    yield "on hold", "yes" if history.hold else "no", bool(history.hold)
    yield "versions kept", count(len(history.kept)), False


def _outcomes(history: History) -> Html:
    """Show what became of every refresh: a row for each outcome, a bar for each refresh."""
    outcomes = [text_refresh.outcome(record, history) for record in history.nights]
    lanes = [name for name in text_refresh.OUTCOMES if name in outcomes]
    said = ". ".join(f"{name}: {count(outcomes.count(name))}" for name in lanes)
    words = ChartText("outcomes", "Outcome of every refresh", f"{said}.")
    draw = partial(_draw_outcomes, records=history.nights, outcomes=outcomes, lanes=lanes)
    said_of_store = page.quiet(f"{text_refresh.describe_store(history)}.")
    return page.section(words.title, said_of_store, page.chart(words, draw))


def _rows(records: Sequence[RefreshRecord]) -> Html:
    amounts = {kind: [getattr(record.rows, kind) for record in records] for kind in _KINDS}
    amounts["changed"] = [record.rows.computed for record in records]
    drawn = [_rows_chart(f"rows-{kind}", kind, records, amounts[kind]) for kind in _KINDS]
    return page.section(
        "Rows by kind",
        page.note(
            "Changed rows include rows with unchanged features that were recomputed. A first load "
            "or a new space may exceed the top of its chart."
        ),
        tag("div", *drawn, class_="pair"),
    )


def _gates(records: Sequence[RefreshRecord]) -> Iterator[Html]:
    every = _gate_series(records)
    shown = []
    for scope, heading in _SCOPES.items():
        small = [
            _gate_chart(f"gate-{scope}-{place}", limit.rpartition(".")[2], judged)
            for place, ((limit, its_scope), judged) in enumerate(every.items())
            if its_scope == scope
        ]
        if small:
            shown += [tag("h3", heading), tag("div", *small, class_="pair")]
    if shown:
        yield page.section(
            "What the gate measured",
            page.note(
                "Line: the value of each refresh. Dashes: the maximum allowed. A diamond marks a "
                "refresh beyond its limit; values beyond four times the limit are cut at the top."
            ),
            *shown,
            page.behind("The numbers behind these charts", _numbers(every)),
            *_broken(records),
        )


def _gate_series(records: Sequence[RefreshRecord]) -> dict[tuple[str, str], _LimitHistory]:
    """Return every limit that was ever measured, but for the audit's, by name and scope."""
    found = [{(f.limit, f.scope): f for f in record.findings} for record in records]
    names = dict.fromkeys(
        name
        for record in found
        for name, finding in record.items()
        if name[1] in _SCOPES and (finding.measured is not None or not finding.passed)
    )
    versions = [record.version for record in records]
    findings = {name: [record.get(name) for record in found] for name in names}
    return {
        name: _LimitHistory(
            versions,
            [math.nan if f is None else real(f.measured) for f in every],
            [math.nan if f is None else real(f.allowed) for f in every],
            [f is None or f.passed for f in every],
        )
        for name, every in findings.items()
    }


def _numbers(every: Mapping[tuple[str, str], _LimitHistory]) -> Html:
    versions = next(iter(every.values())).versions
    measured = (map(number, judged.measured) for judged in every.values())
    rows = list(zip(map(str, versions), *measured, strict=True))
    headings = ("version", *(text_refresh.finding_name(limit, scope) for limit, scope in every))
    return page.table("What the gate measured, newest first", headings, rows[::-1], "")


def _broken(records: Sequence[RefreshRecord]) -> Iterator[Html]:
    rows = [
        [
            str(record.version),
            text_refresh.finding_name(finding.limit, finding.scope),
            number(finding.measured),
            number(finding.allowed),
            finding.what,
            page.codes(describe_key(list(row.key.values())) for row in finding.rows),
        ]
        for record in records
        for finding in record.findings
        if not finding.passed
    ]
    if rows:
        caption = "Broken limits, newest first"
        headings = ("version", "limit", "measured", "allowed", "finding", "worst rows")
        yield page.table(caption, headings, rows[::-1], "rlrrll", shown=_MOST_ROWS)


def _acceptances(records: Sequence[RefreshRecord]) -> Iterator[Html]:
    rows = [
        [
            str(record.version),
            text_refresh.minute(record.accepted.at),
            record.accepted.user or DASH,
            record.accepted.host or DASH,
            record.accepted.note or DASH,
        ]
        for record in reversed(records)
        if record.accepted is not None
    ]
    if rows:
        headings = ("version", "when (UTC)", "user", "host", "note")
        table = page.table("Decisions, newest first", headings, rows, "rllll", shown=_MOST_ROWS)
        yield page.section("Accepted by a person", table)


def _table(history: History) -> Html:
    rows = []
    for record in reversed(history.nights):
        row: dict[str, object] = {**text_refresh.table_row(record, history)}
        del row["model"]  # here without its hash, and last
        model = page.code(base_name(record.model.path)) if record.model else DASH
        rows.append({**row, "model": model})
    if not rows:
        return page.section("Refreshes", page.note("No refresh has reached the gate yet."))
    values = [[*row.values()] for row in rows]
    table = page.table("Every refresh, newest first", [*rows[0]], values, _SIDES)
    return page.section("Refreshes", table)


def _small(id_: str, title: str, said: str, draw: Callable[[ChartText, Frame], Html]) -> Html:
    """Return one of several small charts that stand side by side, drawn for any window alike."""
    drawn = draw(ChartText(id_, title, said), _SMALL)
    return tag("div", tag("h3", title), tag("figure", tag("div", drawn, class_="narrow")))


def _rows_chart(
    id_: str, title: str, records: Sequence[RefreshRecord], rows: Sequence[int]
) -> Html:
    """Draw how many rows of one kind every refresh had."""
    # A first load, and a refresh in a new space, may be cut at the top: they would press every
    # other refresh onto the axis.
    ordinary = [
        n for n, r in zip(rows, records, strict=True) if n and r.kind != "load" and not r.new_space
    ]
    most = max(ordinary or [n for n in rows if n] or [1])
    axes = _versions(records), Axis("rows", 0, most * _ROOM, "whole")
    bars = [
        charts.Bar(place, place + 1, amount, f"version {record.version}: {count(amount)}")
        for place, (record, amount) in enumerate(zip(records, rows, strict=True))
    ]
    said = (
        f"{plural(len(records), 'refresh', 'refreshes')}, {plural(most, 'row')} in the largest "
        "ordinary one."
    )
    return _small(id_, title, said, partial(charts.bar_chart, axes=axes, bars=bars))


def _norms_chart(records: Sequence[RefreshRecord]) -> Html:
    """Draw median, middle half and middle 90 % of the norms of every refresh."""
    values = {
        name: [text_refresh.quantile(record, name) for record in records] for name in MIDDLE_COLUMNS
    }
    known = [value for row in values.values() for value in row if math.isfinite(value)]
    if not known:
        return page.note("No refresh has norms.")
    low, high = min(known), max(known)
    room = (high - low) / 5 or high / 20 or 1.0
    axes = _versions(records), Axis("norm", max(low - room, 0.0), high + room)
    steps = charts.Steps.of_quantiles(range(len(records) + 1), values)
    middles = [value for value in values["q50"] if math.isfinite(value)]
    said = f"Medians from {number(min(middles))} to {number(max(middles))}."
    words = ChartText("norms", "Norm quantiles of every refresh", said)
    return page.chart(words, partial(charts.band_chart, axes=axes, steps=steps))


@dataclass(frozen=True)
class _LimitHistory:
    """What one limit measured in every refresh, and what it allowed; NaN where there is none."""

    versions: Sequence[int]
    measured: Sequence[float]
    allowed: Sequence[float]
    passed: Sequence[bool]


def _gate_chart(id_: str, title: str, judged: _LimitHistory) -> Html:
    """Draw the values of a limit against what was allowed."""
    broken = [v for v, is_kept in zip(judged.versions, judged.passed, strict=True) if not is_kept]
    said = f"Broken in versions {', '.join(map(str, broken))}." if broken else "Never broken."
    return _small(id_, title, said, partial(_gate, judged=judged))


def _gate(words: ChartText, frame: Frame, judged: _LimitHistory) -> Html:
    limits = [value for value in judged.allowed if math.isfinite(value)]
    values = [value for value in judged.measured if math.isfinite(value)]
    cut = max(limits) * _MOST_LIMITS if limits and max(limits) > 0 else math.inf
    high = max([*limits, *(min(value, cut) for value in values)], default=0.0)
    axes = _Versions.of("version", judged.versions), Axis("", 0.0, high * _ROOM or 1.0)
    plot = Plot(*axes, frame)
    # A step of its own for each refresh, so that one between gaps shows.
    edges = range(len(judged.versions) + 1)
    limit = charts.step_path(plot, edges, judged.allowed)
    marks = [
        svg.path(limit, "limit", stroke_dasharray="5 3"),
        charts.step_line(plot, edges, judged.measured),
        *_beyond(plot, judged),
    ]
    return charts.framed(words, plot, marks)


def _beyond(plot: Plot, judged: _LimitHistory) -> Iterator[Html]:
    for place, version in enumerate(judged.versions):
        if judged.passed[place]:
            continue
        # A value beyond any number stands at the top.
        value = judged.measured[place]
        height = plot.y.high if math.isnan(value) else value
        words = f"version {version}: {number(value)}, allowed {number(judged.allowed[place])}"
        mark = (
            f"M{pixels(plot.across(place + 0.5))},{pixels(plot.down(height))}m-4,0l4,-5l4,5l-4,5z"
        )
        yield tag(
            "g", tag("title", words), svg.path(mark, "beyond", fill="inherit"), class_="beyond"
        )


def _draw_outcomes(
    words: ChartText,
    frame: Frame,
    records: Sequence[RefreshRecord],
    outcomes: Sequence[str],
    lanes: Sequence[str],
) -> Html:
    axes = _versions(records), _Lanes.of("", lanes)
    # The label of the y axis, above, is empty: the frame is moved up by its height.
    plot = Plot(*axes, Frame(frame.width, len(lanes) * _LANE + 66))
    bars = []
    for place, (record, its) in enumerate(zip(records, outcomes, strict=True)):
        left, right = plot.across(place), plot.across(place + 1)
        gap = 2.0 if right - left > svg.LETTER else 0.0
        top, width = plot.down(plot.y.high - lanes.index(its)) + 5, max(right - left - gap, 1.0)
        box = left + gap / 2, top, width, _LANE - 10
        bars.append(svg.box(box, "bar", f"version {record.version}: {its}", radius=2))
    return charts.framed(words, plot, bars)


@dataclass(frozen=True)
class _Lanes(charts.Places):
    """Named rows, the first on top."""

    def ticks(self, most: int) -> list[tuple[float, str]]:
        del most
        return [(self.high - place - 0.5, name) for place, name in enumerate(self.names)]


@dataclass(frozen=True)
class _Versions(charts.Places):
    """Versions of refreshes, of which every second, fifth … has a label where there are many."""

    def ticks(self, most: int) -> list[tuple[float, str]]:
        steps = (factor * 10**power for power in range(9) for factor in (1, 2, 5))
        step = next(step for step in steps if len(self.names) <= step * most)
        return [
            (place + 0.5, name)
            for place, name in enumerate(self.names)
            if step == 1 or int(name) % step == 0
        ]


def _versions(records: Sequence[RefreshRecord]) -> charts.Places:
    return _Versions.of("version", [record.version for record in records])
