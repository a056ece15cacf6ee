"""A loaded model over a fixed grid of batches.

TensorFlow's output bits depend on the shape of a batch, and on some processors on a row's place in
it (on AVX2 alone, two to four of 32 rows went through another kernel and differed in the last bit),
but not on the other rows. So every call of the model has the same number of rows, the last one
padded by repeating its last real row, and a row that stands at the same place of the same grid gets
the same bits in every run. Only a model that may depend on the other rows of a batch gets the last
one as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal, Self

import numpy as np

from batchnorm_tool.chunk import Field
from batchnorm_tool.display import did_you_mean, plural
from batchnorm_tool.errors import InputError, ModelError, ModelFailed
from batchnorm_tool.features.values import fits
from batchnorm_tool.norms.norm import numpy_dtype
from batchnorm_tool.storage.checked_json import Positive, Record

Device = Literal["cpu", "gpu"]
Step = Callable[[Sequence[np.ndarray]], list[np.ndarray]]
# By the names of a model's inputs or outputs.
Rows = Mapping[str, np.ndarray]
# From the names of all outputs of a model to the places of those that are taken.
OutputChoice = Callable[[Sequence[str]], Sequence[int]]
_NARROW_FLOATS = frozenset({"bfloat16", "float16"})
# Rows of a call that looks for those on which the model fails: halving it costs six calls at most.
_SEARCH_ROWS = 32


@dataclass(frozen=True)
class BackendRecord(Record):
    """What computes a model that was converted, and how that proved itself.

    Attributes:
        graph_sha256: SHA-256 of the graph that it runs.
        largest_difference: The largest distance of a row from what the model predicts, in parts of
            its length; ``None`` where there is no other to compare with.
        independent: Whether bits depend neither on a row's place nor on the batch size.
        batch_size: The fastest that was found; ``None`` where none was tried.
    """

    name: Literal["onnxruntime", "tensorflow"]
    graph_sha256: str
    largest_difference: float | None
    independent: bool
    batch_size: Positive | None


def backend_name(record: BackendRecord | None) -> Literal["onnxruntime", "tensorflow"]:
    """Return what computes a model; one that was not converted has no record."""
    return "tensorflow" if record is None else record.name


@dataclass(frozen=True)
class ModelFacts(Record):
    """What there is to know of a model before it computes.

    Attributes:
        inputs: The arrays that it takes.
        outputs: The chosen outputs, as the model gives them.
        embedding_sizes: By an input's name, rows of the Embedding layer that it goes straight into;
            ``None`` where it may be an id, and how many there are is not known.
        own_batch_size: The batch size that is built into the model, if one is.
        backend: What computes it; ``None`` for TensorFlow.
    """

    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    embedding_sizes: dict[str, int | None]
    own_batch_size: Positive | None
    _: KW_ONLY
    backend: BackendRecord | None = None

    @property
    def ends(
        self,
    ) -> tuple[tuple[Field, ...], tuple[Field, ...], dict[str, int | None], int | None]:
        """All but the back end, to make another of it."""
        return self.inputs, self.outputs, self.embedding_sizes, self.own_batch_size


class LoadedModel(ModelFacts):
    """A model in memory that can be compiled for a batch size."""

    def compile(self, batch_size: int) -> Step:
        """Return a function from the inputs' arrays to the chosen outputs' arrays, of so many rows.

        It is called from several threads at once.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ModelPredictor:
    """A loaded model over a fixed grid of batches.

    Attributes:
        model: What is computed.
        device: Where it computes.
        threads: Threads within one operation; part of the bits.
        batch_size: Rows in one call of the model; ``None`` before it is fixed.
        step: The model compiled for the batch size.
        pads: Whether the last batch is padded.
    """

    model: LoadedModel
    device: Device
    threads: int
    batch_size: int | None = None
    step: Step | None = None
    pads: bool = True

    @property
    def inputs(self) -> tuple[Field, ...]:
        """The arrays that the model takes."""
        return self.model.inputs

    @property
    def outputs(self) -> tuple[Field, ...]:
        """The arrays that `predict` gives."""
        return tuple(_given(field) for field in self.model.outputs)

    @property
    def embedding_sizes(self) -> Mapping[str, int | None]:
        """Rows of the Embedding layer that an input goes straight into, by its name."""
        return self.model.embedding_sizes

    @property
    def backend(self) -> BackendRecord | None:
        """What computes the model; ``None`` for TensorFlow."""
        return self.model.backend

    def with_batch_size(self, batch_size: int) -> Self:
        """Return the same model, compiled for a batch size.

        Raises:
            ModelError: The model has a batch size of its own, and it is another.
        """
        if batch_size == self.batch_size:
            return self
        own = self.model.own_batch_size
        if own not in (None, batch_size):
            raise ModelError(
                f"The model takes exactly {plural(own, 'row')} per call. Received: "
                f"`model.batch_size` = {batch_size}. Set it to {own} or to auto."
            )
        return replace(self, batch_size=batch_size, step=self.model.compile(batch_size))

    def failing_rows(self, features: Rows) -> dict[int, str]:
        """Return the rows on which the model fails, each alone, with what it says of it.

        Raises:
            ModelFailed: It fails on rows together, and on none of them alone.
        """
        rows = np.arange(len(features[self.inputs[0].name]))
        size = self._search.batch_size or 1
        found: dict[int, str] = {}
        for start in range(0, len(rows), size):
            found |= _failing(self._search, features, rows[start : start + size])
        return found

    @cached_property
    def _search(self) -> Self:
        own = self.model.own_batch_size
        return self.with_batch_size(own or min(_SEARCH_ROWS, self.batch_size or _SEARCH_ROWS))

    def predict(self, features: Rows) -> dict[str, np.ndarray]:
        """Predict any number of rows, batch by batch; may be called from several threads at once.

        Args:
            features: An array ``[n, *shape]`` for each input, by name.

        Returns:
            An array ``[n, *shape]`` for each output, by name, float32 where the model computes in
            float16 or bfloat16, and ``[n, 1]`` where it gives one number for a row.

        Raises:
            ModelFailed: The model fails on some of the rows; `failing_rows` finds them.
        """
        if self.step is None or self.batch_size is None:
            raise ModelError("The batch size is not fixed yet. Call with_batch_size() first.")
        arrays = [_checked(features, field) for field in self.inputs]
        rows = _rows(arrays)
        if self.device == "gpu" or self.backend is not None:
            self._check_ids(arrays)
        results: list[np.ndarray] = []
        for start in range(0, rows, self.batch_size):
            stop = min(start + self.batch_size, rows)
            batch = self._call(self.step, [array[start:stop] for array in arrays])
            # The first batch tells shapes and dtypes; all others must agree with it.
            results = results or [np.empty((rows, *got.shape[1:]), got.dtype) for got in batch]
            for field, result, got in zip(self.outputs, results, batch, strict=True):
                check_shape(field.name, got, result.shape[1:])
                result[start:stop] = got[: stop - start]
        results = results or [
            np.empty((0, *(size or 0 for size in field.shape)), numpy_dtype(field.dtype))
            for field in self.outputs
        ]
        return {
            field.name: _widened(result)
            for field, result in zip(self.outputs, results, strict=True)
        }

    def _check_ids(self, arrays: Sequence[np.ndarray]) -> None:
        """Fail as TensorFlow does on a CPU, where others take zeros for an id without a row."""
        for field, array in zip(self.inputs, arrays, strict=True):
            size = self.embedding_sizes.get(field.name)
            if size is not None and (outside := (array < -size) | (array >= size)).any():
                raise ModelFailed(f"{array[outside][0]} is not in [0, {size})")

    def _call(self, step: Step, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        size = self.batch_size or 1
        # Where rows may influence one another, repeated ones would change the others.
        if not self.pads and len(arrays[0]) < size:
            return self.model.compile(len(arrays[0]))(arrays)
        return step([_padded(array, size) for array in arrays])


def _given(field: Field) -> Field:
    """Return an output as `_widened` leaves it."""
    dtype = "float32" if field.dtype in _NARROW_FLOATS else field.dtype
    return replace(field, shape=field.shape or (1,), dtype=dtype)


def _failing(predictor: ModelPredictor, features: Rows, rows: np.ndarray) -> dict[int, str]:
    """Find the rows on which the model fails, by halving; a call holds no others."""
    # Rows repeated to a full batch: another size would be another graph, and other rows could fail
    # in their place.
    call = np.resize(rows, predictor.batch_size or 1)
    try:
        predictor.predict({name: array[call] for name, array in features.items()})
    except ModelFailed as error:
        if len(rows) == 1:
            return {int(rows[0]): str(error)}
        left, right = np.array_split(rows, 2)
        found = _failing(predictor, features, left) | _failing(predictor, features, right)
        # It fails on these together and on no half of them: no row is to blame.
        if not found:
            raise
        return found
    return {}


def check_shape(name: str, predictions: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse predictions that have another shape than those before them."""
    if predictions.shape[1:] != shape:
        raise ModelError(
            f"The shape of the model's output `{name}` varies. Expected {shape} for each row, as "
            f"before. Received: {predictions.shape[1:]}. Choose an output of fixed size, with "
            "`model.outputs` or `model.layer`."
        )


def choose_outputs(names: Sequence[str], chosen: Sequence[str] | None) -> list[int]:
    """Return the places of the chosen outputs among all; ``None`` chooses the only one."""
    listed = ", ".join(names)
    if chosen is None and len(names) > 1:
        raise ModelError(
            f"The model has {len(names)} outputs: {listed}. Choose with `model.outputs` "
            f"(`--outputs`), for example [{names[0]}]."
        )
    for name in chosen or ():
        if name not in names:
            hint = did_you_mean(name, names)
            raise ModelError(f"The model has no output `{name}`. Expected one of: {listed}.{hint}")
    return [names.index(name) for name in chosen] if chosen is not None else [0]


def _checked(features: Rows, field: Field) -> np.ndarray:
    """Return the array of an input in the model's dtype, C-ordered; check that its shape fits."""
    array = features.get(field.name)
    if array is None:
        raise InputError(
            f"The model's input `{field.name}` is missing. Received: "
            f"{', '.join(features) or 'nothing'}."
        )
    if not fits(array.shape[1:], field.shape):
        raise InputError(
            f"The model's input `{field.name}` has the shape {('rows', *field.shape)}. Received: "
            f"an array of {array.shape}."
        )
    if field.dtype == "string":
        return array
    return np.ascontiguousarray(array, dtype=numpy_dtype(field.dtype))


def filler(inputs: Sequence[Field]) -> dict[str, np.ndarray]:
    """Return one row of zeros, or of empty strings."""
    return {
        field.name: np.full(
            (1, *(size or 1 for size in field.shape)),
            "" if field.dtype == "string" else 0,
            numpy_dtype(field.dtype),
        )
        for field in inputs
    }


def _rows(arrays: Sequence[np.ndarray]) -> int:
    counts = {len(array) for array in arrays}
    if len(counts) != 1:
        raise InputError(f"The model's inputs differ in their numbers of rows: {sorted(counts)}.")
    return counts.pop()


def _padded(array: np.ndarray, rows: int) -> np.ndarray:
    missing = rows - len(array)
    # With a real row, not zeros: what the model was never meant to see, it may fail at.
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


def _widened(result: np.ndarray) -> np.ndarray:
    """Widen float16 and bfloat16 to float32, and make one number for a row a vector of one."""
    if result.dtype.name in _NARROW_FLOATS:
        result = result.astype(np.float32)
    return result[:, np.newaxis] if result.ndim == 1 else result


@dataclass(frozen=True)
class IdentityPredictor:
    """The predictor of predictions that are stored already: it returns what it gets."""

    inputs: tuple[Field, ...] = ()
    batch_size: int | None = None
    device: Device = "cpu"
    threads: int = 1
    embedding_sizes: ClassVar[Mapping[str, int | None]] = {}
    backend: ClassVar[BackendRecord | None] = None

    @property
    def outputs(self) -> tuple[Field, ...]:
        """The inputs, one number for a row being a vector of one."""
        return tuple(replace(field, shape=field.shape or (1,)) for field in self.inputs)

    def with_batch_size(self, batch_size: int) -> Self:
        """Return the same; the batch size changes nothing here."""
        return replace(self, batch_size=batch_size)

    def failing_rows(self, features: Rows) -> dict[int, str]:  # noqa: ARG002
        """Return none: nothing is computed."""
        return {}

    def predict(self, features: Rows) -> dict[str, np.ndarray]:
        """Return the features themselves, ``[n]`` as ``[n, 1]``."""
        return {
            name: array[:, np.newaxis] if array.ndim == 1 else array
            for name, array in features.items()
        }


# What the pipeline predicts with.
Predictor = ModelPredictor | IdentityPredictor
