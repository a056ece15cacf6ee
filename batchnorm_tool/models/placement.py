"""What a prediction depends on beside its row, and the batch size that is chosen for it."""

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from batchnorm_tool import environment
from batchnorm_tool.chunk import Field
from batchnorm_tool.display import plural
from batchnorm_tool.errors import ModelError, ModelFailed
from batchnorm_tool.models.batching import IdentityPredictor, Predictor, Rows
from batchnorm_tool.models.cache import Key, ModelCache
from batchnorm_tool.storage.checked_json import Positive, Record

# What the speed of a size depends on beside model and machine.
_VERSIONED = ("tensorflow", "keras", "onnxruntime", "batchnorm-tool")
# Rows that are predicted to learn what the model does: a slow one takes seconds for each.
_FEW_ROWS = 8
# Parts of the largest number in a column. The same batch has the same bits again, and in a batch of
# the same size a row keeps them whoever is beside it, unless the model makes room for the longest
# row (0.002 was seen in float16); at another size or place other kernels compute it, and where a
# model rounds or takes a maximum a few rows may tip over.
_NOISE_AGAIN, _NOISE_BESIDE, _NOISE_ELSEWHERE = 1e-5, 1e-2, 2e-2
SMALLEST, LARGEST = 32, 8192
_SECONDS = 2.0
_CALLS = 3
# One size is tried this long at least, where three calls take less: a call of half a millisecond
# varies by a third, the shortest of a hundred hardly. And this long at most.
_SIZE_SECONDS = (0.1, 0.5)
# Where a call is this short, its own cost dominates, and the next size can be four times as large.
_SHORT_CALL = 0.002
# Of sizes that differ by less than this, the largest that the caches hold: what the tool does for
# each call and chunk is not in the measurement. 1 M rows of 128 took 15.4 CPU seconds at 1,024 and
# 12.5 at 8,192; vectors of 4,096 lost half their rate at 8,192, which is 134 MB.
_EQUAL = 0.95
_CACHED_BYTES = 8 * 2**20
# Activations beside the arrays that go in and out: what wide layers and convolutions need.
_WORKING_FACTOR = 16


@dataclass(frozen=True)
class FastestBatch(Record):
    """What was measured: rows of one call."""

    rows: Positive


def independent_batch_size(predictor: Predictor, sample: Rows, sizes: Sequence[int]) -> int | None:
    """Return the first of several batch sizes at which a row's bits do not depend on its place.

    ``None`` where none will do. Found by trying on the sample: strong evidence, and no proof.
    """
    # Where a matrix product has rows left over behind its last full block, another kernel computes
    # those, and may round otherwise. Blocks of float32 are 4 to 24 rows long on the CPUs of today,
    # so that three quarters of a power of two, 48 times another power of two, leaves none over.
    for size in filter(None, sizes):
        try:
            sized = predictor.with_batch_size(size)
        except ModelError:  # the model has a batch size of its own
            continue
        if is_place_independent(sized, sample, size):
            return size
    return None


def is_place_independent(predictor: Predictor, sample: Rows, batch_size: int) -> bool:
    """Tell, by a sample, whether rows get the same bits wherever they stand in a batch."""
    batch = repeated(sample, batch_size)
    expected = predictor.predict(batch)
    # Every row is moved into the first block, the last one, and two between.
    for shift in {1, 5, batch_size // 3, batch_size // 2 + 1}:
        moved = predictor.predict({name: np.roll(array, shift, 0) for name, array in batch.items()})
        for name, predictions in moved.items():
            if np.roll(predictions, -shift, 0).tobytes() != expected[name].tobytes():
                return False
    return True


def examine(
    model: Predictor, sized: Predictor, sample: Rows, *, batch_dependent: bool
) -> tuple[Field, ...]:
    """Return a model's outputs with true shapes and dtypes, if each row's depend on it alone."""
    # Few rows first: on a slow model, or one that fails, a whole batch would take minutes.
    few = model if model.batch_size else model.with_batch_size(_FEW_ROWS)
    rows = few.batch_size or 1
    try:
        batch, expected = _distinct(few, repeated(sample, rows))
    except MemoryError as error:
        raise _too_large(rows, error) from error
    outputs = tuple(_true_field(output.name, expected[output.name]) for output in few.outputs)
    elsewhere = sized.predict(repeated(batch, sized.batch_size or 1))
    mixed = not batch_dependent and (
        _is_other(expected, elsewhere) or _is_mixed(few, batch, expected)
    )
    # Refused first: a model that draws random numbers looks mixed, too.
    if _distances(expected, few.predict(batch)).max() > _NOISE_AGAIN:
        raise ModelError(
            "The model's predictions for the same rows differ from call to call: it keeps state, "
            "or draws random numbers. Expected predictions that depend on the row alone. Save it "
            "without that (stateful=False; no dropout, noise or sampling with training=True), or "
            "choose another output or `model.layer`."
        )
    if mixed:
        raise ModelError(
            "The model's predictions for a row depend on the other rows of its batch: it computes "
            "over the batch (such as BatchNormalization with training=True, or a mean or softmax "
            "over axis 0). Expected predictions that depend on the row alone. Change the model, "
            "or set `model.batch_dependent: accept` and `model.batch_size`: rows are then "
            "predicted in the same batches as by model.predict with this batch size."
        )
    return outputs


def _too_large(rows: int, error: MemoryError) -> ModelError:
    return ModelError(
        f"The model needs more memory than this machine has for {plural(rows, 'row')} ({error}). "
        "Use a smaller model, a `model.batch_size` below that, or a machine with more memory."
    )


def _true_field(name: str, predictions: np.ndarray) -> Field:
    shape, dtype = predictions.shape[1:], predictions.dtype
    if dtype.kind in "OSUc" or 0 in shape:
        raise ModelError(
            f"The output `{name}` cannot be normalized. Expected real numbers, at least one per "
            f"row. Received: dtype {dtype}, shape {('rows', *shape)}. Choose another with "
            "`model.outputs` or `model.layer`."
        )
    return Field(name, shape, str(dtype))


def repeated(sample: Rows, rows: int) -> dict[str, np.ndarray]:
    """Return the rows of a sample, over and over until there are so many."""
    return {name: np.resize(array, (rows, *array.shape[1:])) for name, array in sample.items()}


def _distinct(predictor: Predictor, batch: Rows) -> tuple[Rows, Rows]:
    """Return distinct rows and what is predicted for them; equal ones would hide a lot."""
    if all((array == array[:1]).all() for array in batch.values()):
        varied = {name: array.copy() for name, array in batch.items()}
        for array in varied.values():
            array[1::2] = _larger(array, 2)[1::2]
        with contextlib.suppress(ModelFailed):
            return varied, predictor.predict(varied)
    return batch, predictor.predict(batch)


def _is_mixed(predictor: Predictor, batch: Rows, expected: Rows) -> bool:
    """Tell whether a row's prediction changes with the rows beside it, or with its place."""
    for place, other in _other_neighbours(batch, predictor.batch_size or 1):
        try:
            found = predictor.predict(other)
        except ModelFailed:  # these neighbours are no rows for this model
            continue
        if _distances(expected, found)[place] > _NOISE_BESIDE:
            return True
    moved = predictor.predict({name: np.roll(array, 3, 0) for name, array in batch.items()})
    return _is_other(expected, {name: np.roll(array, -3, 0) for name, array in moved.items()})


def _is_other(expected: Rows, found: Rows) -> bool:
    """Tell whether most of the rows, computed elsewhere, are others."""
    # The median: a few rows may tip over for reasons of rounding, a mixed model moves them all.
    return bool(np.median(_distances(expected, found)) > _NOISE_ELSEWHERE)


def _other_neighbours(batch: Rows, rows: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield batches in which one row stands where it stood, and all others are other rows."""
    middle = rows // 2 | 1 if rows > 1 else 0
    for place, change in (
        *((0, _filler), (rows - 1, _filler)),
        *((0, _far), (middle, _far)),
        (middle, lambda array: np.roll(array, 1, 0)),
    ):
        other = {name: change(array) for name, array in batch.items()}
        for name, array in batch.items():
            other[name][place] = array[place]
        yield place, other


def _filler(array: np.ndarray) -> np.ndarray:
    return np.full_like(array, "" if array.dtype == object else 0)


def _far(array: np.ndarray) -> np.ndarray:
    return _larger(array, 100)


def _larger(array: np.ndarray, factor: int) -> np.ndarray:
    if np.issubdtype(array.dtype, np.floating):
        with np.errstate(over="ignore"):
            return factor * array + factor
    return np.full_like(array, "a" if array.dtype == object else 1)


def _distances(expected: Rows, found: Rows) -> np.ndarray:
    """Say how far each row is from what is expected at most, in parts of its column's maximum."""
    farthest = np.zeros(1)
    for name, predictions in expected.items():
        if predictions.shape[1:] != found[name].shape[1:]:
            return np.full(len(predictions), np.inf)
        rows = min(len(predictions), len(found[name]))
        a, b = (each[:rows].reshape(rows, -1).astype(float) for each in (predictions, found[name]))
        with np.errstate(all="ignore"):
            # By column: beside one of 1e6, a change in one of 1e-3 would be no more than rounding.
            scale = np.abs(np.nan_to_num(a, posinf=0, neginf=0)).max(0)
            apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b) / scale)
        farthest = np.fmax(farthest, np.nan_to_num(apart, nan=np.inf).max(1))
    return farthest


def remembered_batch_size(predictor: Predictor, sample: Rows, rows: int, model: Key) -> int:
    """Return what `choose_batch_size` found on this machine before, or finds now, which is kept.

    ``model`` names the model's content, and what of it is computed.
    """
    if predictor.batch_size is not None:
        return predictor.batch_size
    key: Key = {
        "model": model,
        "inputs": {name: [str(each.dtype), *each.shape[1:]] for name, each in sample.items()},
        "range": _range(sample, rows),
        "backend": str(predictor.backend),
        "runs on": [predictor.device, predictor.threads, environment.available_cores()],
        "cpu": environment.cpu(),
        "versions": environment.versions(_VERSIONED),
    }

    def choose() -> FastestBatch:
        return FastestBatch(choose_batch_size(predictor, sample, rows))

    return ModelCache.of_user().remembered("batch-size", key, FastestBatch, choose).rows


def choose_batch_size(predictor: Predictor, sample: Rows, rows: int) -> int:
    """Measure which batch size is fastest."""
    # Tries powers of two from 32 to 8192 rows, up to the next power of two from `rows`, for about 2
    # seconds or three calls of the model, whichever is longer (compiling not counted), and within a
    # quarter of the free memory. The choice depends on the machine's mood: fix it once, and keep
    # it.
    if predictor.batch_size is not None:
        return predictor.batch_size
    size, largest = _range(sample, rows)
    speeds: dict[int, float] = {}
    calls, spent = 0, 0.0
    while size <= largest and (calls < _CALLS or spent < _SECONDS):
        try:
            seconds = _seconds(predictor.with_batch_size(size), sample, size, _SECONDS - spent)
        except MemoryError as error:
            # Beyond the smallest size, running out of memory only ends the search.
            if not speeds:
                raise _too_large(size, error) from error
            break
        calls, spent = calls + len(seconds), spent + sum(seconds)
        # The shortest call: what else the machine does only ever adds time.
        speeds[size] = size / min(seconds)
        step = 4 if min(seconds) < _SHORT_CALL else 2
        size = min(size * step, largest) if size < largest else largest + 1
    return _chosen(speeds, _row_bytes(predictor, sample)) if speeds else SMALLEST


def _chosen(speeds: Mapping[int, float], row_bytes: int) -> int:
    """Return the largest of the fastest sizes that the caches hold, else the smallest of them."""
    enough = _EQUAL * max(speeds.values())
    fastest = [size for size, speed in speeds.items() if speed >= enough]
    cached = [size for size in fastest if size * row_bytes <= _CACHED_BYTES]
    return max(cached, default=min(fastest))


def _row_bytes(predictor: Predictor, sample: Rows) -> int:
    """Return bytes of one row of features and predictions, these as float32."""
    given = sum(array[:1].nbytes for array in sample.values())
    return given + sum(replace(out, dtype="float32").row_bytes for out in predictor.outputs)


def _range(sample: Rows, rows: int) -> tuple[int, int]:
    """Return the smallest and the largest size to try, powers of two; none for no rows."""
    if not rows or not all(map(len, sample.values())):
        return 1, 0
    wanted = 1 << (rows - 1).bit_length()
    row_bytes = sum(array.nbytes // max(1, len(array)) for array in sample.values())
    # A quarter, for other workers and parts in flight share what is free.
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fitting = free // 4 // max(1, row_bytes * _WORKING_FACTOR)
    in_memory = 1 << max(0, fitting.bit_length() - 1)
    return min(SMALLEST, wanted), min(LARGEST, wanted, max(SMALLEST, in_memory))


def _seconds(predictor: Predictor, sample: Rows, size: int, left: float) -> list[float]:
    """Return seconds of calls of ``size`` rows, at least one; the first also warms up."""
    batch = repeated(sample, size)
    seconds: list[float] = []
    least, most = (min(each, left) for each in _SIZE_SECONDS)
    while not seconds or sum(seconds) < (most if len(seconds) < _CALLS else least):
        start = time.perf_counter()
        predictor.predict(batch)
        seconds.append(time.perf_counter() - start)
    return seconds


def rows_per_second(predictor: Predictor, sample: Rows) -> float:
    """Return what is predicted in a second at full batches; ``inf`` of stored predictions."""
    if predictor.batch_size is None or isinstance(predictor, IdentityPredictor):
        return math.inf
    batch = repeated(sample, predictor.batch_size)
    start = time.perf_counter()
    predictor.predict(batch)
    return predictor.batch_size / max(time.perf_counter() - start, 1e-9)
