"""Stored values turned into a model's dtype, exactly or not at all.

Rounding to a narrower float is what a model asks for. Everything else that would change a value is
refused, or (integers that a float cannot hold) warned of.
"""

import math
import sys
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Field, Reason
from batchnorm_tool.errors import JobError, ModelError, warn

STRING = "string"

_LARGEST = sys.float_info.max
_WHOLE = np.frompyfunc(int, 1, 1)


@dataclass(frozen=True)
class Conversion:
    """Values of one column on their way to one model input.

    Attributes:
        column: Name of the column.
        field: The model input.
        fill: What stands for a null; ``None`` where a null makes a bad row.
    """

    column: str
    field: Field
    fill: float | str | None = None

    def filler(self) -> float | str | None:
        """Return ``fill``, checked to be a value of the input's dtype."""
        if self.fill is None:
            return None
        if isinstance(self.fill, str):
            fits = self.field.dtype == STRING
        else:
            fits = self.field.dtype != STRING and _holds(array_dtype(self.field), self.fill)
        if not fits:
            raise JobError(self._wrong_fill())
        return self.fill

    def _wrong_fill(self) -> str:
        return (
            f"`input.fill.{self.column}` does not fit the model input `{self.field.name}`. "
            f"Expected a value of type {self.field.dtype}. Received: {self.fill!r}."
        )


def array_dtype(field: Field) -> np.dtype:
    """Return the NumPy dtype of the array for a model input; ``object`` for strings.

    Example:
        >>> from batchnorm_tool.chunk import Field, Reason
        >>> array_dtype(Field("x", (3,), "float32"))
        dtype('float32')
    """
    if field.dtype == STRING:
        return np.dtype(object)
    if field.dtype == "bfloat16":
        import ml_dtypes  # a twentieth of a run with nothing to do

        return np.dtype(ml_dtypes.bfloat16)
    try:
        dtype = np.dtype(field.dtype)
    except TypeError:
        dtype = np.dtype(np.void)
    if dtype.kind not in "fiub":
        raise ModelError(
            f"The model input `{field.name}` needs a type that no column can provide. Expected "
            f"integers, floats, booleans or strings. Received: {field.dtype}. Choose another "
            "signature or layer, or add a cast in front of the model."
        )
    return dtype


def is_float(dtype: np.dtype) -> bool:
    """Tell whether a dtype has NaN; bfloat16 is no float to NumPy itself."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def numbers_of(values: pa.Array, *, whole: bool = False) -> np.ndarray:
    """Return Arrow numbers as a NumPy array, without a copy but for booleans and decimals.

    Returns:
        One number for each value, read-only; an arbitrary one in the place of a null. Decimals are
        rounded once, to float64, unless they are whole by their type or wanted so: then the dtype
        is ``object``.

    Example:
        >>> numbers_of(pa.array([2**62 + 1, 5])).tolist()
        [4611686018427387905, 5]
    """
    if pa.types.is_null(values.type):
        return np.zeros(len(values), np.float32)
    if pa.types.is_decimal(values.type):
        if whole or values.type.scale <= 0:
            exact = [number or 0 for number in values.to_pylist()]
            return np.fromiter(exact, object, len(exact))
        # Through text: Arrow's own cast gave another last bit for 270 of 2,000 decimals(10, 2).
        values = values.cast(pa.string()).cast(pa.float64())
    # Not `to_numpy`: of integers with nulls it makes floats, and rounds them; and it imports
    # pandas, which takes half as long as all the rest of a run with nothing to do.
    is_boolean = pa.types.is_boolean(values.type)
    plain = values.cast(pa.uint8()) if is_boolean else values
    dtype = np.dtype(plain.type.to_pandas_dtype())
    data = plain.buffers()[1] or b""
    numbers = np.frombuffer(data, dtype, len(plain), plain.offset * dtype.itemsize)
    numbers.flags.writeable = False  # the memory may be another array's
    return numbers.view(np.bool_) if is_boolean else numbers


def texts_of(values: pa.Array) -> np.ndarray:
    """Return Arrow strings as an object array of ``str``, with ``""`` in the place of a null."""
    if pa.types.is_null(values.type):
        return np.full(len(values), "", object)
    texts = values.to_numpy(zero_copy_only=False)
    if values.null_count:
        texts[values.is_null().to_numpy(zero_copy_only=False)] = ""
    return texts


def convert(numbers: np.ndarray, conversion: Conversion) -> tuple[np.ndarray, np.ndarray | None]:
    """Return numbers in the dtype of a model input.

    Args:
        numbers: ``[n, width]``, any numeric dtype.
        conversion: For which column and input.

    Returns:
        The numbers, copied only where the dtype differs, and a `Reason` for each of ``n`` rows
        (uint8): where an integer dtype cannot hold a number of the row, because it is NaN or
        infinite, has a fraction, or is too large. It became 0. ``None`` where all are held.
    """
    dtype = array_dtype(conversion.field)
    if numbers.dtype == dtype:
        return numbers, None
    is_exact = numbers.dtype == object  # decimals
    if is_float(dtype):
        if is_exact or numbers.dtype.kind in "iu":
            _warn_if_rounded(numbers, dtype, conversion)
        with np.errstate(over="ignore", invalid="ignore"):
            floats = numbers.astype(np.float64) if is_exact else numbers
            return floats.astype(dtype), None
    nonfinite = np.zeros(numbers.shape, bool) if is_exact else ~np.isfinite(numbers)
    unfit = _is_changed(np.where(nonfinite, 0, numbers), dtype)
    wrong = nonfinite | unfit
    if not wrong.any():
        return numbers.astype(dtype), None
    reasons = np.where(unfit.any(axis=1), Reason.UNFIT_FEATURE, Reason.GOOD).astype(np.uint8)
    reasons[nonfinite.any(axis=1)] = Reason.NONFINITE_FEATURE
    return np.where(wrong, 0, numbers).astype(dtype), reasons


def nonfinite_rows(array: np.ndarray) -> np.ndarray | None:
    """Return ``bool[n]``: rows of ``[n, width]`` with a NaN or infinity; ``None`` for none."""
    if not is_float(array.dtype):
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        # One number tells of all: a sum with NaN or inf in it is never finite.
        total = np.add.reduce(array, axis=None)
    if np.isfinite(total):  # so is each of them; where only the sum overflows, it takes longer
        return None
    finite = np.isfinite(array)
    return None if finite.all() else ~finite.all(axis=1)


def _is_changed(numbers: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return ``bool[n, width]``: where an integer dtype cannot hold a finite number as it is."""
    low, high = _bounds(dtype)
    if numbers.dtype.kind == "f":
        wide = numbers.astype(np.float64)
        # Not `> high`: as a float64 the largest int64 would be 2**63, which it is not; one more
        # than it, a power of two, is exact.
        return (np.trunc(wide) != wide) | (wide < low) | (wide >= float(high + 1))
    if numbers.dtype == object:
        changed = (_WHOLE(numbers) != numbers) | (numbers < low) | (numbers > high)
        return np.asarray(changed, bool)
    # NumPy compares a Python integer beyond the dtype's range by its true value.
    return np.asarray((numbers < low) | (numbers > high))


def _warn_if_rounded(numbers: np.ndarray, dtype: np.dtype, conversion: Conversion) -> None:
    """Warn of integers with more significant bits than the float dtype has."""
    import ml_dtypes

    limit = 2 ** (ml_dtypes.finfo(dtype).nmant + 1)
    large = numbers[(numbers > limit) | (numbers < -limit)]
    if large.dtype == object:
        sizes = np.abs(_WHOLE(large))
    else:
        # Two's complement gives the right absolute value even for the least of all integers.
        sizes = (large if large.dtype.kind == "u" else np.abs(large.astype(np.int64))).astype("u8")
    # A float holds an integer if its bits from the first to the last 1 fit: 2**60 does, 2**60 + 1
    # does not.
    lowest_bit = sizes & (~sizes + sizes.dtype.type(1))
    if (sizes // np.maximum(lowest_bit, 1) > limit).any():
        warn(
            f"The column `{conversion.column}` contains integers beyond {limit}, which the model "
            f"input `{conversion.field.name}` of type {dtype.name} rounds to the same values. If "
            "they are identifiers, do not use them as a feature."
        )


def _holds(dtype: np.dtype, number: float) -> bool:
    if is_float(dtype):
        with np.errstate(over="ignore"):
            held = float(dtype.type(number)) if abs(number) <= _LARGEST else math.inf
        return held == number if isinstance(number, int) else math.isfinite(held)
    low, high = _bounds(dtype)
    return low <= number <= high and number == int(number)


def _bounds(dtype: np.dtype) -> tuple[int, int]:
    if dtype.kind == "b":
        return 0, 1
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)
