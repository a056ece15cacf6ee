"""How far a model with the norm in its graph is from the norm taken after prediction.

Each written file is loaded in a bare process: no part of this package is there. Beside it runs a
*probe*: the same model in the same format, which also gives its raw predictions, and has a copy of
the normalization that is fed with edge rows, values that no real model can be made to predict. So
each difference has one cause. What the norm adds is measured against `Normalization.apply` on the
raw predictions of the same runtime, in float64, with a bound of four ulp; what the runtime adds,
as the raw predictions' distance from TensorFlow's, with the bound that `model.backend` has.

One ulp is float32's at the L2 length of the expected vector: 1.2e-7 for a unit vector of L2.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from batchnorm_tool import models
from batchnorm_tool.chunk import Field
from batchnorm_tool.display import number
from batchnorm_tool.errors import ModelError
from batchnorm_tool.models import batching, placement, proof
from batchnorm_tool.models.backends import bare_runner, place_name
from batchnorm_tool.models.backends.normalized_model import RAW, VECTORS, GraphOutput
from batchnorm_tool.models.batching import ModelPredictor
from batchnorm_tool.norms.norm import Anything, Float64s, numpy_dtype, widen
from batchnorm_tool.storage.checked_json import Record

BOUND = 4.0
"""The most that a graph's norm may add, in ulp; 1.7 were measured (docs/in-the-model.md)."""
TENSORFLOW = ("keras", "savedmodel")
"""The formats that TensorFlow computes."""
_Arrays = Mapping[str, np.ndarray]
_Call = tuple[str, str, _Arrays, int]
_FLOAT32 = np.finfo(np.float32)
_NARROW = {"float16": 4 * 2.0**-10, "bfloat16": 4 * 2.0**-7}
_LAST_WORDS = 400
_LEAST, _MOST = 32, 256  # rows in one call
# Beside what a program of the user's would have: nothing is told to makers, and no GPU is taken
# from the process that wrote the file.
_QUIET = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "KERAS_BACKEND": "tensorflow",
    "ORT_DISABLE_TELEMETRY": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class EdgeRow(Record):
    """What became of a row at the edge of what numbers can hold.

    Attributes:
        output: The output whose normalization it was fed to.
        row: What is in it, such as ``3e38 beside 1``.
        word: ``zeros``, ``taken as zeros`` (below float32's normal numbers), ``NaN``, or the
            difference, such as ``0.62 ulp``.
        agrees: Whether that is as it must be.
    """

    output: str
    row: str
    word: str
    agrees: bool


@dataclass(frozen=True)
class Parity(Record):
    """How far one written file is from the norm after prediction.

    Attributes:
        format: keras, savedmodel, onnx, openvino or litert.
        rows: How many rows were compared.
        ulp: The largest difference of a component, in ulp of float32 at the expected vector's
            length.
        bound: The most that it may be.
        worst_row: The row that has it, counted from 0.
        norm_difference: The largest difference of a norm, in parts of it; 0.0 where none is kept.
        model_difference: The largest distance of a raw prediction from TensorFlow's, in parts of
            its length: what the runtime does with the model. None where that is part of ``ulp``.
        model_bound: The most that it may be: 1e-5, or four steps of narrower floats.
        edges: Rows at the edge of what numbers can hold.
    """

    format: str
    rows: int
    ulp: float
    bound: float
    worst_row: int
    norm_difference: float
    model_difference: float | None = None
    model_bound: float = proof.TOLERANCE
    edges: tuple[EdgeRow, ...] = ()

    @property
    def fault(self) -> str | None:
        """What is beyond its bound, in words; ``None`` where nothing is."""
        if not self.ulp <= self.bound:
            return (
                f"row {self.worst_row} differs from the norm after prediction by {self.ulp:.3g} "
                f"ulp, more than {self.bound:.3g}"
            )
        for what, share, bound in (
            ("norm", self.norm_difference, proof.TOLERANCE),
            ("raw prediction", self.model_difference or 0.0, self.model_bound),
        ):
            if not share <= bound:
                return f"a {what} differs by {share:.2g} of its length, more than {bound:.2g}"
        bad = next((edge for edge in self.edges if not edge.agrees), None)
        return f"the row `{bad.row}` gives {bad.word} in `{bad.output}`" if bad else None


def parity_table(parity: Sequence[Parity]) -> list[tuple[str, ...]]:
    """Return rows of a table that has a column for each format."""
    shown = {
        "rows": [f"{each.rows:,}" for each in parity],
        "largest difference": [f"{each.ulp:.2f} ulp" for each in parity],
        "in row": [f"{each.worst_row:,}" for each in parity],
        "norms": [f"{each.norm_difference:.1g}" for each in parity],
        "model": [number(each.model_difference, 2) for each in parity],
    }
    for edges in zip(*(each.edges for each in parity), strict=True):
        shown[f"{edges[0].row} ({edges[0].output})"] = [edge.word for edge in edges]
    return [("", *(each.format for each in parity)), *((name, *row) for name, row in shown.items())]


@dataclass(frozen=True)
class Subject:
    """What is compared, in every format.

    Attributes:
        outputs: How each is normalized.
        rows: Arrays by the names of inputs, with equal numbers of rows.
        reference: The original's raw predictions for them, by the names of outputs.
        given: How many of the rows there are before they repeat.
        batch_size: Rows in one call.
    """

    outputs: Sequence[GraphOutput]
    rows: _Arrays
    reference: _Arrays
    given: int
    batch_size: int

    @classmethod
    def of(cls, model: ModelPredictor, outputs: Sequence[GraphOutput], rows: _Arrays) -> Subject:
        """Predict rows with the original, but for those that it fails on; none: rows made up."""
        rows = rows or proof.made_up_rows(model.model)
        size = model.model.own_batch_size or min(max(_LEAST, len(next(iter(rows.values())))), _MOST)
        sized = model.with_batch_size(size)

        def predict(rows: dict[str, np.ndarray]) -> Subject:
            given = len(next(iter(rows.values())))
            many = placement.repeated(rows, -(-max(given, _LEAST) // size) * size)
            return cls(outputs, many, sized.predict(many), given, size)

        return models.on_good_rows(sized, dict(rows), predict, batching.filler(model.inputs))

    def prove(
        self, files: Mapping[str, Path], probes: Mapping[str, Path], edges: Sequence[Field]
    ) -> list[Parity]:
        """Run files and their probes, by their formats, in bare processes, and compare them.

        Of a probe's inputs, ``edges`` are those that stand for raw predictions.

        Raises:
            ModelError: One does not load or run there.
        """
        made = {each.name: edge_rows(each) for each in edges}
        fed = {name: np.stack([*rows.values()]) for name, rows in made.items()}
        count = len(next(iter(self.rows.values())))
        rows = dict(self.rows) | {
            name: np.resize(rows, (count, *rows.shape[1:])) for name, rows in fed.items()
        }
        found: list[Parity] = []
        # To import TensorFlow takes longest: one process runs both of its formats.
        both = [kind for kind in files if kind in TENSORFLOW]
        for kinds in filter(None, [both, *([kind] for kind in files if kind not in both)]):
            calls = [(kind, str(files[kind]), self.rows, self.batch_size) for kind in kinds]
            calls += [(kind, str(probes[kind]), rows, self.batch_size) for kind in kinds]
            answers = run_bare(*calls)
            for kind, file, shown in zip(kinds, answers, answers[len(kinds) :], strict=False):
                places = ((each.name, place_name(RAW, n)) for n, each in enumerate(self.outputs))
                raw = {name: _rows_of_vectors(shown[place]) for name, place in places}
                apart = max(proof.farthest(self.reference[name], raw[name]) for name in raw)
                words = tuple(self._words(shown, made, fed))
                bound = max(_NARROW.get(each.dtype, proof.TOLERANCE) for each in edges)
                measured = self._parity(kind, raw, file, BOUND)
                measured = replace(measured, model_difference=apart, model_bound=bound)
                found.append(replace(measured, edges=words))
        return found

    def _words(
        self, shown: _Arrays, made: Mapping[str, _Arrays], fed: _Arrays
    ) -> Iterator[EdgeRow]:
        for place, (output, name) in enumerate(zip(self.outputs, made, strict=True)):
            part = {each: array[: len(fed[name])] for each, array in shown.items()}
            named = replace(output, name=place_name(VECTORS, place))
            compared = RowDifferences.of(named, fed[name], part)
            for row, words in enumerate(made[name]):
                yield EdgeRow(output.name, words, *compared.word(row))

    def compare(self, kind: str, path: Path, original: str) -> Parity:
        """Compare a file of any origin, and its format, with the original of another.

        It has no probe. Where another runtime computes the original, a row may differ by what back
        ends may, which cannot be told from what the norm adds.
        """
        (file,) = run_bare((kind, str(path), self.rows, self.batch_size))
        alike = {kind, original} <= {*TENSORFLOW} or kind == original
        bound = BOUND if alike else proof.TOLERANCE / float(_FLOAT32.eps)
        return self._parity(kind, self.reference, file, bound)

    def _parity(self, kind: str, raw: _Arrays, file: _Arrays, bound: float) -> Parity:
        alone = [*file.values()] if len(file) == 1 else []
        compared = []
        for output in self.outputs:
            found = {output.name: alone[0]} if alone else file
            if output.name not in found:
                raise ModelError(
                    f"{kind}: the file has no output `{output.name}`. Received: "
                    f"{', '.join(file)}. Compare a copy of this model with the same outputs."
                )
            compared.append(RowDifferences.of(output, raw[output.name], found))
        ulp = np.max([each.ulp for each in compared], axis=0)[: self.given]
        norm = max(each.norm for each in compared)
        return Parity(kind, self.given, float(ulp.max()), bound, int(ulp.argmax()), norm)


@dataclass(frozen=True)
class RowDifferences:
    """What a graph made of raw predictions, beside what `Normalization.apply` makes of them.

    Attributes:
        vectors: Those of the graph, float64[n, ...].
        expected: Those after prediction, likewise.
        ulp: The largest difference of each row.
        norm: The largest difference of a norm, in parts of it.
    """

    vectors: Float64s
    expected: Float64s
    ulp: Float64s
    norm: float

    @classmethod
    def of(cls, output: GraphOutput, raw: Anything, found: _Arrays) -> Self:
        """Compare ``found``, by name, with what becomes of raw predictions ``[n, ...]``."""
        rows, normalization = output.vectors(raw), output.normalization
        expected, norms = normalization.apply(rows, np.float64)
        given = found[output.name]
        if given.size != expected.size:
            wanted = len(raw), *raw.shape[1:-1], expected.shape[1]
            raise ModelError(
                f"The file's `{output.name}` has the shape {given.shape}. Expected: {wanted}. "
                "Compare it by the options that it was made with."
            )
        given = given.reshape(expected.shape)
        with np.errstate(all="ignore"):
            kept = normalization.kept(rows)
            # What is below float32's normal numbers may become zeros, and be none the worse.
            flushed = (np.abs(kept).max(axis=1) < _FLOAT32.tiny) & ~given.any(axis=1)
            bad = ~np.isfinite(expected).all(axis=1)
            ulp = _ulps(given, expected) * _shares(rows[:, : normalization.truncate], kept)
            ulp[flushed | (bad & ~np.isfinite(given).all(axis=1))] = 0.0
            norm = found.get(f"{output.name}_norm")
            parts = np.zeros(len(rows)) if norm is None else _parts(norm, norms)
            parts[flushed | bad] = 0.0
        shape = len(raw), -1
        most = np.nan_to_num(ulp.reshape(shape), nan=np.inf).max(axis=1)
        wide = widen(given).reshape(shape), expected.reshape(shape)
        return cls(*wide, most, float(np.nan_to_num(parts, nan=np.inf).max(initial=0.0)))

    def word(self, row: int) -> tuple[str, bool]:
        """Say what became of a row, and whether that is as it must be."""
        found, expected, ulp = self.vectors[row], self.expected[row], self.ulp[row]
        if not np.isfinite(expected).all():
            is_nan = bool(np.isnan(found).any())
            return ("NaN" if is_nan else "numbers where NaN is expected"), is_nan
        if not found.any():
            return ("taken as zeros" if expected.any() and ulp == 0 else "zeros"), bool(ulp == 0)
        if not expected.any():
            return "numbers where zeros are expected", False
        return f"{ulp:.2f} ulp", bool(ulp <= BOUND)


def _rows_of_vectors(array: Anything) -> Anything:
    """Return predictions with one number for a row being a vector of one."""
    return array[:, np.newaxis] if array.ndim == 1 else array


def _ulps(given: Anything, expected: Float64s) -> Float64s:
    """Return the largest difference of each vector in float32's ulp at its expected length."""
    lengths = np.linalg.norm(expected, axis=1).clip(_FLOAT32.tiny, _FLOAT32.max)
    apart = np.abs(widen(given) - expected)
    if given.dtype == np.float16:  # whose own rounding is as it must be
        apart = np.maximum(apart - np.spacing(np.abs(given)).astype(np.float64) / 2, 0)
    ulps: Float64s = apart.max(axis=1) / np.spacing(lengths.astype(np.float32))
    return ulps


def _shares(rows: Anything, kept: Float64s) -> Float64s:
    """Return how much is left of rows once a mean is projected off: it has all their rounding."""
    before, after = (np.linalg.norm(widen(each), axis=1) for each in (rows, kept))
    return np.where((after < before) & (before < np.inf), after / before, 1.0)


def _parts(given: Anything, norms: Float64s) -> Float64s:
    found, expected = widen(given).reshape(-1), norms[:, 0]
    expected = np.where(expected > _FLOAT32.max, np.inf, expected)
    return np.where(found == expected, 0.0, np.abs(found - expected) / expected)


def edge_rows(field: Field) -> dict[str, Anything]:
    """Return rows at the edge of what numbers can hold, by what is in each.

    Example:
        >>> edge_rows(Field("x", (3,), "float32"))["3e38 beside 1"]
        array([3.e+38, 1.e+00, 1.e+00], dtype=float32)
    """
    shape = tuple(size or 3 for size in field.shape) or (1,)
    direction = np.random.default_rng(0).normal(size=shape)
    direction /= np.abs(direction).max()
    first, last = (np.arange(shape[-1]) == place for place in (0, shape[-1] - 1))
    rows = {
        "zero": 0 * direction,
        "1e-30": 1e-30 * direction,
        "1e20": 1e20 * direction,
        "3e38 beside 1": np.where(first, 3e38, np.ones(shape)),
        "subnormal": 1e-39 * direction,
        "300 everywhere": np.full(shape, 300.0),
        "one-hot": np.where(last, 1.0, 0 * direction),
        "NaN beside good rows": np.where(first, np.nan, direction),
    }
    most = 65504.0 if field.dtype == "float16" else 3.3e38  # what the dtype can hold
    dtype = numpy_dtype(field.dtype)
    final = shape if field.shape else ()  # one number for a row
    return {n: row.clip(-most, most).astype(dtype).reshape(final) for n, row in rows.items()}


def run_bare(*calls: _Call) -> list[dict[str, Anything]]:
    """Run stored models in a process without this package, as `bare_runner` describes it.

    Raises:
        ModelError: A file does not load or run there.
    """
    with tempfile.NamedTemporaryFile() as answers, tempfile.TemporaryFile() as log:
        done = subprocess.run(
            [sys.executable, "-I", bare_runner.__file__, answers.name],
            input=pickle.dumps(calls),
            stdout=log,
            stderr=log,
            env={**os.environ, **_QUIET},
            check=False,
        )
        log.seek(0)
        said = log.read().decode(errors="replace").strip()[-_LAST_WORDS:]
        if done.returncode:
            kinds = ", ".join(dict.fromkeys(call[0] for call in calls))
            raise ModelError(
                f"What is written as {kinds} does not run in a process without this package, "
                f"which ended with exit code {done.returncode} ({said}). Leave {kinds} out of "
                "`to`, or compare a file that takes this model's inputs."
            )
        found: list[dict[str, Anything]] = pickle.load(answers)  # noqa: S301  (our own)
        return found
