"""What a case came to: a value beside its target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Target:
    """A limit that a value is held to, the limit itself included.

    Example:
        >>> str(Target("at least", 12))
        'at least 12 times'
    """

    kind: Literal["at least", "at most"]
    limit: float
    unit: str = "times"

    def is_met(self, value: float) -> bool:
        """Whether a value keeps the limit; NaN does not."""
        return value >= self.limit if self.kind == "at least" else value <= self.limit

    def __str__(self) -> str:
        return f"{self.kind} {self.limit:g} {self.unit}".strip()


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        row: Number of the target in the issue, or the case's name.
        work: What was done.
        ours: What the tool took.
        other: What it is held against.
        value: The ratio, or whatever the target limits; ``None`` where it could not be measured,
            and ``other`` says why.
        target: The limit.
    """

    row: str
    work: str
    ours: str
    other: str
    value: float | None
    target: Target

    @property
    def verdict(self) -> str:
        """``met``, ``missed`` or ``not measured``."""
        if self.value is None or math.isnan(self.value):
            return "not measured"
        return "met" if self.target.is_met(self.value) else "missed"

    @property
    def shown_value(self) -> str:
        """The value with its unit."""
        return NOTHING if self.value is None else f"{figure(self.value)} {self.target.unit}".strip()


def figure(value: float) -> str:
    """A measured number with three digits, or four from 1 to 2, where limits such as 1.05 lie.

    Example:
        >>> figure(13.37), figure(1.0512), figure(1234.5), figure(0.0)
        ('13.4', '1.051', '1,234', '0')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = 4 if 1 <= abs(value) < 2 else 3
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def seconds(value: float) -> str:
    """A duration, as the table shows it."""
    return f"{figure(value)} s"


def megabytes(value: float) -> str:
    """A size, as the table shows it."""
    return f"{figure(value / 1e6)} MB"
