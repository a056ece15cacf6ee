"""An encoder held to a contract: what it makes of the canary rows against their vectors.

An encoder that errs in one way gives vectors that are right once that is undone. What is tried goes
from the narrow to the wide, so that no cause is named where a nearer one explains the same: the
vectors as they are, their directions, their order, other features; and another model at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from batchnorm_tool.contract import Cause, Contract, ContractReport, Encode
from batchnorm_tool.display import plural
from batchnorm_tool.errors import BatchnormToolError, InputError, Refused
from batchnorm_tool.norms.norm import (
    L1,
    L2,
    MAX,
    Anything,
    Float64s,
    Norm,
    numeric_array,
    row_norms,
    widen,
)
from batchnorm_tool.norms.output_spec import OutputSpec

Arrays: TypeAlias = dict[str, Anything]
Bools: TypeAlias = npt.NDArray[np.bool_]
# An input, and the place of one of its values; None for all of them.
Place: TypeAlias = tuple[str, int | None]

# Pairs that are tried in search of features that are swapped: all of 64. What has more values in a
# column, such as an image, holds no features to swap.
_MOST_VALUES = 64
_MOST_SWAPS = _MOST_VALUES * (_MOST_VALUES - 1) // 2
_ADVICE: Mapping[Cause, str] = {
    "not_normalized": "Normalize it as the contract says ({rule}), or with `Contract.apply`.",
    "other_norm": "Normalize it as the contract says ({rule}), or with `Contract.apply`.",
    "other_dtype": "Return {rule}: `Contract.apply` makes it of raw predictions.",
    "truncated": "Keep as many components as the contract says ({rule}).",
    "row_order": "Return vectors in the order of the rows that were given.",
    "other_preprocessing": "Prepare the features as the contract says: {features}.",
    "other_model": "Expected: {model}. Use the model that made the vectors, or make them again.",
}
_NORMS = (L1, L2, MAX, *(Norm("lp", p) for p in (1.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)))
# Significant bits of float16 and bfloat16, and how far from a row a model may be that computes in
# it throughout, in parts of its length: eight units in the last place.
_NARROW = {11: 2.0**-8, 8: 2.0**-5}
# A component near the middle of two steps may be rounded to either: one in fifty, and one.
_FLIPPED = 50


def check_contract(contract: Contract, encode: Encode) -> ContractReport:
    """Compare what an encoder makes of the canary rows with the vectors that they got."""
    if not contract.canaries:
        raise InputError(
            "The contract has no canary rows to check an encoder on. Make the result again with "
            "`contract.canaries` of 1 or more."
        )
    given = contract.canary_features()
    expected = {output.name: _expected(contract, output) for output in contract.outputs}
    check = _EncoderCheck(contract, encode, expected)
    got = check.encoded(given)
    passing = {name: one.agree(got[name]) for name, one in expected.items()}
    agreeing = int(np.logical_and.reduce([*passing.values()]).sum())
    rows = len(contract.canaries)
    differences = [one.largest_difference(got[name]) for name, one in expected.items()]
    known = [difference for difference in differences if difference is not None]
    largest = max(known) if len(known) == len(differences) else None
    agree = f"{agreeing} of {plural(rows, 'canary row')} {'agrees' if agreeing == 1 else 'agree'}"
    if agreeing == rows:
        return ContractReport(None, rows, agreeing, largest, f"{agree}.")
    wrong = next(name for name, rows_passing in passing.items() if not rows_passing.all())
    cause, words, swapped = check.diagnosis(wrong, got, given)
    advice = _ADVICE[cause].format(**_rules(contract, expected[wrong].output))
    message = f"{agree}: {words}. {advice}"
    return ContractReport(cause, rows, agreeing, largest, message, wrong, swapped)


@dataclass(frozen=True)
class _EncoderCheck:
    contract: Contract
    encode: Encode
    expected: Mapping[str, Expected]

    def encoded(self, given: Arrays) -> Arrays:
        """Return what the encoder makes of rows, ``[vectors, numbers]`` of each output."""
        lone = next(iter(given.values())) if len(given) == 1 else given
        try:
            arrays = self.contract.by_output(self.encode(lone))
        except BatchnormToolError:
            raise
        except Exception as error:
            raise InputError(
                f"The encoder fails on the canary rows: {type(error).__name__}: {error}. Expected: "
                f"a function of {_shapes(given)}. Check that it takes the contract's features."
            ) from error
        return {name: self._flat(name, array) for name, array in arrays.items()}

    def _flat(self, name: str, given: Anything) -> Anything:
        try:
            array = numeric_array(given)
        except InputError as error:
            message = f"The encoder's `{name}` holds no vectors. {error.message}"
            raise InputError(message) from error
        output, rows = self.expected[name].output, len(self.contract.canaries)
        vectors = rows * output.vectors
        if array.shape[:1] != (rows,) or not array.size or array.size % vectors:
            raise InputError(
                f"The encoder's `{name}` has the shape {array.shape}. Expected: "
                f"{(rows, *output.stored_shape)}, a row for each that was given."
            )
        return array.reshape(vectors, -1)

    def diagnosis(
        self, name: str, got: Arrays, given: Arrays
    ) -> tuple[Cause, str, tuple[str, str] | None]:
        """Say what is wrong with an output: the cause, in words, and which features are swapped."""
        expected, vectors = self.expected[name], got[name]
        explained = expected.explain(vectors)
        if explained is not None:
            return explained[0], f"`{name}` {explained[1]}", None
        alike = expected.likeness(vectors)
        # Of few components, or few bits, rows are alike by chance: they show no order, and no part.
        rows, distinct = len(alike), len(np.unique(expected.likeness(expected.stored), axis=0))
        tells = 2 * distinct > rows
        if tells and alike.any(axis=0).all() and alike.any(axis=1).all():
            row = next(row for row in range(rows) if not alike[row, row])
            words = f"row {row} of `{name}` is the vector of row {alike[:, row].argmax()}"
            return "row_order", words, None
        swapped = self._swapped(given)
        if swapped is not None:
            words = f"all agree once the features `{swapped[0]}` and `{swapped[1]}` are swapped"
            return "other_preprocessing", words, swapped
        finite = "" if np.isfinite(vectors).all() else ", and some are NaN or infinite"
        own, by_chance = alike.diagonal(), alike.mean()
        if (tells and own.any()) or own.mean() > (1 + by_chance) / 2:
            same = f"{own.sum()} of `{name}` come from the same model"
            return "other_preprocessing", f"{same}{finite}, the others do not", None
        return "other_model", f"the vectors of `{name}` are not those of its rows{finite}", None

    def _swapped(self, given: Arrays) -> tuple[str, str] | None:
        """Return the names of two features with whose values swapped all rows agree."""
        for one, other in itertools.islice(self._pairs(given), _MOST_SWAPS):
            first, second = _values(given, one), _values(given, other)
            if first.shape != second.shape or first.dtype != second.dtype:
                continue
            try:
                got = self.encoded(_with_swap(given, one, other))
            except Refused:  # a value of one that the other cannot have
                continue
            if all(each.alike(got[name]).all() for name, each in self.expected.items()):
                return self._name(one), self._name(other)
        return None

    def _pairs(self, given: Arrays) -> Iterator[tuple[Place, Place]]:
        """Yield whole inputs, and then single values, that may be in each other's place."""
        sizes = {name: array[0].size for name, array in given.items() if array.ndim > 1}
        listed = {f.input for f in self.contract.features if len(f.columns) == sizes.get(f.input)}
        few = {name for name, size in sizes.items() if size <= _MOST_VALUES}
        parts = [
            (name, place) for name in given if name in listed | few for place in range(sizes[name])
        ]
        yield from itertools.combinations([(name, None) for name in given], 2)
        yield from itertools.combinations(parts, 2)

    def _name(self, place: Place) -> str:
        name, value = place
        feature = next(one for one in self.contract.features if one.input == name)
        size = int(np.prod(feature.shape))
        if value is None:
            return feature.columns[0] if len(feature.columns) == 1 else name
        return feature.columns[value] if len(feature.columns) == size else f"{name}[{value}]"


def _expected(contract: Contract, output: OutputSpec) -> Expected:
    stored = np.stack([canary.vectors[output.name] for canary in contract.canaries])
    norms = [canary.norms[output.name].reshape(-1) for canary in contract.canaries]
    flat = stored.reshape(-1, output.stored_width)
    return Expected(output, flat, np.concatenate(norms), contract.tolerance)


def _values(given: Arrays, place: Place) -> Anything:
    name, value = place
    array = given[name]
    return array if value is None else array.reshape(len(array), -1)[:, value]


def _with_swap(given: Arrays, one: Place, other: Place) -> Arrays:
    swapped = {name: array.copy() for name, array in given.items()}
    _values(swapped, one)[...] = _values(given, other)
    _values(swapped, other)[...] = _values(given, one)
    return swapped


def _rules(contract: Contract, output: OutputSpec) -> dict[str, str]:
    """Return what the contract says, in words."""
    done, model = output.normalization, contract.model
    parts = [f"norm {done.norm.label}, axis {output.axis}, {output.dtype}"]
    parts += [f"of the first {done.truncate} components"] if done.truncate else []
    parts += ["without the mean direction"] if done.mean else []
    parts += [f"in steps of {done.scale:.6g}"] if done.dtype == "int8" and done.scale else []
    features = (f"`{f.input}` from {', '.join(f.columns)} ({f.dtype})" for f in contract.features)
    made = (
        f"`{model.path}` with the content {model.content[:12]}…" if model else "stored predictions"
    )
    return {"rule": ", ".join(parts), "features": "; ".join(features), "model": made}


def _shapes(given: Arrays) -> str:
    return ", ".join(f"`{name}` {array.dtype}{array.shape}" for name, array in given.items())


@dataclass(frozen=True)
class Expected:
    """The vectors of one output that the contract has.

    Args:
        stored: As they are stored, ``[vectors, numbers]``, with their norms ``[vectors]``.
        tolerance: In parts of a vector's length.
    """

    output: OutputSpec
    stored: Anything
    norms: Float64s
    tolerance: float

    def agree(self, got: Anything) -> Bools:
        """Tell which rows have the vectors that are stored, as they are."""
        return self._by_row(self._agree(got))

    def alike(self, got: Anything) -> Bools:
        """Tell which rows are right but for their length, dtype or number of components."""
        return self._by_row(self._alike(got))

    def likeness(self, got: Anything) -> Bools:
        """Tell which canary is like which row of an encoder: ``[canaries, rows]``."""
        rows = len(self.stored) // self.output.vectors
        return np.array([self._take(np.full(rows, row)).alike(got) for row in range(rows)])

    def _by_row(self, passing: Anything) -> Bools:
        return np.asarray(passing.reshape(len(passing) // self.output.vectors, -1).all(axis=1))

    def _agree(self, got: Anything) -> Bools:
        if not self._may_be_stored(got):
            return np.zeros(len(self.stored), bool)
        if self.output.normalization.dtype is None:
            return self._excess(widen(got)) <= self.tolerance
        steps = np.abs(self._numbers(got) - self._numbers(self.stored))
        few = np.count_nonzero(steps, axis=1) <= 1 + self._vectors.shape[1] // _FLIPPED
        return few & (steps.max(axis=1) <= 1)

    def _alike(self, got: Anything) -> Bools:
        if self._is_packed(got):
            bits = 8 * got.shape[1]
            return (self._numbers(got) == self._numbers(self.stored))[:, :bits].all(axis=1)
        return self._agree(got) | (self._excess(*self._scaled(got)) <= self._room(got))

    def largest_difference(self, got: Anything) -> float | None:
        """Return the largest distance of a stored vector, in parts of its length."""
        if not self._may_be_stored(got):
            return None
        stored = self._numbers(self.stored)
        distances = np.linalg.norm(self._numbers(got) - stored, axis=1)
        largest = float(np.max(distances / _lengths(stored)))
        return largest if np.isfinite(largest) else None

    def explain(self, got: Anything) -> tuple[Cause, str] | None:
        """Say what has become of all vectors alike, as the end of a sentence."""
        alike, norm = self.alike(got).all(), self.output.normalization.norm
        kept, room = self._kept(got), 10 * self._room(got)
        if alike and kept.shape == self._vectors.shape and norm.name != "none":
            raw = _close(row_norms(kept, norm), self.norms, room)
            if raw and not _close(self.norms, 1.0, room):
                return "not_normalized", "is not normalized: its vectors have the raw lengths"
        if self._quantized(got).all():
            return "other_dtype", f"holds integers ({got.dtype}) in other steps"
        return self._explain_alike(got, kept, room) if alike else None

    def _explain_alike(self, got: Anything, kept: Float64s, room: float) -> tuple[Cause, str]:
        wanted = (self.stored if self._is_packed(got) else self._vectors).shape[1]
        width, done = got.shape[1], self.output.normalization
        if width != wanted:
            has = "has all" if width > wanted else "has only the first"
            return "truncated", f"{has} {width} components, where {wanted} are stored"
        if (self._excess(kept) <= room).all():
            half = "half precision" if self._room(got) > self.tolerance else None
            return "other_dtype", f"has {half or f'{got.dtype}, not quantized'}"
        for other in _NORMS:
            if other != done.norm and _close(row_norms(kept, other), 1.0, room):
                return "other_norm", f"is divided by the norm `{other.label}`"
        if done.norm.name == "none":
            return "other_norm", "has other lengths than the predictions"
        what = "still has the mean direction in it" if done.mean else "is not normalized"
        return "not_normalized", f"{what}: its vectors have other lengths"

    def _take(self, rows: Anything) -> Expected:
        places = np.arange(len(self.stored)).reshape(-1, self.output.vectors)[rows].reshape(-1)
        return replace(self, stored=self.stored[places], norms=self.norms[places])

    def _may_be_stored(self, got: Anything) -> bool:
        floats = self.output.normalization.dtype is None
        return got.shape == self.stored.shape and (floats or _is_whole(got))

    def _is_packed(self, got: Anything) -> bool:
        few = got.shape[1] <= self.stored.shape[1]
        return self.output.dtype == "binary" and few and _is_whole(got)

    @cached_property
    def _vectors(self) -> Float64s:
        return widen(self.output.normalization.decode(self.stored, self.output.width))

    def _numbers(self, stored: Anything) -> Float64s:
        """Return what was rounded to be stored: floats, steps, or bits."""
        if self.output.dtype != "binary":
            return widen(stored)
        return widen(np.unpackbits(stored.astype(np.uint8), axis=1, count=self._vectors.shape[1]))

    def _kept(self, got: Anything) -> Float64s:
        width = self._vectors.shape[1]
        whole = got.shape[1] >= width
        return self.output.normalization.kept(got[:, :width]) if whole else widen(got)

    def _scaled(self, got: Anything) -> tuple[Float64s, float]:
        """Return what is kept at the lengths of what is stored, and the rounding of that, in steps.

        Lengths of components that were rounded to steps are known to half a step only.
        """
        kept, norm = self._kept(got), self.output.normalization.norm
        with np.errstate(all="ignore"):
            if norm.name != "none" and kept.shape[1] == self._vectors.shape[1]:
                return kept / row_norms(kept, norm), 0.5
            lengths = _lengths(self._vectors[:, : kept.shape[1]]) / _lengths(kept)
            return kept * lengths[:, np.newaxis], 1.0

    def _excess(self, floats: Float64s, steps: float = 0.5) -> Float64s:
        """Return how far vectors are beyond the rounding of what is stored, relative to it."""
        wanted, quantized = self._vectors[:, : floats.shape[1]], self.output.normalization.dtype
        eps = float(np.finfo(self.output.float_dtype).eps)
        with np.errstate(all="ignore"):
            if quantized == "binary":  # only signs are stored
                wrong = np.where((floats > 0) == (wanted > 0), 0.0, np.abs(floats))
                return np.linalg.norm(wrong, axis=1) / _lengths(floats)
            step = self.output.normalization.scale or 1.0
            rounding = steps * step if quantized else eps * np.abs(wanted)
            over = np.maximum(np.abs(floats - wanted) - rounding, 0.0)
            return np.linalg.norm(over, axis=1) / _lengths(wanted)

    def _room(self, got: Anything) -> float:
        """Return how far a vector may be; further for all that fit a half's few bits."""
        if _is_whole(got) or self.output.float_dtype == "float16":
            return self.tolerance
        parts = np.frexp(widen(got))[0]
        rooms = [room for bits, room in _NARROW.items() if _is_whole(np.ldexp(parts, bits))]
        return max(self.tolerance, *rooms[-1:]) if rooms else self.tolerance

    def _quantized(self, got: Anything) -> Bools:
        """Tell which vectors are integers of the right direction, or cut to integers."""
        if got.shape != self._vectors.shape or not _is_whole(got):
            return np.zeros(len(self.stored), bool)
        codes, wanted = widen(got), self._vectors
        with np.errstate(all="ignore"):
            steps = (codes * wanted).sum(axis=1) / np.square(codes).sum(axis=1)
            errors = np.abs(codes * steps[:, None] - wanted).max(axis=1)
            alike = errors <= steps
        cut = np.all(codes == np.trunc(wanted), axis=1)
        return alike | cut if got.dtype.kind in "iu" else alike


def _is_whole(array: Anything) -> bool:
    return bool((array == np.trunc(array)).all())


def _lengths(vectors: Float64s) -> Float64s:
    lengths = np.linalg.norm(vectors, axis=1)
    return np.where(lengths == 0, 1.0, lengths)


def _close(lengths: Float64s, wanted: Float64s | float, room: float) -> bool:
    return bool((np.abs(lengths.reshape(-1) - wanted) <= room * np.asarray(wanted)).all())
