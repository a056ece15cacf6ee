"""One sitting: contenders in turn, every measurement kept."""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import ContenderFailed, Measurement, measure
from benchmarks.places import WORK
from benchmarks.sizes import Size

# What takes longer than this is measured once, however many repetitions are asked for.
_SLOW_SECONDS = 60.0


@dataclass(frozen=True)
class Contender:
    """Something to measure: a command, and the directory that it writes, if it writes one."""

    command: Sequence[str | Path]
    output: Path | None = None


@dataclass
class Runs:
    """The measurements of one contender in one case; figures are medians."""

    measurements: list[Measurement] = field(default_factory=list)

    def median(self, name: str) -> float:
        """The median of an attribute of the measurements, such as ``body_seconds``."""
        return statistics.median(getattr(one, name) for one in self.measurements)

    @property
    def seconds(self) -> float:
        """Whole process, wall time."""
        return self.median("seconds")

    @property
    def body_seconds(self) -> float:
        """The work itself, wall time."""
        return self.median("body_seconds")

    @property
    def body_cpu_seconds(self) -> float:
        """The work itself, CPU time."""
        return self.median("body_cpu_seconds")

    @property
    def peak_rss_bytes(self) -> float:
        """Largest resident set of the process itself."""
        return self.median("peak_rss_bytes")

    @property
    def said(self) -> Mapping[str, Any]:
        """What the last of them said."""
        return self.measurements[-1].said


@dataclass(frozen=True)
class Record:
    """One measurement, as it is saved."""

    case: str
    contender: str
    measurement: Measurement

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {"case": self.case, "contender": self.contender, **asdict(self.measurement)}


@dataclass
class Bench:
    """A sitting.

    Attributes:
        size: How much is measured.
        cores: Cores that every contender may use.
        records: Every measurement so far.
        curves: Points for plots, by name, as cases find them.
    """

    size: Size
    cores: int
    records: list[Record] = field(default_factory=list)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def output(self, case: str, contender: str) -> Path:
        """A directory for what a contender writes, which is not there yet."""
        return WORK / "out" / self.size.name / case / contender

    def run(
        self, case: str, contenders: Mapping[str, Contender], repetitions: int | None = None
    ) -> dict[str, Runs]:
        """Measure contenders in turn, A B C A B C, so that a slow minute hits all of them.

        Args:
            case: The case that asks.
            contenders: By the name that the table shows.
            repetitions: Measurements of each; default: the size's. Slow ones are measured once.

        Returns:
            The measurements by name; what the contenders wrote last is still there.

        Raises:
            ContenderFailed: One of them ended with an error.
        """
        runs = {name: Runs() for name in contenders}
        for _ in range(repetitions or self.size.repetitions):
            for name, contender in contenders.items():
                done = runs[name].measurements
                if done and done[0].seconds > _SLOW_SECONDS:
                    continue
                if contender.output is not None:
                    shutil.rmtree(contender.output, ignore_errors=True)
                done.append(_measured(name, contender))
                self.records.append(Record(case, name, done[-1]))
                _say(case, name, done[-1])
        return runs

    def clear(self, case: str) -> None:
        """Remove what the contenders of a case wrote."""
        shutil.rmtree(WORK / "out" / self.size.name / case, ignore_errors=True)


def _measured(name: str, contender: Contender) -> Measurement:
    try:
        return measure(contender.command)
    except ContenderFailed as error:
        msg = f"{name} {error}"
        raise ContenderFailed(msg) from error


def _say(case: str, name: str, taken: Measurement) -> None:
    body = f"{taken.body_seconds:8.2f} s body, " if "body_seconds" in taken.said else ""
    sys.stderr.write(
        f"{case:>8}  {name:<28} {body}{taken.seconds:8.2f} s whole, "
        f"{taken.cpu_seconds:8.2f} s CPU, {taken.peak_bytes / 1e6:8,.0f} MB\n"
    )
    sys.stderr.flush()
