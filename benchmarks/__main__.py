"""``python -m benchmarks``: measure, compare, print and save the table."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from subprocess import CalledProcessError

import click

from benchmarks import surroundings
from benchmarks.agreement import Disagreement
from benchmarks.bench import Bench
from benchmarks.cases import CASES
from benchmarks.measure import ContenderFailed
from benchmarks.places import RESULTS, ROOT, WORK
from benchmarks.report import Report
from benchmarks.sizes import SIZES


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--size", type=click.Choice(list(SIZES)), default="quick", show_default=True)
@click.option("--only", "names", multiple=True, type=click.Choice(list(CASES)), help="Repeatable.")
@click.option("--repetitions", type=click.IntRange(min=1), help="Default: the size's.")
@click.option("--out", type=click.Path(path_type=Path), help="Directory for table, data and plot.")
def main(size: str, names: tuple[str, ...], repetitions: int | None, out: Path | None) -> None:
    """Measure the tool against others and against its limits.

    A target that is missed is shown, and no error; a case that could not be measured is one.
    """
    directory = out or WORK / "results"
    chosen = SIZES[size] if repetitions is None else replace(SIZES[size], repetitions=repetitions)
    bench = Bench(chosen, surroundings.cores())
    asked = command(size, names, repetitions)
    report = Report(asked, records=bench.records, curves=bench.curves)
    for name in names or CASES:
        work_through(name, bench, report)
        report.save(directory, size)  # what is measured stays, also if the next one is interrupted
    if size == "full" and not names and not report.failures:
        report.save(RESULTS, size)
        report.show_in(ROOT / "docs" / "speed.md")
    click.echo(report.to_markdown())
    click.echo(f"Saved in {directory}.", err=True)
    sys.exit(1 if report.failures else 0)


def work_through(name: str, bench: Bench, report: Report) -> None:
    """Measure one case; if it cannot be measured, note why and let the others go on."""
    try:
        report.findings += CASES[name](bench)
    except (CalledProcessError, ContenderFailed, Disagreement, KeyError) as error:
        report.failures[name] = str(error)
        click.echo(f"{name:>8}  failed: {error}", err=True)


def command(size: str, names: tuple[str, ...], repetitions: int | None) -> str:
    """The command that makes the same table."""
    if not names and repetitions is None:
        return f"make bench SIZE={size}"
    more = [f"--only {name}" for name in names]
    if repetitions is not None:
        more.append(f"--repetitions {repetitions}")
    return " ".join([f"python -m benchmarks --size {size}", *more])


if __name__ == "__main__":
    main()
