"""Statistics as JSON data: numbers that JSON does not know, and records that are damaged."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from batchnorm_tool.errors import Damaged


def finite_or_none(value: float) -> float | None:
    """Return a number for JSON, which knows neither inf nor NaN."""
    return value if math.isfinite(value) else None


def float_or_none(value: Any) -> float | None:
    """Return a number of JSON that may be missing."""
    return None if value is None else float(value)


def float_or_inf(value: Any) -> float:
    """Return a number of JSON that is None where it was inf."""
    return math.inf if value is None else float(value)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Say of data that is not what `to_dict` gives that it is damaged.

    Raises:
        Damaged: The body failed on the data.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = (
            f"The stored {what} cannot be read. Expected: what this version writes. Received: "
            f"{type(error).__name__}: {error}. Run the job again with --fresh."
        )
        raise Damaged(message) from error
