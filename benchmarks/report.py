"""The table, as Markdown and as JSON, with all that is needed to judge it."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import surroundings
from benchmarks.bench import Record
from benchmarks.findings import NOTHING, Finding, figure
from benchmarks.growth_plot import growth_plot

BEGIN, END = "<!-- benchmarks/results/full.md -->", "<!-- end -->"


@dataclass
class Report:
    """What a sitting came to.

    Attributes:
        command: The command that made it.
        findings: A value beside its target each.
        failures: Why a case could not be measured, by its name.
        records: Every single measurement.
        curves: Points of the plot of growth.
        machine: Where it was measured.
        versions: What was measured.
        date: When.
    """

    command: str
    findings: list[Finding] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    records: Sequence[Record] = ()
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=surroundings.machine)
    versions: Mapping[str, Mapping[str, str]] = field(default_factory=surroundings.versions)
    date: str = field(default_factory=lambda: f"{dt.datetime.now(dt.UTC):%Y-%m-%d}")

    def to_markdown(self) -> str:
        """The tables and where they come from."""
        return "\n\n".join(self._sections()) + "\n"

    def to_json(self) -> str:
        """Everything, as a JSON document."""
        data: dict[str, Any] = {
            "command": self.command,
            "date": self.date,
            "machine": self.machine,
            "versions": self.versions,
            "findings": [
                {**asdict(finding), "verdict": finding.verdict} for finding in self.findings
            ],
            "failures": self.failures,
            "curves": self.curves,
            "measurements": [record.to_dict() for record in self.records],
        }
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    def save(self, directory: Path, name: str) -> None:
        """Write ``NAME.md``, ``NAME.json``, and ``NAME-growth.svg`` if growth was measured."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{name}.md").write_text(self.to_markdown())
        (directory / f"{name}.json").write_text(self.to_json())
        if {"rows", "width"} <= self.curves.keys():
            drawing = growth_plot(self.curves["rows"], self.curves["width"])
            (directory / f"{name}-growth.svg").write_text(drawing + "\n")

    def show_in(self, page: Path) -> None:
        """Put the table of targets between the two marks in a page."""
        before, begin, rest = page.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not end:
            msg = f"{page} has no marks {BEGIN} and {END} between which the table belongs."
            raise ValueError(msg)
        page.write_text(f"{before}{begin}\n{self.targets()}\n\n{self.origin()}\n{end}{after}")

    def targets(self) -> str:
        """The table of targets."""
        return _table(
            ("row", "work", "ours", "the other", "ratio", "target", "met"),
            [
                (one.row, one.work, one.ours, one.other, one.shown_value, one.target, one.verdict)
                for one in self.findings
            ],
        )

    def origin(self) -> str:
        """The command, the date and the machine."""
        machine = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        return f"Made by `{self.command}` on {self.date}. Machine: {machine}."

    def _sections(self) -> Iterator[str]:
        yield self.targets()
        for case, why in self.failures.items():
            yield f"Case {case} could not be measured: {' '.join(why.split())}"
        yield "Medians of every contender:"
        yield _table(
            ("row", "contender", "runs", "work, s", "process, s", "CPU, s", "peak memory, MB"),
            list(_medians(self.records)),
        )
        yield self.origin()
        for whose, found in self.versions.items():
            listed = ", ".join(f"{name} {version}" for name, version in found.items())
            yield f"Versions of {whose}: {listed}."


def _medians(records: Sequence[Record]) -> Iterator[Sequence[object]]:
    by_contender: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        by_contender.setdefault((record.case, record.contender), []).append(record)
    for (case, contender), group in by_contender.items():
        taken = [record.measurement for record in group]
        bodies = [one.body_seconds for one in taken if "body_seconds" in one.said]
        yield (
            case,
            contender,
            len(taken),
            figure(statistics.median(bodies)) if bodies else NOTHING,
            figure(statistics.median(one.seconds for one in taken)),
            figure(statistics.median(one.cpu_seconds for one in taken)),
            figure(statistics.median(one.peak_bytes for one in taken) / 1e6),
        )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = itertools.chain([head, ["---"] * len(head)], rows)
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
