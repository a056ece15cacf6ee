"""An encoder held to a contract: what it makes of the canary rows against their vectors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from batchnorm_tool.contract import Contract, Encode
from batchnorm_tool.contract.diagnosis import Expected, by_row, likeness
from batchnorm_tool.contract.records import Cause, ContractReport
from batchnorm_tool.display import plural
from batchnorm_tool.errors import BatchnormToolError, InputError, Refused
from batchnorm_tool.norms.norm import Anything, numeric_array

Arrays: TypeAlias = dict[str, Anything]
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


def check_contract(contract: Contract, encode: Encode) -> ContractReport:
    """Compare what an encoder makes of the canary rows with the vectors that they got."""
    if not contract.canaries:
        raise InputError(
            "The contract has no canary rows to check an encoder on. Make the result again with "
            "`contract.canaries` of 1 or more."
        )
    given = contract.canary_features()
    check = _EncoderCheck(
        contract, encode, {o.name: _expected(contract, o.name) for o in contract.outputs}
    )
    got = check.encoded(given)
    passing = {name: by_row(one, got[name], Expected.agree) for name, one in check.expected.items()}
    agreeing = int(np.logical_and.reduce([*passing.values()]).sum())
    rows = len(contract.canaries)
    differences = [one.largest_difference(got[name]) for name, one in check.expected.items()]
    known = [difference for difference in differences if difference is not None]
    largest = max(known) if len(known) == len(differences) else None
    agree = f"{agreeing} of {plural(rows, 'canary row')} {'agrees' if agreeing == 1 else 'agree'}"
    if agreeing == rows:
        return ContractReport(None, rows, agreeing, largest, f"{agree}.")
    wrong = next(name for name, rows_passing in passing.items() if not rows_passing.all())
    cause, words, swapped = check.diagnosis(wrong, got, given)
    message = f"{agree}: {words}. {_ADVICE[cause].format(**_rules(contract, wrong))}"
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
            by_name = self.contract.by_output(self.encode(lone))
            arrays = {name: numeric_array(array) for name, array in by_name.items()}
        except BatchnormToolError:
            raise
        except Exception as error:
            raise InputError(
                f"The encoder fails on the canary rows: {type(error).__name__}: {error}. Expected: "
                f"a function of {_shapes(given)}. Check that it takes the contract's features."
            ) from error
        return {name: self._flat(name, array) for name, array in arrays.items()}

    def _flat(self, name: str, array: Anything) -> Anything:
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
        alike = likeness(expected, vectors)
        # Of few components, or few bits, rows are alike by chance: they show no order, and no part.
        rows, distinct = len(alike), len(np.unique(likeness(expected, expected.stored), axis=0))
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
        if tells and alike.diagonal().any():
            same = f"{alike.diagonal().sum()} of `{name}` come from the same model"
            return "other_preprocessing", f"{same}{finite}, the others do not", None
        return "other_model", f"no vector of `{name}` is that of its row{finite}", None

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
            if all(by_row(e, got[name], Expected.alike).all() for name, e in self.expected.items()):
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


def _expected(contract: Contract, name: str) -> Expected:
    output = next(output for output in contract.outputs if output.name == name)
    stored = np.stack([canary.vectors[name] for canary in contract.canaries])
    norms = np.concatenate([canary.norms[name].reshape(-1) for canary in contract.canaries])
    flat = stored.reshape(-1, output.stored_width)
    return Expected(output, flat, norms, contract.tolerance)


def _values(given: Arrays, place: Place) -> Anything:
    name, value = place
    array = given[name]
    return array if value is None else array.reshape(len(array), -1)[:, value]


def _with_swap(given: Arrays, one: Place, other: Place) -> Arrays:
    swapped = {name: array.copy() for name, array in given.items()}
    _values(swapped, one)[...] = _values(given, other)
    _values(swapped, other)[...] = _values(given, one)
    return swapped


def _rules(contract: Contract, name: str) -> dict[str, str]:
    """Return what the contract says, in words."""
    output = next(output for output in contract.outputs if output.name == name)
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
