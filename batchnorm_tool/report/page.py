"""One self-contained HTML document: no script, no request, dark and light, screen and paper."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from batchnorm_tool.display import plural
from batchnorm_tool.report import Html, join, tag
from batchnorm_tool.report.svg import NARROW, WIDE, ChartText, Frame

if TYPE_CHECKING:
    from batchnorm_tool.comparison.verdict import VerdictEntry

_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfc; --panel: #f4f5f4; --ink: #1c2024; --quiet: #5a636c; --rule: #d9dddf;
  --mark: #4a86c5; --line: #1d4f86; --alarm: #a3341f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --panel: #1c2126; --ink: #e6e8ea; --quiet: #a0a9b2; --rule: #333a41;
    --mark: #5d97d3; --line: #b4d6f7; --alarm: #f0917d;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
header, main, footer { max-width: 54rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
footer { padding-top: 1rem; padding-bottom: 3rem; color: var(--quiet); font-size: .875rem; }
h1 { margin: .25rem 0 .5rem; font-size: 1.75rem; line-height: 1.25; font-weight: 650;
  letter-spacing: -.01em; }
h2 { margin: 0 0 .75rem; font-size: 1.25rem; line-height: 1.3; font-weight: 650; }
h3 { margin: 2rem 0 .25rem; font-size: 1rem; font-weight: 650; }
p { margin: 0 0 .75rem; }
.quiet { color: var(--quiet); }
.note { color: var(--quiet); font-size: .875rem; margin: .25rem 0 .5rem; max-width: 44rem; }
section { margin-top: 2.5rem; padding-top: 1.5rem; border-top: 1px solid var(--rule); }
dl { margin: 0; }
dt { color: var(--quiet); font-size: .875rem; }
dd { margin: 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr));
  gap: 1rem; margin: 1.5rem 0 2rem; padding: 1.25rem; background: var(--panel);
  border-radius: .5rem; }
.figures dd { font-size: 1.5rem; line-height: 1.3; font-weight: 600; }
.alarm dd { color: var(--alarm); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr));
  gap: .4rem 2rem; }
.facts div { display: grid; grid-template-columns: 5.5rem 1fr; gap: .75rem; align-items: baseline; }
code { font: .875em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
.wide { display: block; } .narrow { display: none; }
.trio { display: grid; grid-template-columns: repeat(2, 1fr); gap: 0 2.5rem; }
.trio > * { min-width: 0; }
.trio .wide { display: none; } .trio .narrow { display: block; }
.bar:hover { fill: var(--line); }
.scroll { overflow-x: auto; margin: .5rem 0 1rem; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--mark);
  outline-offset: 2px; }
table { width: max-content; border-collapse: collapse; font-size: .875rem; line-height: 1.4; }
caption { text-align: left; color: var(--quiet); padding: 0 0 .4rem; }
th, td { padding: .3rem 1.25rem .3rem 0; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--rule); overflow-wrap: normal; }
th { font-weight: 600; color: var(--quiet); }
td.text { max-width: 26rem; overflow-wrap: anywhere; }
.number { text-align: right; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
details { margin: .25rem 0 1rem; }
summary { cursor: pointer; color: var(--quiet); font-size: .875rem; padding: .35rem 0;
  width: fit-content; }
summary:hover { color: var(--ink); }
ul { margin: 0; padding-left: 1.2rem; }
@media (max-width: 40rem) {
  header, main, footer { padding-left: 1.25rem; padding-right: 1.25rem; }
  header { padding-top: 1.5rem; }
  h1 { font-size: 1.375rem; }
  .figures { grid-template-columns: repeat(2, 1fr); gap: .75rem 1rem; padding: 1rem; }
  .figures dd { font-size: 1.25rem; }
  .facts { grid-template-columns: 1fr; }
  .trio { grid-template-columns: 1fr; }
  .wide { display: none; } .narrow { display: block; }
}
@media print {
  :root { --paper: #fff; --panel: #f4f5f4; --ink: #000; --quiet: #444; --rule: #ccc;
    --mark: #4a86c5; --line: #1d4f86; --alarm: #a3341f; color-scheme: light; }
  body { font-size: 10pt; }
  header, main, footer { max-width: none; padding-left: 0; padding-right: 0; }
  figure, tr, .figures { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  details:not([open]) { display: none; }
  .scroll { overflow: visible; }
}
"""
VERDICT_STYLE = """
.verdict { margin: 1.5rem 0 0; padding: 1.25rem 1.5rem 1.25rem; background: var(--panel);
  border-left: 4px solid var(--mark); border-radius: 0 .5rem .5rem 0; }
.verdict h2 { font-size: .875rem; font-weight: 600; color: var(--quiet); margin: 0 0 .25rem; }
.verdict .words { font-size: 1.25rem; line-height: 1.4; font-weight: 600; margin: 0;
  text-wrap: pretty; }
.verdict dl { margin-top: 1rem; display: grid; gap: .5rem; }
.verdict dl div { display: grid; grid-template-columns: 4.5rem 1fr; gap: .75rem;
  align-items: baseline; }
.verdict ul { margin-top: .75rem; padding-left: 1.1rem; color: var(--quiet); font-size: .875rem; }
@media (max-width: 40rem) {
  .verdict { padding: 1rem; }
  .verdict .words { font-size: 1.125rem; }
  .verdict dl div { grid-template-columns: 1fr; gap: 0; }
}
@media print { .verdict { break-inside: avoid; } }
"""
"""The rules for a verdict, for the style sheet of a page."""
# The page asks for nothing; this makes the browser hold it to that, whatever a name contains.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"


def document(
    title: str, header: Html, sections: Iterable[Html], version: str = "", style: str = ""
) -> str:
    """Put a whole page together, which needs no other file and is to be written as UTF-8."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Html(_STYLE + style)),
    )
    program = f"batchnorm_tool {version}".rstrip()
    footer = tag("footer", f"{program}. This page loads nothing and runs no script.")
    body = tag("body", tag("header", header), tag("main", *sections), footer)
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def header(said: object, heading: object, *about: object) -> Html:
    """Return what a page begins with: what it is, of what, and the figures that count most."""
    return join(quiet(said), tag("h1", heading), *about)


def quiet(*words: object) -> Html:
    """Return a paragraph that explains what stands around it."""
    return tag("p", *words, class_="quiet")


def section(heading: object, *children: object) -> Html:
    """Return a section with a heading of the second level."""
    return tag("section", tag("h2", heading), *children)


def name(value: object) -> Html:
    """Return a name from a file, kept apart from the writing direction of what surrounds it."""
    return tag("bdi", value)


def code(value: object) -> Html:
    """Return a name or value in a fixed-width font."""
    return tag("code", name(value))


def codes(values: Iterable[object]) -> Html:
    """Return names with commas between them."""
    return join(*(join(", " if place else "", code(value)) for place, value in enumerate(values)))


def identity(value: str) -> Html:
    """Return the first twelve digits of a hash; the whole of it shows when pointed at."""
    return tag("code", value[:12], title=value)


def figures(pairs: Iterable[tuple[str, object, bool]]) -> Html:
    """Return a few large numbers side by side."""
    entries = (
        tag("div", tag("dt", label), tag("dd", value), class_="alarm" if worry else None)
        for label, value, worry in pairs
    )
    return tag("dl", *entries, class_="figures")


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Return names and values as a description list in two columns."""
    entries = (tag("div", tag("dt", label), tag("dd", value)) for label, value in pairs)
    return tag("dl", *entries, class_="facts")


def table(
    caption: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    sides: str = "l",
    *,
    shown: int = 500,
) -> Html:
    """Return a table that scrolls by itself where it is wider than the page.

    Screen readers announce the caption. Columns go to the left or right as ``sides``, letters
    ``l`` and ``r``, says, and numbers do: those that it leaves out to the right. Rows beyond
    ``shown`` are counted in a last line.
    """
    every = list(rows)
    classes = ["text" if side == "l" else "number" for side in sides.ljust(len(headings), "r")]
    columns = list(zip(headings, classes, strict=True))
    head = tag("tr", *(tag("th", name, scope="col", class_=side) for name, side in columns))
    body = (
        tag("tr", *(tag("td", cell, class_=side) for cell, side in zip(row, classes, strict=True)))
        for row in every[:shown]
    )
    inner = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    scroll = tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption)
    hidden = len(every) - shown
    return join(scroll, note(f"… and {plural(hidden, 'more row')}.") if hidden > 0 else None)


def chart(
    words: ChartText,
    draw: Callable[[ChartText, Frame], Html],
    notes: Iterable[str] = (),
    numbers: Html | None = None,
) -> Html:
    """Return a figure that is drawn twice, for wide and for narrow windows, with its numbers."""
    drawn = (
        tag("div", draw(replace(words, id=f"{words.id}-{name}"), frame), class_=name)
        for name, frame in (("wide", WIDE), ("narrow", NARROW))
    )
    data = None if numbers is None else behind("The numbers behind this chart", numbers)
    return tag("figure", *drawn, *map(note, notes), data)


def behind(label: str, content: Html) -> Html:
    """Return content that stays folded until the reader asks for it."""
    return tag("details", tag("summary", label), content)


def prose(words: str) -> Html:
    """Return words in which what stands between backticks is code."""
    pieces = words.split("`")
    if len(pieces) % 2 == 0:  # an odd backtick, from a name: leave all as they are
        return join(words)
    return join(*(code(text) if n % 2 else text for n, text in enumerate(pieces)))


def warnings(words: Iterable[object]) -> Iterator[Html]:
    """Yield the section with the warnings of a run or a comparison, where there are any."""
    entries = [tag("li", prose(str(warning))) for warning in words]
    if entries:
        yield section("Warnings", tag("ul", *entries))


def note(*words: object) -> Html:
    """Return a remark in small print."""
    return tag("p", *words, class_="note")


def verdict(entry: VerdictEntry) -> Html:
    """Show a verdict in words, with its reason, its cost and its notes where it has them."""
    pairs = (("Why", entry.get("reason")), ("Cost", entry.get("cost")))
    grounds = [
        tag("div", tag("dt", heading), tag("dd", prose(said))) for heading, said in pairs if said
    ]
    notes = [tag("li", prose(str(said))) for said in entry.get("notes") or []]
    return tag(
        "div",
        tag("h2", "Verdict"),
        tag("p", prose(str(entry["words"])), class_="words"),
        tag("dl", *grounds) if grounds else None,
        tag("ul", *notes) if notes else None,
        class_="verdict",
    )
