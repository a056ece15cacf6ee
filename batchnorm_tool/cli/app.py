"""The command line: parses, calls one function, prints; turns errors into words and exit codes.

Whatever is imported here is paid for by every ``--help``, so that each command imports what it
runs. What signals do is in `signals`.
"""

from __future__ import annotations

import contextlib
import io
import secrets
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchnorm_tool import errors
from batchnorm_tool._version import __version__
from batchnorm_tool.cli import flags
from batchnorm_tool.cli.output import Terminal
from batchnorm_tool.cli.signals import StopSignals
from batchnorm_tool.display import printable
from batchnorm_tool.environment import quiet_libraries
from batchnorm_tool.errors import BatchnormToolError, Interrupted
from batchnorm_tool.registry import BAKE_FORMATS, TARGETS

if TYPE_CHECKING:
    from batchnorm_tool.commands.compare.compare import Comparison
    from batchnorm_tool.commands.compare.diff import Difference
    from batchnorm_tool.job import Job


_EPILOG = (
    "Exit codes: 0 done; 1 failed, run again to resume; 2 refused, cannot be done as asked; 3 "
    "waiting for approval; 4 bad rows, or damaged files; 5 busy; 130 and 143 interrupted, run "
    "again to resume."
)
_KEPT = "Finished work is kept: run the same command again to resume."
# What click knows how to end by itself.
_CLICKS_OWN = (SystemExit, click.ClickException, click.exceptions.Exit)


class _Terminated(Interrupted):
    """SIGTERM."""

    exit_code = 143


class _ExitCodes:
    """What surrounds every command: signals turn into errors, errors into words and exit codes."""

    def __init__(self, terminal: Terminal, *, keeps: bool, debug: bool) -> None:
        self._terminal, self._keeps, self._debug = terminal, keeps, debug
        self._signals = StopSignals()
        self._warnings = errors.capture_warnings(terminal.warn)

    def __enter__(self) -> None:
        self._warnings.__enter__()
        self._signals.begin()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._signals.end()
        self._warnings.__exit__(None, None, None)
        if self._signals.received is None and (error is None or isinstance(error, _CLICKS_OWN)):
            return
        if self._debug and error is not None:
            self._terminal.print_traceback(traceback.format_exception(error))
        ours = self._as_ours(error)
        name = type(ours).__name__.lstrip("_")
        held: Any = ours.result if isinstance(ours, errors.Held | errors.TargetFailed) else None
        self._terminal.print_error(name, ours.message, ours.exit_code, held)
        sys.exit(ours.exit_code)

    def _as_ours(self, error: BaseException | None) -> BatchnormToolError:
        """Say what the error means, whichever library it passed through on its way here."""
        if self._signals.received is not None:
            kind = _Terminated if self._signals.received == signal.SIGTERM else Interrupted
        elif isinstance(error, KeyboardInterrupt | Interrupted):
            kind = Interrupted
        elif isinstance(error, BatchnormToolError):
            return error
        else:
            return errors.explained(error or RuntimeError())
        outcome = _KEPT if self._keeps else "Nothing was written."
        return kind(f"{kind.__name__.lstrip('_')}. {outcome}")


class _Command(click.Command):
    """A command with the flags that all have; its function gets the terminal that they describe.

    It ``keeps`` finished work where it is stopped; as an attempt, its messages bear an id.
    """

    def __init__(
        self, *args: Any, keeps: bool = True, is_attempt: bool = False, **settings: Any
    ) -> None:
        settings |= {"params": [*settings["params"], *flags.COMMON], "epilog": _EPILOG}
        super().__init__(*args, **settings)
        self._keeps, self._is_attempt = keeps, is_attempt

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        names = ("debug", "quiet", "as_json", "log_format")
        debug, quiet, as_json, log_format = (ctx.params.pop(name) for name in names)
        run_id = secrets.token_hex(8) if self._is_attempt else None
        json_logs = log_format == "json"
        terminal = Terminal(as_json=as_json, quiet=quiet, json_logs=json_logs, run_id=run_id)
        ctx.params["terminal"] = terminal
        with _ExitCodes(terminal, keeps=self._keeps, debug=debug):
            if "wait" in ctx.params:
                ctx.params["wait_seconds"] = flags.seconds_of(ctx.params.pop("wait"))
            if "progress" in ctx.params:
                ctx.params["progress"] = terminal.progress(ctx.params["progress"])
            return super().invoke(ctx)


class _Group(click.Group):
    """Commands that report a wrong flag, too, as one JSON document where JSON is asked for."""

    command_class = _Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note whether JSON is asked for, before anything can be wrong."""
        ctx.meta["as_json"] = "--json" in args
        with _usage_errors(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click itself says on standard error what is wrong with its flags."""
        with _usage_errors(ctx):
            return super().invoke(ctx)


@contextlib.contextmanager
def _usage_errors(ctx: click.Context) -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        error.message = printable(error.message)  # type: ignore[misc]
        if ctx.meta["as_json"]:
            terminal = Terminal(as_json=True)
            terminal.print_error_document("UsageError", error.format_message(), error.exit_code)
        raise


@click.group(cls=_Group, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="batchnorm-tool")
def cli() -> None:
    """Turn large tables into normalized vectors with a trained Keras model.

    It normalizes rows, one vector for each row; it has nothing to do with the BatchNormalization
    layer.
    """


@cli.command("run")
@click.argument("arguments", nargs=-1, required=True, metavar="JOB.yaml | MODEL IN OUT")
@flags.of_job(*flags.JOB_FLAGS, *flags.MODEL_FLAGS)
@flags.running
def run_command(terminal: Terminal, arguments: tuple[str, ...], **options: Any) -> None:
    """Score a table with a model and write normalized vectors, norms and statistics.

    JOB.yaml is a job file (`batchnorm-tool schema` describes it). Without one, name the model, the
    input and the output directory.
    """
    _work(terminal, _job_of_run(arguments, options), options, shorthand=len(arguments) > 1)


@cli.command("normalize")
@click.argument("source", metavar="IN")
@click.argument("output", metavar="OUT")
@flags.of_job(flags.COLUMN_FLAG, *flags.JOB_FLAGS)
@flags.running
def normalize_command(terminal: Terminal, source: str, output: str, **options: Any) -> None:
    """Normalize predictions that are already stored, without a model."""
    data = {"input": {"path": source}, "output": {"path": output}}
    _work(terminal, _job_of_paths(data, options), options, shorthand=True)


@cli.command("compare", keeps=False)
@click.argument("source", metavar="IN")
@click.option(
    "--norms",
    callback=flags.parse_names,
    metavar="NORM,...",
    help=f"Of {flags.NORM_LIST}, lp:3, power:0.5; with options l2:256, l2+mean, l2+int8.",
)
@click.option("--metric", default="dot", show_default=True, help="dot, euclidean or cosine.")
@click.option("--label", help="Column of classes: rows of the same class are relevant.")
@click.option("--queries", metavar="FILE", help="Query vectors; default: rows of IN.")
@click.option("--relevance", metavar="FILE", help="Judgements: Parquet, CSV or TREC qrels.")
@click.option(
    "--relevance-columns",
    callback=flags.parse_names,
    metavar="QUERY,ITEM[,GRADE]",
    help="Columns in it.",
)
@click.option("--by", metavar="COLUMN", help="Figures for each value, or decile, of a column.")
@flags.comparing
def compare_command(terminal: Terminal, source: str, **options: Any) -> None:
    """Find the best normalization for stored predictions, and how sure that is.

    IN is a Parquet, Arrow or NPY file, a directory of them, or a finished run, whose raw
    predictions are restored. Rows are queries for their nearest neighbours under every norm;
    --label or --relevance says which are relevant.
    """
    from batchnorm_tool.commands.compare.compare import compare

    names = ("label", "queries", "relevance", "relevance_columns", "by", "metric")
    settings = {name: options[name] for name in names} | _given(options, "norms")
    _report(terminal, options, partial(compare, source, **settings))


@cli.command("diff", keeps=False)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@flags.comparing
def diff_command(terminal: Terminal, a: str, b: str, **options: Any) -> None:
    """Report what changed between two sets of predictions: two models, two dates.

    A and B are files, directories or finished runs, as for compare; their rows are joined by key.
    """
    from batchnorm_tool.commands.compare.diff import diff

    _report(terminal, options, partial(diff, a, b))


@cli.command("bake", keeps=False)
@click.argument("model", metavar="MODEL")
@click.argument("out", metavar="OUT")
@click.option("--fresh", is_flag=True, help="Replace what is at OUT.")
@click.option("--check", is_flag=True, help="Only compare MODEL with its copy at OUT.")
@click.option("--rows", metavar="IN", help="Compare on rows of this input; default: made up.")
@click.option("--like", metavar="RUN|STORE", help="Normalize as its vectors are.")
@click.option("--to", callback=flags.parse_names, help=f"Formats: {', '.join(BAKE_FORMATS)}.")
@click.option("--keep-norm", is_flag=True, help="Also give the norms, as <output>_norm.")
@click.option("--outputs", callback=flags.parse_names, help="Outputs to normalize, as a,b.")
@click.option("--layer", help="Use the output of this inner layer.")
@click.option("--axis", type=click.Choice(["-1", "all"]), help="Each vector, or a row's output.")
@click.option("--p", type=float, help="The p of --norm lp.")
@click.option("--norm", help=f"{flags.NORM_LIST}, or lp with --p.  [default: l2]")
def bake_command(terminal: Terminal, model: str, out: str, **options: Any) -> None:
    """Write a copy of a model that normalizes its outputs itself.

    The copy is of plain operations: it loads where this package is not installed, which is tried,
    and compared with the norm after prediction. OUT is a file, or a directory for a SavedModel,
    for OpenVINO and for several formats; OUT.parity.json holds the comparison.
    """
    from batchnorm_tool.commands.bake.bake import bake

    given = {name: value for name, value in options.items() if value is not None}
    terminal.print_baked(bake(model, out, **given))


def _report(
    terminal: Terminal, options: dict[str, Any], make: Callable[..., Comparison | Difference]
) -> None:
    """Compare, write the report where one is asked for, and print it."""
    from batchnorm_tool.storage.files import check_directory

    directory = options["output"]
    if directory is not None:
        check_directory(directory)
    named = {name: options[name] or None for name in ("column", "key")}
    named |= {name: options[name] for name in ("seed", "mixed_spaces")}
    report = make(**named, **_given(options, "k", "sample"))
    if directory is not None:
        report.save(directory)
    terminal.print_comparison(report.to_dict(), directory)


def _given(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return those flags that were given; ``all`` stands for no limit."""
    values = {name: options[name] for name in names if options[name] is not None}
    return {name: None if value == "all" else value for name, value in values.items()}


@cli.command("refresh", is_attempt=True)
@click.argument("job_file", metavar="JOB.yaml")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a job key.")
@click.option(
    "--retry-quarantined", is_flag=True, help="Predict rows again that are bad by their prediction."
)
@click.option("--dry-run", is_flag=True, help="Report what would change, and exit.")
@click.option("--print-config", is_flag=True, help="Print the resolved job, and exit.")
@flags.waiting
def refresh_command(terminal: Terminal, job_file: str, **options: Any) -> None:
    """Bring a store of vectors up to date with its input.

    Only new and changed rows go through the model. A refresh that breaks a limit of the gate
    publishes nothing and waits (exit 3) for `accept`; readers of the store see the previous version
    or the new one, never half of it.
    """
    from batchnorm_tool.job import Job

    job = Job.load(job_file, options["overrides"])
    if options["print_config"]:
        terminal.print_config(job)
    elif options["dry_run"]:
        from batchnorm_tool.commands.refresh.refresh import planned_refresh

        retry = options["retry_quarantined"]
        terminal.print_refresh_plan(planned_refresh(job, retry_quarantined=retry))
    else:
        from batchnorm_tool.commands.refresh.refresh import refresh

        result = refresh(
            job,
            retry_quarantined=options["retry_quarantined"],
            wait_seconds=options["wait_seconds"],
            metrics_file=options["metrics_file"],
            progress=options["progress"],
            announce=terminal.announce,
            run_id=terminal.run_id,
        )
        terminal.print_refresh(result)


_TARGETS = (
    f"Each published version also goes to each target under `publish`: {flags.any_of(TARGETS)}."
)
refresh_command.help = f"{refresh_command.help}\n    {_TARGETS}"


@cli.command("accept", is_attempt=True)
@click.argument("store", metavar="STORE")
@click.argument("version", metavar="VERSION", type=int)
@click.option("--note", metavar="TEXT", help="Why; kept in the version's record.")
@flags.waiting
def accept_command(terminal: Terminal, store: str, version: int, **options: Any) -> None:
    """Publish the candidate that is waiting, without recomputing it.

    VERSION is its number; a candidate that a later refresh has superseded cannot be published.
    """
    from batchnorm_tool.commands.refresh.decisions import accept

    terminal.print_refresh(accept(store, version, **options))


@cli.command("rollback", is_attempt=True)
@click.argument("store", metavar="STORE")
@click.option("--to", type=int, metavar="VERSION", help="Default: the previous version.")
@flags.waiting
def rollback_command(terminal: Terminal, store: str, to: int | None, **options: Any) -> None:
    """Make an older version live again, and put the store on hold.

    Every publish target is rolled back as well. Until `release` or `accept`, later refreshes are
    staged and checked, but not published.
    """
    from batchnorm_tool.commands.refresh.decisions import rollback

    asked = {name: options[name] for name in ("wait_seconds", "metrics_file")}
    terminal.print_refresh(rollback(store, to, **asked))


@cli.command("release", is_attempt=True)
@click.argument("store", metavar="STORE")
@flags.WAIT
def release_command(terminal: Terminal, store: str, wait_seconds: float) -> None:
    """End the hold after a rollback: the next refresh publishes again."""
    from batchnorm_tool.commands.refresh.decisions import end_hold

    terminal.print_release(end_hold(store, wait_seconds=wait_seconds))


@cli.command("history", keeps=False)
@click.argument("store", metavar="STORE")
@click.option("--html", metavar="FILE", help="Write an HTML page with the versions over time.")
def history_command(terminal: Terminal, store: str, html: str | None) -> None:
    """List the versions of a store: rows, norms, and what the gate found."""
    from batchnorm_tool.commands.refresh.decisions import read_history

    terminal.print_history(read_history(store, html=html), html)


@cli.command("verify")
@click.argument("path", metavar="PATH")
@click.option("--keys", is_flag=True, help="Also check for null and duplicate keys.")
def verify_command(terminal: Terminal, path: str, *, keys: bool) -> None:
    """Check a finished run or a store: checksums, counts, lengths, finiteness."""
    from batchnorm_tool.commands.verify.verify import verify

    terminal.print_verification(verify(path, keys=keys))


@cli.command("check", keeps=False)
@click.argument("model", metavar="MODEL")
@click.option("--against", required=True, metavar="PATH", help="A run, a store or a contract.json.")
@click.option("--layer", help="Use the output of this inner layer.")
@click.option("--outputs", callback=flags.parse_names, metavar="A,B", help="Outputs to check.")
@click.option("--backend", default="tensorflow", help="tensorflow, onnxruntime or auto.")
def check_command(terminal: Terminal, model: str, against: str, **options: Any) -> None:
    """Check that a model makes the vectors of a run or a store, on the rows of its contract.

    The model's output is taken as it is: where the stored vectors are normalized, a model without
    the norm in it is "not normalized". Exit code 4 where it makes other vectors; what is wrong is
    named.
    """
    from batchnorm_tool.commands.check import check

    report = check(model, against, **options, progress=terminal.progress("auto"))
    terminal.print_check(report)


@cli.command("show")
@click.argument("path", metavar="[PATH]", required=False)
@click.option("--html", metavar="FILE", help="Write an HTML report of a finished run.")
@click.option("--cache", is_flag=True, help="Describe the cache of converted models instead.")
def show_command(terminal: Terminal, path: str | None, html: str | None, *, cache: bool) -> None:
    """Describe a path: a run, a store, data, or a model."""
    from batchnorm_tool.commands.show import show

    shown = show(path, html=html, cache=cache, progress=terminal.progress("auto"))
    terminal.print_description(shown, html)


@cli.command("schema")
def schema_command(terminal: Terminal) -> None:
    """Print the JSON Schema of a job file, for editors."""
    from batchnorm_tool.job import job_schema

    terminal.print_document(job_schema())


def _job_of_run(arguments: Sequence[str], options: dict[str, Any]) -> Job:
    from batchnorm_tool.job import Job

    if len(arguments) == 1:
        return Job.load(arguments[0], flags.overrides(options))
    if len(arguments) != 3:
        raise errors.JobError(
            "`run` takes one job file; or a model, an input and an output directory. "
            f"Received: {len(arguments)} arguments: {', '.join(arguments)}."
        )
    model, source, output = arguments
    data = {"input": {"path": source}, "model": {"path": model}, "output": {"path": output}}
    return _job_of_paths(data, options)


def _job_of_paths(data: dict[str, Any], options: dict[str, Any]) -> Job:
    from batchnorm_tool.job import Job
    from batchnorm_tool.job.loader import set_values

    return Job.from_dict(set_values(data, flags.overrides(options)), Path.cwd())


def _work(terminal: Terminal, job: Job, options: dict[str, Any], *, shorthand: bool) -> None:
    """Do a job, or whatever else the flags ask for instead."""
    if options["print_config"]:
        terminal.print_config(job)
    elif options["dry_run"]:
        from batchnorm_tool.commands.run.run import plan_run, plan_run_again

        if options["retry_quarantined"]:
            asked = {name: options[name] for name in ("reason", "fresh", "limit")}
            terminal.print_retry(plan_run_again(job, **asked))
        else:
            asked = {name: options[name] for name in ("limit", "progress")}
            terminal.print_plan(plan_run(job, **asked))
    else:
        from batchnorm_tool.commands.run.run import run

        names = ("fresh", "limit", "wait_seconds", "check_input", "retry_quarantined", "reason")
        asked = {name: options[name] for name in (*names, "progress")}
        result = run(job, **asked)
        terminal.print_run(result, job if shorthand else None, profile=options["profile"])


def main() -> None:
    """Run the command line in a process of its own."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A histogram, or a path in another encoding, is not worth failing for.
            stream.reconfigure(errors="replace")
    quiet_libraries()
    cli(prog_name="batchnorm-tool")
