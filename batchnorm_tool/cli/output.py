"""What the command line prints: words for a person, or one JSON document for a program."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self, TextIO, cast

import click

from batchnorm_tool import display
from batchnorm_tool.display import bounded, described, mask_secrets, plural, printable, size, table
from batchnorm_tool.errors import FRESH, ContractBroken, Lines, WorkFailed

if TYPE_CHECKING:
    from batchnorm_tool.commands import show
    from batchnorm_tool.commands.bake.bake import Baked
    from batchnorm_tool.commands.progress import Progress
    from batchnorm_tool.commands.refresh.record import PlannedRefresh, RefreshResult, Released
    from batchnorm_tool.commands.run.retry import Retry
    from batchnorm_tool.commands.run.run import RunResult
    from batchnorm_tool.commands.verify.verify import Verification
    from batchnorm_tool.comparison.drift import DifferenceDocument
    from batchnorm_tool.comparison.verdict import ComparisonDocument
    from batchnorm_tool.contract import ContractReport
    from batchnorm_tool.gate.record import History
    from batchnorm_tool.job import Job
    from batchnorm_tool.pipeline.manifest import Manifest
    from batchnorm_tool.pipeline.plan import Plan

# What JSON leaves as it is, besides the line breaks of its layout.
_UNSEEN = re.compile(rf"(?!\n){display.INVISIBLE.pattern}")
_INDENT = "  "
_WIDTH = 68


class Terminal:
    """The printer of what a command came to: words, or one JSON document on standard output.

    When quiet, nothing but errors, and the document if one is asked for. The messages of an attempt
    are known by its ``run_id``, where there are many attempts.
    """

    def __init__(
        self,
        *,
        as_json: bool = False,
        quiet: bool = False,
        json_logs: bool = False,
        run_id: str | None = None,
    ) -> None:
        self._as_json, self._quiet, self._json_logs = as_json, quiet, json_logs
        self.run_id = run_id
        self._color = _is_terminal(sys.stdout) and not os.environ.get("NO_COLOR")
        self._warned: set[str] = set()

    def progress(self, kind: str) -> Progress:
        """Choose how progress is shown."""
        from batchnorm_tool.commands.progress import PlainProgress, ProgressBar, SilentProgress

        if self._quiet or kind == "none":
            return SilentProgress()
        if kind == "bar" or (kind == "auto" and _is_terminal(sys.stderr) and not self._json_logs):
            return ProgressBar()
        return PlainProgress(write=lambda text: self._log("info", text))

    def print_error(
        self, error: str, message: str, exit_code: int, result: RefreshResult | None = None
    ) -> None:
        """Say what went wrong; the report of a refresh that waits, or that a target missed, too."""
        # What a report on standard output says is not said here as well.
        reports = self._as_json or not self._quiet
        reported = result is not None and result.state == "waiting" and reports
        said = message.partition("\n")[0] if reported else message
        self._log("error", said, error=error, exit_code=exit_code)
        if self._as_json:
            self.print_error_document(error, message, exit_code, result.to_dict() if result else {})
        elif result is not None and not self._quiet:
            self._lines(_refresh_lines(result))

    def print_error_document(
        self, error: str, message: str, exit_code: int, record: Mapping[str, object] | None = None
    ) -> None:
        """Print the document that says what went wrong, and nothing else."""
        status = {"status": "failed", "error": error, "message": mask_secrets(bounded(message))}
        self.print_document({**status, "exit_code": exit_code, **(record or {})})

    def print_traceback(self, texts: Iterable[str]) -> None:
        """Show where an error arose, for whoever fixes it."""
        _echo("\n".join(map(printable, "".join(texts).splitlines())), err=True)

    def print_config(self, job: Job) -> None:
        """Print a resolved job, secrets masked, in a form that runs."""
        if self._as_json:
            self.print_document(job.masked())
            return
        from batchnorm_tool.job.loader import as_yaml

        _echo(as_yaml(job.masked()).rstrip("\n"))

    def print_retry(self, retry: Retry) -> None:
        """Print what a dry run would read again."""
        if retry.plan is None:
            facts = {"output": retry.path, "quarantined": dict(retry.quarantined)}
            document = {"status": "nothing to do", **facts}
            self._print(document, lambda: _nothing_lines(retry.path, retry.quarantined))
            return
        rows = {"parts_kept": retry.plan.part_count - len(retry.again), "rows_again": retry.rows}
        self.print_plan(retry.plan, {"quarantined": dict(retry.quarantined), **rows})

    def print_plan(self, plan: Plan, more: Mapping[str, object] | None = None) -> None:
        """Print the plan of a dry run."""
        resolved = plan.resolved
        facts = {
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
            **(more or {}),
        }
        document = {"status": "planned", **facts, "warnings": list(plan.warnings)}
        self.warn(*plan.warnings)
        self._print(document, lambda: [_HeadedLine("Plan"), *_fact_lines(facts)])

    def print_run(self, result: RunResult, shorthand: Job | None, *, profile: bool = False) -> None:
        """Print what a run came to, where its time went, and the job file of a shorthand."""
        self.warn(*result.warnings)
        document: dict[str, object] = {
            "status": "nothing to do" if result.nothing_to_do else "done",
            "path": result.path,
            "parts_kept": result.parts_kept,
            "rows_done": result.rows_done,
            "seconds": round(result.seconds, 3),
            "manifest": result.manifest,
        }
        if result.retried is not None:
            document["retried"] = dict(result.retried)
        if profile:
            document["profile"] = None if result.profile is None else result.profile.to_dict()
        self._print(document, lambda: _run_lines(result, shorthand, profile=profile))

    def print_verification(self, verification: Verification) -> None:
        """Print what `verify` read."""
        facts = verification.to_dict()
        head = _HeadedLine("OK. ", "All checksums, counts, lengths and values match.")
        keys = "no duplicates, no nulls" if facts["keys"] else "not checked (use `--keys`)"
        shown = {**facts, "path": _display_path(facts["path"]), "keys": keys}
        self._print({"status": "sound", **facts}, lambda: [head, *_fact_lines(shown)])

    def print_check(self, report: ContractReport) -> None:
        """Print whether an encoder keeps a contract, and leave with the exit code of that."""
        if report.agrees:
            document = {"status": "done", **report.to_dict()}
            self._print(document, lambda: [_HeadedLine("OK. ", report.message)])
            return
        broken, code = ContractBroken.__name__, ContractBroken.exit_code
        self._log("error", report.message, error=broken, exit_code=code)
        if self._as_json:
            self.print_error_document(broken, report.message, code, report.to_dict())
        sys.exit(code)

    def print_description(self, shown: show.Description, html: str | None) -> None:
        """Print what a path is."""
        details: Any = shown.details
        if shown.kind == "data":
            self.warn(*details.warnings)
        self._print(shown.to_dict(), lambda: _description_lines(shown, html))
        if shown.kind == "model" and details.load_error:
            self._log("error", details.load_error, error="ModelError", exit_code=2)
            sys.exit(2)

    def print_comparison(self, document: Mapping[str, Any], directory: str | None) -> None:
        """Print a comparison or a difference, and where its report is."""
        self.warn(*document["warnings"])
        compared = cast("ComparisonDocument | DifferenceDocument", document)
        self._print({"status": "done", **document}, lambda: _compared_lines(compared, directory))

    def announce(self, text: str) -> None:
        """Say what a person should know before, or while, work goes on."""
        if not self._quiet:
            self._log("info", text)

    def print_refresh(self, result: RefreshResult) -> None:
        """Print what a refresh, an acceptance or a rollback came to."""
        status = "done" if result.state == "published" else result.state
        self._print({"status": status, **result.to_dict()}, lambda: _refresh_lines(result))

    def print_refresh_plan(self, planned: PlannedRefresh) -> None:
        """Print what a refresh would change."""
        from batchnorm_tool.report.text_refresh import dry_run_lines

        for note in planned.notes:
            self.announce(note)
        lines = dry_run_lines(planned.rows, planned.gate, _WIDTH)
        self._print({"status": "planned", **planned.to_dict()}, lambda: lines)

    def print_baked(self, baked: Baked) -> None:
        """Print which files a model was written to, and how far they are from the norm after it."""
        from batchnorm_tool.commands.bake.parity import parity_table

        files, parity = _table([*baked.files.items()]), _indented(table(parity_table(baked.parity)))
        self._print({"status": "done", **baked.to_dict()}, lambda: (*files, "", *parity))

    def print_release(self, released: Released) -> None:
        """Print that a hold is over."""
        self._print({"status": "done", **released.to_dict()}, lambda: _released_lines(released))

    def print_history(self, history: History, html: str | None) -> None:
        """Print the versions of a store."""
        from batchnorm_tool.report.text_refresh import history_lines
        from batchnorm_tool.storage.checked_json import plain

        page = [] if html is None else ["", *_table([("page", html)])]
        self._print(plain(history), lambda: [*history_lines(history), *page])

    def _print(self, document: Mapping[str, object], lines: Callable[[], Iterable[str]]) -> None:
        if self._as_json:
            self.print_document(document)
        elif not self._quiet:
            self._lines(lines())

    def _lines(self, lines: Iterable[str]) -> None:
        for line in lines:
            head = line.bold if isinstance(line, _HeadedLine) and self._color else ""
            _echo(click.style(head, bold=True) * bool(head) + printable(line[len(head) :]))

    def print_document(self, document: Mapping[str, object]) -> None:
        """Print a document as JSON."""
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        _echo(_UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text))

    def warn(self, *warnings: str) -> None:
        """Say what a person should know, each text once."""
        if not self._quiet:
            for warning in dict.fromkeys(warnings):
                if warning not in self._warned:
                    self._log("warning", warning)
            self._warned.update(warnings)

    def _log(self, level: str, text: str, **more: object) -> None:
        if self._json_logs:
            named = {"run_id": self.run_id} if self.run_id else {}
            entry = {"level": level, "message": mask_secrets(text), **named, **more}
            _echo(json.dumps(entry), err=True)
        else:
            prefix = "" if level == "info" else f"{level}: "
            # A log holds many attempts; a person at a terminal sees one.
            run = f"[{self.run_id}] " if self.run_id and not _is_terminal(sys.stderr) else ""
            lines = text.split("\n") if isinstance(text, Lines) else [text]
            _echo(run + prefix + "\n".join(map(printable, lines)), err=True)


class _HeadedLine(str):
    """A line whose beginning is bold on a terminal."""

    __slots__ = ("bold",)
    bold: str

    def __new__(cls, head: str, rest: str = "") -> Self:
        line = super().__new__(cls, head + rest)
        line.bold = head
        return line


def _is_terminal(stream: TextIO | None) -> bool:
    """Tell whether a person reads there; a stream closed before the start is none."""
    return stream is not None and stream.isatty()


def _echo(text: str, *, err: bool = False) -> None:
    """Write to standard output or standard error, unless nobody reads it any more."""
    try:
        click.echo(text, err=err)
    except OSError as error:
        stream = sys.stderr if err else sys.stdout
        # What is buffered still goes somewhere, or Python would complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if not err and not isinstance(error, BrokenPipeError):
            raise WorkFailed(
                f"Cannot write to standard output: {error.strerror}. Fix the cause and run the "
                "same command again: finished work is kept."
            ) from error


def _run_lines(result: RunResult, shorthand: Job | None, *, profile: bool) -> Iterator[str]:
    path, record = _display_path(result.path), result.record
    if result.nothing_to_do and result.retried is not None:
        yield from _nothing_lines(result.path, result.retried)
        return
    if result.nothing_to_do:
        yield _HeadedLine("Up to date: ", f"`{path}` already holds this result")
        yield f"{_INDENT}{plural(result.rows['out'], 'row')}; use `{FRESH}` to recompute"
        return
    from batchnorm_tool.report import text_run

    seconds = result.seconds if result.rows_done == result.rows["in"] else None
    yield _HeadedLine("Done. ", text_run.rows_line(record.rows, seconds))
    total = plural(len(record.parts), "part")
    if result.retried is not None:
        again = plural(sum(result.retried.values()), "quarantined row")
        left = f"{record.rows.quarantined:,} in quarantine now"
        yield f"{_INDENT}read again: {again}, {left}; {result.parts_kept} of {total} kept"
    elif result.parts_kept:
        yield f"{_INDENT}resumed: {result.parts_kept} of {total} already finished"
    yield from _norm_lines(record)
    files = [file.path for part in record.parts for file in part.files]
    folders = dict.fromkeys(file.rpartition("/")[0] for file in files)
    places = {folder.removeprefix("_"): f"{path}/{folder}" for folder in folders}
    yield from _table([*places.items(), ("manifest", f"{path}/_manifest.json")])
    if profile and result.profile is not None:
        yield from _indented(["", *text_run.profile_lines(result.profile, _WIDTH)])
    yield from _indented(["", "Next steps:"])
    yield from _indented(text_run.next_steps(path), 2)
    if shorthand is not None:
        yield from _indented(["", "Equivalent job file:"])
        yield from _indented(shorthand.to_yaml().splitlines(), 2)


def _nothing_lines(path: str, reasons: Mapping[str, int]) -> Iterator[str]:
    """Say that there are no quarantined rows of these reasons, or none at all."""
    named = f" for {' or '.join(reasons)}" if reasons else ""
    shown = _display_path(path)
    yield _HeadedLine("Nothing to read again: ", f"no row of `{shown}` is in quarantine{named}")


def _norm_lines(manifest: Manifest) -> Iterator[str]:
    from batchnorm_tool.report import text_run

    yield from _indented(text_run.bad_row_lines(manifest))
    yield from _indented(["", *text_run.norm_lines(manifest, _WIDTH), ""])


def _description_lines(shown: show.Description, html: str | None) -> Iterator[str]:
    lines: dict[str, Callable[[Any], Iterator[str]]] = {
        "run": _finished_lines,
        "unfinished run": _unfinished_lines,
        "model": _model_lines,
        "data": _data_lines,
        "store": _store_lines,
        "model cache": _cache_lines,
    }
    yield from lines[shown.kind](shown.details)
    if html is not None:
        yield from _table([("page", html)])


def _finished_lines(manifest: Manifest) -> Iterator[str]:
    from batchnorm_tool.report import text_run

    yield _HeadedLine("A finished run. ", text_run.rows_line(manifest.rows))
    yield from _norm_lines(manifest)
    names = ("space", "bits", "result", *(["contract"] if manifest.contract else []))
    yield from _table((name, getattr(manifest, name)) for name in names)


def _unfinished_lines(run: show.UnfinishedRun) -> Iterator[str]:
    state = "stopped: run the same command to resume"
    if run.running:
        state = "running"
    elif run.parts_refused:
        state = "stopped by bad rows: fix the input, or choose another row policy"
    yield _HeadedLine("An unfinished run, ", state)
    parts, rows = f"{run.parts_done:,} of {run.parts:,}", f"{run.rows_done:,} of {run.rows:,}"
    yield from _table([("parts", parts), ("rows", rows), ("bad rows", run.bad_rows)])


def _model_lines(model: show.ModelDescription) -> Iterator[str]:
    yield _HeadedLine("A model, ", model.format)
    rows = [("sha256", model.sha256), ("content", model.content)]
    for end, fields in (("input", model.inputs), ("output", model.outputs)):
        for field in fields or ():
            sizes = ["any" if size is None else str(size) for size in field.shape]
            shape = " \N{MULTIPLICATION SIGN} ".join(sizes) or "scalar"
            rows.append((end, f"{field.name}: {shape} {field.dtype}"))
    rows += [(found.severity, f"{found.what} ({found.where})") for found in model.findings]
    yield from _table(rows)


def _cache_lines(cache: show.CacheDescription) -> Iterator[str]:
    yield _HeadedLine("The model cache, ", plural(len(cache.models), "model"))
    for each in cache.models:
        told = [each.kind, size(each.bytes), f"last used {each.last_used}", each.cause or ""]
        if each.largest_difference is not None:
            told[-1] = f"difference {each.largest_difference:.2g} of a row's length at most"
        yield from _table([(each.model, ", ".join(told))])


def _data_lines(data: show.DataDescription) -> Iterator[str]:
    yield _HeadedLine("Data, ", f"{data.format}, {plural(data.rows, 'row')}")
    found = {"likely_key": data.likely_key, "likely_features": [*data.likely_features]}
    told = {name: value or "none found" for name, value in found.items()}
    yield from _fact_lines({"files": data.files, "bytes": data.bytes, **told})
    yield f"{_INDENT}columns, over the first {plural(data.rows_sampled, 'row')}:"
    yield from _indented(_table(map(_column, data.columns)))


def _column(column: show.ColumnDescription) -> tuple[str, str]:
    ends = "" if column.min is None else f", {column.min} to {column.max}"
    nulls = f", {plural(column.nulls, 'null')}" if column.nulls else ""
    if column.nulls is None:
        nulls = ", values too large to inspect"
    return column.name, f"{column.type}{ends}{nulls}"


def _store_lines(store: show.StoreDescription) -> Iterator[str]:
    live = "no live version yet" if store.version is None else f"version {store.version}"
    yield _HeadedLine("A store, ", f"{live}, {plural(store.rows, 'row')}")
    yield from _table(_store_facts(store))


def _store_facts(store: show.StoreDescription) -> Iterator[tuple[str, object]]:
    hold, waiting = store.hold, store.waiting
    if store.version is not None:
        yield "stale rows", store.stale
        yield "quarantined", store.quarantined
        yield "vectors", f"{store.width} x {store.dtype}, {store.norm}"
        yield "published", store.published
        yield "space", store.space
        if store.contract is not None:
            yield "contract", store.contract
    if store.gate is not None:
        yield "gate", "passed" if store.gate.passed else "broken"
    yield "waiting", f"version {waiting.version} ({waiting.reason})" if waiting else "none"
    yield "hold", f"since {hold.since}, {hold.reason}" if hold else "none"
    yield "kept versions", [*store.versions]


def _compared_lines(
    document: ComparisonDocument | DifferenceDocument, directory: str | None
) -> Iterator[str]:
    from batchnorm_tool.report.text_compare import comparison_lines, difference_lines

    if document["kind"] == "comparison":
        yield from comparison_lines(document, _WIDTH)
    else:
        yield from difference_lines(document, _WIDTH)
    if directory is not None:
        yield ""
        yield from _table([("report", f"{_display_path(directory)}/{document['kind']}.html")])


def _refresh_lines(result: RefreshResult) -> Iterator[str]:
    from batchnorm_tool.report import text_refresh

    store, record = _display_path(result.path), result.stored
    if result.state == "nothing to do":
        rows = record.rows
        yield f"Up to date: version {record.version} of `{store}` matches the input."
        yield f"{_INDENT}{plural(rows.rows_in, 'row')} in, {rows.live:,} live"
        yield from _indented(text_refresh.target_lines(record.targets, _WIDTH))
        return
    yield from text_refresh.refresh_lines(record, _WIDTH, store)


def _released_lines(released: Released) -> Iterator[str]:
    store = _display_path(released.store)
    if not released.released:
        yield f"`{store}` was not on hold: version {released.live} is live."
        return
    yield f"Released `{store}`: the next refresh publishes again."
    if released.waiting is not None:
        yield f"{_INDENT}version {released.waiting} is waiting: `accept` publishes it, and so does"
        yield f"{_INDENT}the next refresh with the same input where it passes the gate"


def _display_path(path: str) -> str:
    """Return a path as a person in the current directory would write it."""
    beside = os.path.relpath(path)
    return path if beside.startswith(os.pardir) else beside


def _fact_lines(facts: Mapping[str, object]) -> Iterator[str]:
    """Yield facts whose names are our own, such as ``part_rows``, with these in words."""
    yield from _table((name.replace("_", " "), value) for name, value in facts.items())


def _table(facts: Iterable[tuple[str, object]]) -> Iterator[str]:
    """Yield names and values below one another."""
    yield from _indented(table([(name, described(value)) for name, value in facts], "ll"))


def _indented(lines: Iterable[str], times: int = 1) -> Iterator[str]:
    """Yield lines further to the right, empty ones left empty."""
    yield from (_INDENT * times + line if line else "" for line in lines)
