"""Lines for a person, of what a command came to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from batchnorm_tool.jobs.scoring import RunResult
    from batchnorm_tool.plan import Plan

INDENT = "  "
WIDTH = 68
# Items of a list that a line shows before it says how many there are.
_LISTED = 4


def store_words(facts: Mapping[str, Any]) -> str:
    """Which version of a store is live."""
    live = "no version is live yet" if facts["version"] is None else f"version {facts['version']}"
    return f"{live}, {facts['rows']:,} rows"


def store_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """What else there is to say of a store: names and values."""
    hold, waiting, gate = facts["hold"], facts["waiting"], facts.get("gate")
    if facts["version"] is not None:
        yield "stale rows", facts["stale"]
        yield "quarantined", facts["quarantined"]
        yield "vectors", f"{facts['width']} x {facts['dtype']}, {facts['norm']}"
        yield "published", facts["published"]
        yield "space", facts["space"]
    if gate is not None:
        yield "gate", "passed" if gate["passed"] else "broken"
    yield "waiting", f"version {waiting['version']} ({waiting['reason']})" if waiting else "none"
    yield "hold", f"since {hold['since']}, {hold['reason']}" if hold else "none"
    yield "kept versions", [int(version) for version in facts["versions"]]


def compared_lines(document: Mapping[str, Any], directory: str | None) -> Iterator[str]:
    """A comparison or a difference, and where its report is."""
    from batchnorm_tool.report.comparison_summary import comparison_lines, difference_lines

    is_comparison = document["kind"] == "comparison"
    yield from (comparison_lines if is_comparison else difference_lines)(document, WIDTH)
    if directory is not None:
        name = "comparison" if is_comparison else "diff"
        yield ""
        yield from table([("report", f"{near(directory)}/{name}.html")])


def night_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """What a refresh, an acceptance or a rollback came to."""
    from batchnorm_tool.report import night_summary

    store = near(document["store"])
    if document["outcome"] == "nothing to do":
        rows = document["rows"]
        yield f"Nothing to do: version {document['version']} of {store} is up to date."
        yield f"{INDENT}{rows['in']:,} rows in, {rows['live']:,} live"
        return
    yield from night_summary.night_lines(document, WIDTH, document["targets"], store)


def released_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """What became of a hold."""
    store = near(document["store"])
    if not document["released"]:
        yield f"There was no hold on {store}: version {document['live']} is live."
        return
    yield f"The hold on {store} is over: the next refresh publishes again."
    if document["waiting"] is not None:
        yield f"{INDENT}version {document['waiting']} waits; it is published by the next refresh"
        yield f"{INDENT}with the same input, or by `accept`"


def near(path: str) -> str:
    """A path as a person in the current directory would write it."""
    beside = os.path.relpath(path)
    return path if beside.startswith(os.pardir) else beside


def state_words(facts: Mapping[str, Any]) -> str:
    """Whether an unfinished run is under way, or why it stopped."""
    if facts["running"]:
        return "under way"
    if facts["parts_refused"]:
        return "stopped by bad rows: mend the input, or choose another row policy"
    return "stopped: the same command resumes"


def plan_facts(plan: Plan) -> dict[str, Any]:
    """What a plan says, by name."""
    resolved = plan.resolved
    return {
        "rows": plan.rows,
        "files": len(plan.files),
        "parts": plan.part_count,
        "part_rows": resolved.part_rows,
        "batch_size": resolved.batch_size,
        "device": resolved.device,
        "features": {name: list(columns) for name, columns in resolved.features.items()},
        "inputs": {field.name: list(field.shape) for field in resolved.inputs},
        "outputs": {field.name: list(field.shape) for field in resolved.outputs},
        "bytes_expected": plan.bytes_expected,
        "output": plan.job.output.path,
    }


def places(result: RunResult) -> Iterator[tuple[str, str]]:
    """Where the files are: each directory of a part's files, then the manifest."""
    paths = [file["path"] for part in result.manifest["parts"] for file in part["files"]]
    for directory in dict.fromkeys(path.rpartition("/")[0] for path in paths):
        yield directory.removeprefix("_"), f"{near(result.path)}/{directory}"
    yield "manifest", f"{near(result.path)}/_manifest.json"


def column_row(column: Mapping[str, Any]) -> tuple[str, str]:
    """A column of data: its name, and its type, range and nulls."""
    ends = "" if column["min"] is None else f", {column['min']} to {column['max']}"
    nulls = f", {column['nulls']:,} nulls" if column["nulls"] else ""
    if column["nulls"] is None:
        nulls = ", values too large to look at"
    return column["name"], f"{column['type']}{ends}{nulls}"


def spelled_out(facts: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Facts whose names are our own, such as ``part_rows``, with these in words."""
    yield from ((name.replace("_", " "), value) for name, value in facts.items())


def table(facts: Iterable[tuple[str, object]]) -> Iterator[str]:
    """Yield names and values below one another."""
    rows = [(name, words(value)) for name, value in facts]
    width = max((len(name) for name, _ in rows), default=0)
    yield from (f"{INDENT}{name:<{width}}  {value}" for name, value in rows)


def indented(lines: Iterable[str], times: int = 1) -> Iterator[str]:
    """Lines further to the right, empty ones left empty."""
    yield from (INDENT * times + line if line else "" for line in lines)


def shape_words(shape: Sequence[int | None]) -> str:
    """A shape as a person writes it."""
    sizes = ["any" if size is None else str(size) for size in shape]
    return " \N{MULTIPLICATION SIGN} ".join(sizes) or "scalar"


def words(value: object) -> str:
    """A value as a person writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {words(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return listed(value)
    return str(value)


def listed(values: list[Any]) -> str:
    """The first items of a list, and how many there are."""
    shown = ", ".join(str(value) for value in values[:_LISTED])
    return shown if len(values) <= _LISTED else f"{shown} … {values[-1]} ({len(values)})"
