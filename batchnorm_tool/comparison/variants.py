"""Ways to normalize that are compared: a norm or a power of it, and options such as truncation.

A norm divides rows, and scales the products of queries and rows: one matrix product serves them
all. Rows that are truncated, projected or quantized are other vectors, with products of their own,
and the base is read again for each kind of them. Queries become what rows become.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TypeVar, cast, get_args

import numpy as np

from batchnorm_tool.comparison.neighbours import Base, Int64s, Queries, nearest
from batchnorm_tool.comparison.scores import Metric, Score
from batchnorm_tool.display import did_you_mean
from batchnorm_tool.environment import map_in_order
from batchnorm_tool.errors import InputError, JobError
from batchnorm_tool.norms.norm import L2, Anything, Norm
from batchnorm_tool.norms.normalization import DirectionSum, Normalization, Quantized, int8_scale

_NONE = Norm("none")
_OPTIONS = ("mean", *get_args(Quantized))
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Variant:
    """A way to normalize that is compared: ``l2``, ``l2:256+mean+int8``, ``power:0.5``.

    ``power`` is the exponent of the L2 norm that rows are divided by, None for a norm itself; the
    other fields are those of `Normalization`, whose mean and scale are still to be fitted.
    """

    norm: Norm
    power: float | None = None
    truncate: int | None = None
    project_mean: bool = False
    dtype: Quantized | None = None

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Make one of ``NORM[:D][+mean][+int8|+binary]``, with ``power:A`` as a norm, too."""
        text = str(text)
        head, *options = (piece.strip() for piece in text.lower().split("+"))
        name, *numbers = (piece.strip() for piece in head.split(":"))
        own = 1 if name in ("lp", "power") else 0  # numbers that belong to the norm itself
        found = _norm(text, name, numbers[:own])
        if len(numbers) > own + 1:
            raise _refused(text, "one number of components to keep", ":".join(numbers[own:]))
        if numbers[own:]:
            found = replace(found, truncate=_components(text, numbers[own]))
        for option in options:
            found = _with_option(found, text, option)
        return found

    @property
    def plain(self) -> Variant:
        """The same without options."""
        return Variant(self.norm, self.power)

    @property
    def label(self) -> str:
        """The name in figures; `parse` reads it back."""
        norm = self.norm.label if self.power is None else f"power:{_text(self.power)}"
        kept = "" if self.truncate is None else f":{self.truncate}"
        options = [*(["mean"] if self.project_mean else []), *([self.dtype] if self.dtype else [])]
        return "+".join([f"{norm}{kept}", *options])

    def score(self, metric: Metric) -> Score:
        """Return what ranks the vectors that `fit` makes of rows."""
        return Score.of(metric, _NONE if self.dtype else self.norm, self.power or 1)


def _norm(text: str, name: str, numbers: Sequence[str]) -> Variant:
    if name != "power":
        return Variant(Norm.parse(":".join([name, *numbers])))
    power = _number(numbers[0]) if numbers else math.nan
    if not 0 < power <= 1:
        expected = "`power:A`, with an exponent A of the L2 norm above 0 and at most 1"
        raise _refused(text, expected, *numbers)
    return Variant(L2, power)


def _components(text: str, number: str) -> int:
    if not (number.isdecimal() and int(number)):
        raise _refused(text, "an integer of 1 or more, the number of components to keep", number)
    return int(number)


def _with_option(variant: Variant, text: str, option: str) -> Variant:
    if option not in _OPTIONS:
        hint = did_you_mean(option, _OPTIONS)
        raise _refused(text, f"one of {', '.join(_OPTIONS)} after `+`", option, hint=hint)
    if variant.project_mean if option == "mean" else variant.dtype:
        raise _refused(text, "`mean` once, and int8 or binary", text)
    if option == "mean":
        return replace(variant, project_mean=True)
    if variant.power:
        raise _refused(text, "int8 or binary with a norm", text)
    return replace(variant, dtype=cast("Quantized", option))


def _text(number: float) -> str:
    return repr(number).removesuffix(".0")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _refused(text: str, expected: str, *received: str, hint: str = "") -> JobError:
    said = f"'{received[0]}'" if received else "no number"
    return JobError(
        f"`norms` cannot be compared by '{text}'. Expected: {expected}. Received: {said}.{hint}"
    )


def variants_of(names: Sequence[str], width: int, name: str) -> tuple[Variant, ...]:
    """Make variants of what a person wrote, for vectors of that width in a file called ``name``."""
    found = tuple(map(Variant.parse, names))
    if not found or len(set(found)) != len(found):
        raise JobError(
            "`norms` must name different norms. "
            f"Received: {', '.join(map(str, names)) or 'no names'}."
        )
    for variant, text in zip(found, names, strict=True):
        if (variant.truncate or 0) > width:
            raise _refused(
                text, f"at most {width} components, as {name} has", str(variant.truncate)
            )
    return found


def fit(base: Base, variants: Sequence[Variant], width: int) -> dict[Variant, Normalization]:
    """Fit means and steps of int8 over the finite rows of a base, which is read for each of both.

    Raises:
        InputError: The directions of all rows cancel out, so that there is no mean.
    """
    means = _means(base, {each.truncate for each in variants if each.project_mean}, width)
    found = {
        each: Normalization(
            each.norm,
            each.truncate,
            means[each.truncate] if each.project_mean else None,
            each.dtype,
        )
        for each in variants
    }
    stepped = [each for each in found.values() if each.dtype == "int8"]
    largest = np.zeros(len(stepped))
    blocks = base.blocks() if stepped else ()
    for sizes in _over_finite_rows(
        blocks, lambda rows: [each.largest(each.kept(rows)) for each in stepped]
    ):
        largest = np.maximum(largest, sizes)
    scales = dict(zip(stepped, map(int8_scale, largest.tolist()), strict=True))
    return {each: replace(how, scale=scales.get(how)) for each, how in found.items()}


def _means(
    base: Base, truncations: AbstractSet[int | None], width: int
) -> dict[int | None, tuple[float, ...]]:
    kept = {at: Normalization(_NONE, at).kept for at in truncations}
    sums = {at: DirectionSum.of(np.empty((0, at or width))) for at in truncations}
    blocks = base.blocks() if kept else ()
    for found in _over_finite_rows(
        blocks, lambda rows: {at: DirectionSum.of(of(rows)) for at, of in kept.items()}
    ):
        sums = {at: total + found[at] for at, total in sums.items()}
    return {at: _mean(total) for at, total in sums.items()}


def _mean(total: DirectionSum) -> tuple[float, ...]:
    if (mean := total.mean()) is None:
        raise InputError(
            "`norms`: there is no mean direction to project off. Expected: rows whose directions "
            "do not cancel out. Received: rows that add up to zero. Omit `+mean`."
        )
    return mean


def _over_finite_rows(
    blocks: Iterable[Anything], function: Callable[[Anything], _Found]
) -> Iterator[_Found]:
    """Yield what a function makes of the finite rows of each block, in order."""
    return map_in_order(lambda rows: function(rows[np.isfinite(rows).all(axis=1)]), blocks)


@dataclass(frozen=True)
class _Stored:
    """A base whose rows are kept, and quantized, as a variant says, but divided by no norm.

    Rows with NaN or inf, also in components that are not kept, have NaN.
    """

    base: Base
    how: Normalization

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.base.rows

    def blocks(self) -> Iterator[Anything]:
        """Yield the rows in order."""
        return map(self.of, self.base.blocks())

    def sample(self, rows: int) -> Anything:
        """Return some rows, spread evenly."""
        return self.of(self.base.sample(rows))

    def of(self, vectors: Anything) -> Anything:
        """Return what is stored of vectors ``[n, d]``: int8 and bits as -127 to 127, and as ±1."""
        if self.how.dtype:
            codes, _ = self.how.apply(vectors)
            # In steps: integers have exact products, so that equally near rows are known as such.
            steps = replace(self.how, scale=1.0)
            found = steps.decode(codes, self.how.kept_width(vectors.shape[1]))
        else:
            found = self.how.kept(vectors)
        found[~np.isfinite(vectors).all(axis=1)] = np.nan
        return found


def by_plain_norm(variants: Sequence[Variant]) -> dict[str, list[str]]:
    """Return the labels of variants with options by that of the same norm without, if compared."""
    found: dict[str, list[str]] = {}
    for each in variants:
        if each.plain != each and each.plain in variants:
            found.setdefault(each.plain.label, []).append(each.label)
    return found


def variant_neighbours(
    queries: Queries, base: Base, fitted: Mapping[Variant, Normalization], metric: Metric, k: int
) -> dict[str, Int64s]:
    """Find what `neighbours` does, by the label of each variant, as `fit` found them."""
    kinds: dict[Normalization, dict[str, Score]] = {}
    for variant, how in fitted.items():
        kind = how if variant.dtype else replace(how, norm=_NONE)
        kinds.setdefault(kind, {})[variant.label] = variant.score(metric)
    found: dict[str, Int64s] = {}
    for kind, scores in kinds.items():
        if kind == Normalization(_NONE):
            found |= nearest(queries, base, scores, k)
        else:
            stored = _Stored(base, kind)
            asked = Queries.of(stored.of(queries.vectors), queries.rows)
            found |= nearest(asked, stored, scores, k)
    return {variant.label: found[variant.label] for variant in fitted}
