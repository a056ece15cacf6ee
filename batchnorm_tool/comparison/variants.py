"""Ways to normalize that are compared: a norm or a power of it, and options such as truncation.

A norm divides rows, and scales the products of queries and rows: one matrix product serves them
all. Rows that are truncated, projected or quantized are other vectors, with products of their own,
and the base is read again for each kind of them. Queries become what rows become.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, get_args

import numpy as np

from batchnorm_tool.comparison.neighbours import Base, Int64s, Queries, nearest
from batchnorm_tool.comparison.scores import Metric, Score
from batchnorm_tool.display import did_you_mean
from batchnorm_tool.environment import map_in_order
from batchnorm_tool.errors import InputError, JobError
from batchnorm_tool.norms.norm import L2, Anything, Float64s, Norm
from batchnorm_tool.norms.normalization import DirectionSum, Normalization, Quantized, int8_scale

_NONE = Norm("none")
_DTYPES: tuple[Quantized, ...] = get_args(Quantized)
_OPTIONS = ("mean", *_DTYPES)
_NAME = re.compile(r"((?:lp|power):[^:+]*|[^:+]*)(?::([^:+]*))?((?:\+[^+]*)*)")
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Variant:
    """A way to normalize that is compared: ``l2``, ``l2:256+mean+int8``, ``power:0.5``.

    It is called ``label``, and ``plain`` without options. The norm is taken to the ``power``. Until
    `fit`, ``how`` lacks its mean, if it ``projects``, and its scale.
    """

    label: str
    plain: str
    how: Normalization
    projects: bool
    power: float

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Make one of ``NORM[:D][+mean][+int8|+binary]``, with ``power:A`` as a norm, too."""
        if not (found := _NAME.fullmatch(str(text).lower().replace(" ", ""))):
            raise _refused(text, "`NORM:D`, with one number D of components to keep", text)
        name, kept, options = found[1], found[2], sorted(found[3].split("+")[1:])
        is_power = name.startswith("power")
        _check_options(text, options, is_power)
        power = _power(text, name) if is_power else 1.0
        how = Normalization(
            L2 if is_power else Norm.parse(name),
            None if kept is None else _components(text, kept),
            dtype=next((each for each in _DTYPES if each in options), None),
        )
        plain = f"power:{repr(power).removesuffix('.0')}" if is_power else how.norm.label
        ordered = [option for option in _OPTIONS if option in options]
        label = "+".join([plain if kept is None else f"{plain}:{how.truncate}", *ordered])
        return cls(label, plain, how, "mean" in options, power)


def _power(text: str, name: str) -> float:
    number = name.removeprefix("power").removeprefix(":")
    try:
        power = float(number)
    except ValueError:
        power = math.nan
    if not 0 < power <= 1:
        raise _refused(text, "`power:A`, an exponent A above 0 and at most 1", number)
    return power


def _components(text: str, number: str) -> int:
    if not (number.isdecimal() and int(number)):
        raise _refused(text, "an integer of 1 or more, the number of components to keep", number)
    return int(number)


def _check_options(text: str, options: Sequence[str], is_power: bool) -> None:  # noqa: FBT001
    for option in options:
        if option not in _OPTIONS:
            hint = did_you_mean(option, _OPTIONS)
            raise _refused(text, f"one of {', '.join(_OPTIONS)} after `+`", option, hint)
    dtypes = len(options) - options.count("mean")
    if options.count("mean") > 1 or dtypes + is_power > 1:
        raise _refused(text, "`mean` once, and int8 or binary with a norm, not a power", text)


def _refused(text: str, expected: str, received: str, hint: str = "") -> JobError:
    words = f"Expected: {expected}. Received: '{received}'.{hint}"
    return JobError(f"`norms` cannot be compared by '{text}'. {words}")


def variants_of(names: Sequence[str], width: int, source: str) -> tuple[Variant, ...]:
    """Make different variants of what a person wrote, for vectors of that width in a source."""
    found = {Variant.parse(name): name for name in names}
    if not found or len(found) != len(names):
        received = ", ".join(map(str, names)) or "no names"
        raise JobError(f"`norms` must name different norms. Received: {received}.")
    for variant, name in found.items():
        if (kept := variant.how.truncate or 0) > width:
            raise _refused(name, f"at most {width} components, as {source} has", str(kept))
    return tuple(found)


def fit(base: Base, variants: Sequence[Variant]) -> list[Variant]:
    """Fit means, and then steps of int8, over the finite rows of a base: a pass for each of both.

    Raises:
        InputError: The directions of all rows cancel out, so that there is no mean.
    """
    kept = {Normalization(_NONE, each.how.truncate) for each in variants if each.projects}
    sums = _over_rows(base, kept, lambda _, rows: DirectionSum.of(rows), operator.add)
    means = {how.truncate: _mean(total) for how, total in sums.items()}
    hows = [
        replace(each.how, mean=means[each.how.truncate]) if each.projects else each.how
        for each in variants
    ]
    in_steps = {how for how in hows if how.dtype == "int8"}
    largest = _over_rows(base, in_steps, Normalization.largest, max)
    scales = {how: int8_scale(size) for how, size in largest.items()}
    fitted = [replace(how, scale=scales.get(how)) for how in hows]
    return [replace(each, how=how) for each, how in zip(variants, fitted, strict=True)]


def _mean(total: DirectionSum) -> tuple[float, ...]:
    if (mean := total.mean()) is None:
        raise InputError(
            "`norms`: there is no mean direction to project off. Expected: rows whose directions "
            "do not cancel out. Received: rows that add up to zero. Omit `+mean`."
        )
    return mean


def _over_rows(
    base: Base,
    hows: Collection[Normalization],
    measure: Callable[[Normalization, Float64s], _Found],
    merge: Callable[[_Found, _Found], _Found],
) -> dict[Normalization, _Found]:
    """Measure what is kept of all finite rows; where nothing is asked, the base is not read."""

    def measured(rows: Anything) -> dict[Normalization, _Found]:
        finite = rows[np.isfinite(rows).all(axis=1)]
        return {how: measure(how, how.kept(finite)) for how in hows}

    found = map_in_order(measured, base.blocks() if hows else ())
    total = next(found, {})
    for more in found:
        total = {how: merge(total[how], more[how]) for how in hows}
    return total


@dataclass(frozen=True)
class _Stored:
    """A base whose rows are kept, and quantized, as a variant says, but divided by no norm.

    Rows with NaN or inf, also in components that are not kept, have NaN.
    """

    base: Base
    how: Normalization

    @property
    def rows(self) -> int:
        return self.base.rows

    def blocks(self) -> Iterator[Anything]:
        return map(self.of, self.base.blocks())

    def sample(self, rows: int) -> Anything:
        return self.of(self.base.sample(rows))

    def of(self, vectors: Anything) -> Anything:
        """Return what is stored of vectors ``[n, d]``: int8 and bits as -127 to 127, and as ±1."""
        if self.how.dtype:
            # In steps: integers have exact products, so that equally near rows are known as such.
            steps, width = replace(self.how, scale=1.0), self.how.kept_width(vectors.shape[1])
            found = steps.decode(self.how.apply(vectors)[0], width)
        else:
            found = self.how.kept(vectors)
        found[~np.isfinite(vectors).all(axis=1)] = np.nan
        return found


def by_plain_norm(variants: Sequence[Variant]) -> dict[str, list[str]]:
    """Return labels of variants with options by that of the norm without, where it is compared."""
    labels = {each.label for each in variants}
    found: dict[str, list[str]] = {}
    for each in variants:
        if each.plain != each.label and each.plain in labels:
            found.setdefault(each.plain, []).append(each.label)
    return found


def variant_neighbours(
    queries: Queries, base: Base, fitted: Sequence[Variant], metric: Metric, k: int
) -> dict[str, Int64s]:
    """Find what `nearest` does, by the label of each variant, which `fit` returned."""
    kinds: dict[Normalization, dict[str, Score]] = {}
    for each in fitted:
        kind = each.how if each.how.dtype else replace(each.how, norm=_NONE)
        norm = _NONE if each.how.dtype else each.how.norm
        kinds.setdefault(kind, {})[each.label] = Score.of(metric, norm, each.power)
    found: dict[str, Int64s] = {}
    for kind, scores in kinds.items():
        if kind == Normalization(_NONE):
            found |= nearest(queries, base, scores, k)
        else:
            stored = _Stored(base, kind)
            asked = Queries.of(stored.of(queries.vectors), queries.rows)
            found |= nearest(asked, stored, scores, k)
    return {each.label: found[each.label] for each in fitted}
