"""The verdict of a comparison, set so that it is read before everything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from batchnorm_tool.report import page
from batchnorm_tool.report.markup import tag

if TYPE_CHECKING:
    from batchnorm_tool.report.markup import Html

STYLE = """
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
"""The rules for the panel, for the style sheet of a page."""


def verdict_panel(verdict: Mapping[str, Any]) -> Html:
    """Show the verdict in words, with its reason, its cost and its notes where it has them.

    Args:
        verdict: ``words``, and perhaps ``reason``, ``cost`` and ``notes``.

    Returns:
        The panel as markup.
    """
    grounds = [
        tag("div", tag("dt", heading), tag("dd", page.prose(str(verdict[name]))))
        for heading, name in (("Why", "reason"), ("Cost", "cost"))
        if verdict.get(name)
    ]
    return tag(
        "div",
        tag("h2", "Verdict"),
        tag("p", page.prose(str(verdict["words"])), class_="words"),
        tag("dl", *grounds) if grounds else None,
        *_notes(verdict),
        class_="verdict",
    )


def _notes(verdict: Mapping[str, Any]) -> Iterator[Html]:
    notes = verdict.get("notes") or []
    if notes:
        yield tag("ul", *(tag("li", page.prose(str(note))) for note in notes))
