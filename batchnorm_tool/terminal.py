"""What the command line prints: words for a person, or one JSON document for a program."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from batchnorm_tool.job import Job
    from batchnorm_tool.jobs.scoring import RunResult
    from batchnorm_tool.jobs.showing import Shown
    from batchnorm_tool.jobs.verifying import Verification
    from batchnorm_tool.plan import Plan
    from batchnorm_tool.progress import Progress

_INDENT = "  "
_WIDTH = 68
# Items of a list that a line shows before it says how many there are.
_LISTED = 4


class Terminal:
    """Prints what a command came to.

    Args:
        as_json: One JSON document on standard output, everything else on standard error.
        quiet: Nothing but errors, and the document if one is asked for.
        json_logs: Messages on standard error as JSON lines.
    """

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, json_logs: bool = False
    ) -> None:
        self._as_json, self._quiet, self._json_logs = as_json, quiet, json_logs
        self._color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def progress(self, kind: str) -> Progress:
        """Who is told how far the work is."""
        from batchnorm_tool.progress import Bar, Plain, Quiet

        if self._quiet or kind == "none":
            return Quiet()
        if kind == "bar" or (kind == "auto" and sys.stderr.isatty() and not self._json_logs):
            return Bar()
        return Plain(say=lambda text: self._log("info", text))

    def failed(self, error: str, message: str, exit_code: int) -> None:
        """Say what went wrong."""
        self._log("error", message, error=error, exit_code=exit_code)
        if self._as_json:
            self.failure(error, message, exit_code)

    def failure(self, error: str, message: str, exit_code: int) -> None:
        """Print the document that says what went wrong, and nothing else."""
        status = {"status": "failed", "error": error, "message": message, "exit_code": exit_code}
        self._document(status)

    def config(self, job: Job) -> None:
        """Print a resolved job, secrets masked, in a form that runs."""
        if self._as_json:
            self._document(job.masked())
            return
        import yaml

        from batchnorm_tool.job.file import escape_variables

        values = escape_variables(job.masked())
        click.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), nl=False)

    def schema(self, schema: Mapping[str, Any]) -> None:
        """Print a JSON Schema."""
        self._document(schema)

    def planned(self, plan: Plan) -> None:
        """Print the plan of a dry run."""
        facts = _plan_facts(plan)
        document = {"status": "planned", **facts, "warnings": list(plan.warnings)}
        self._warn(plan.warnings)
        self._print(document, lambda: [self._bold("Plan"), *_table(facts.items())])

    def ran(self, result: RunResult, shorthand: Job | None, *, profile: bool = False) -> None:
        """Print what a run came to, where its time went, and the job file of a shorthand."""
        self._warn(result.warnings)
        document: dict[str, Any] = {
            "status": "nothing to do" if result.nothing_to_do else "done",
            "path": result.path,
            "parts_kept": result.parts_kept,
            "rows_done": result.rows_done,
            "seconds": round(result.seconds, 3),
            "manifest": dict(result.manifest),
        }
        if profile:
            document["profile"] = None if result.profile is None else result.profile.to_dict()
        self._print(document, lambda: self._run_lines(result, shorthand, profile=profile))

    def verified(self, verification: Verification) -> None:
        """Print what `verify` read."""
        facts = verification.to_dict()
        self._print({"status": "sound", **facts}, lambda: self._verified_lines(facts))

    def shown(self, shown: Shown, html: str | None) -> None:
        """Print what a path is."""
        self._print(shown.to_dict(), lambda: self._shown_lines(shown, html))

    def compared(self, document: Mapping[str, Any], directory: str | None) -> None:
        """Print a comparison or a difference, and where its report is."""
        self._warn(document["warnings"])
        self._print({"status": "done", **document}, lambda: _compared_lines(document, directory))

    def _run_lines(
        self, result: RunResult, shorthand: Job | None, *, profile: bool
    ) -> Iterator[str]:
        if result.nothing_to_do:
            yield self._bold("Nothing to do: ") + f"this very result stands in {_near(result.path)}"
            yield f"{_INDENT}{result.rows['out']:,} rows; `--fresh` makes it again"
            return
        from batchnorm_tool.report import summary

        seconds = result.seconds if result.rows_done == result.rows["in"] else None
        yield self._bold("Done. ") + summary.rows_line(result.manifest, seconds)
        if result.parts_kept:
            total = len(result.manifest["parts"])
            yield f"{_INDENT}resumed: {result.parts_kept} of {total} parts were finished already"
        yield from _indented(summary.bad_row_lines(result.manifest))
        yield from _indented(["", *summary.norm_lines(result.manifest, _WIDTH), ""])
        yield from _table(_places(result))
        if profile and result.profile is not None:
            yield from _indented(["", *summary.profile_lines(result.profile.to_dict(), _WIDTH)])
        yield from _indented(["", "What to try next:"])
        yield from _indented(summary.next_steps(_near(result.path)), 2)
        if shorthand is not None:
            yield from _indented(["", "The same as a job file:"])
            yield from _indented(shorthand.to_yaml().splitlines(), 2)

    def _verified_lines(self, facts: Mapping[str, Any]) -> Iterator[str]:
        yield self._bold("Sound. ") + "Checksums, counts, lengths and finiteness all agree."
        keys = "all different, none null" if facts["keys"] else "not looked at (`--keys` does)"
        yield from _table({**facts, "path": _near(facts["path"]), "keys": keys}.items())

    def _shown_lines(self, shown: Shown, html: str | None) -> Iterator[str]:
        lines = {
            "run": self._finished_lines,
            "unfinished run": self._unfinished_lines,
            "model": self._model_lines,
            "data": self._data_lines,
        }
        yield from lines[shown.kind](shown.facts)
        if html is not None:
            yield from _table([("page", html)])

    def _finished_lines(self, facts: Mapping[str, Any]) -> Iterator[str]:
        from batchnorm_tool.report import summary

        yield self._bold("A finished run. ") + summary.rows_line(facts)
        yield from _indented(summary.bad_row_lines(facts))
        yield from _indented(["", *summary.norm_lines(facts, _WIDTH), ""])
        yield from _table((name, facts[name]) for name in ("space", "bits", "result"))

    def _unfinished_lines(self, facts: Mapping[str, Any]) -> Iterator[str]:
        yield self._bold("An unfinished run, ") + _state_words(facts)
        done = {
            "parts": f"{facts['parts_done']:,} of {facts['parts']:,}",
            "rows": f"{facts['rows_done']:,} of {facts['rows']:,}",
            "bad rows": facts["bad_rows"],
        }
        yield from _table(done.items())

    def _model_lines(self, facts: Mapping[str, Any]) -> Iterator[str]:
        yield self._bold("A model, ") + str(facts["format"])
        rows = [(name, facts[name]) for name in ("sha256", "content")]
        found_in = facts["findings"]
        for end in ("inputs", "outputs"):
            for field in facts[end] or ():
                kind = f"{_shape_words(field['shape'])} {field['dtype']}"
                rows.append((end[:-1], f"{field['name']}: {kind}"))
        rows += [(found["severity"], f"{found['what']} ({found['where']})") for found in found_in]
        if facts.get("load_error"):
            rows.append(("does not load", facts["load_error"]))
        yield from _table(rows)

    def _data_lines(self, facts: Mapping[str, Any]) -> Iterator[str]:
        yield self._bold("Data, ") + f"{facts['format']}, {facts['rows']:,} rows"
        names = ("files", "bytes", "likely_key", "likely_features")
        yield from _table((name, facts[name] or "none found") for name in names)
        yield f"{_INDENT}columns, over the first {facts['rows_sampled']:,} rows:"
        yield from _indented(_table(map(_column_row, facts["columns"])))

    def _print(self, document: Mapping[str, Any], lines: Callable[[], Iterable[str]]) -> None:
        if self._as_json:
            self._document(document)
        elif not self._quiet:
            for line in lines():
                click.echo(line)

    def _document(self, document: Mapping[str, Any]) -> None:
        click.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))

    def _warn(self, warnings: Sequence[str]) -> None:
        if not self._quiet:
            for warning in warnings:
                self._log("warning", warning)

    def _log(self, level: str, text: str, **more: object) -> None:
        if self._json_logs:
            click.echo(json.dumps({"level": level, "message": text, **more}), err=True)
        else:
            prefix = "" if level == "info" else f"{level}: "
            click.echo(prefix + text, err=True)

    def _bold(self, text: str) -> str:
        return click.style(text, bold=True) if self._color else text


def _compared_lines(document: Mapping[str, Any], directory: str | None) -> Iterator[str]:
    from batchnorm_tool.report.comparison_summary import comparison_lines, difference_lines

    is_comparison = document["kind"] == "comparison"
    yield from (comparison_lines if is_comparison else difference_lines)(document, _WIDTH)
    if directory is not None:
        name = "comparison" if is_comparison else "diff"
        yield ""
        yield from _table([("report", f"{_near(directory)}/{name}.html")])


def _near(path: str) -> str:
    """A path as a person in the current directory would write it."""
    beside = os.path.relpath(path)
    return path if beside.startswith(os.pardir) else beside


def _state_words(facts: Mapping[str, Any]) -> str:
    if facts["running"]:
        return "under way"
    if facts["parts_refused"]:
        return "stopped by bad rows: mend the input, or choose another row policy"
    return "stopped: the same command resumes"


def _plan_facts(plan: Plan) -> dict[str, Any]:
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


def _places(result: RunResult) -> Iterator[tuple[str, str]]:
    """Where the files are: each directory of a part's files, then the manifest."""
    paths = [file["path"] for part in result.manifest["parts"] for file in part["files"]]
    for directory in dict.fromkeys(path.rpartition("/")[0] for path in paths):
        yield directory.removeprefix("_"), f"{_near(result.path)}/{directory}"
    yield "manifest", f"{_near(result.path)}/_manifest.json"


def _column_row(column: Mapping[str, Any]) -> tuple[str, str]:
    ends = "" if column["min"] is None else f", {column['min']} to {column['max']}"
    nulls = f", {column['nulls']:,} nulls" if column["nulls"] else ""
    return column["name"], f"{column['type']}{ends}{nulls}"


def _table(facts: Iterable[tuple[str, object]]) -> Iterator[str]:
    """Names and values below one another; what a file or a user named shows no control codes."""
    from batchnorm_tool.report.markup import visible

    rows = [(visible(name.replace("_", " ")), visible(_words(value))) for name, value in facts]
    width = max((len(name) for name, _ in rows), default=0)
    yield from (f"{_INDENT}{name:<{width}}  {value}" for name, value in rows)


def _indented(lines: Iterable[str], times: int = 1) -> Iterator[str]:
    yield from (_INDENT * times + line if line else "" for line in lines)


def _shape_words(shape: Sequence[int | None]) -> str:
    sizes = ["any" if size is None else str(size) for size in shape]
    return " \N{MULTIPLICATION SIGN} ".join(sizes) or "scalar"


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_words(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return _listed(value)
    return str(value)


def _listed(values: list[Any]) -> str:
    shown = ", ".join(str(value) for value in values[:_LISTED])
    return shown if len(values) <= _LISTED else f"{shown} … {values[-1]} ({len(values)})"
