"""Stored values, encoded images among them, turned into a model's dtype: exactly or not at all.

Rounding to a narrower float is what a model asks for. Everything else that would change a value is
refused, or (integers that a float cannot hold) warned of. Pixels come out as they were stored: 0 to
255, neither scaled nor resized nor turned by an EXIF tag, because those are the model's own
preprocessing, and a guess at them would shift every prediction without a word. Not promised: the
low-order bits of `tf.io.decode_jpeg`, whose inverse DCT rounds differently.
"""

from __future__ import annotations

import io
import math
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Field, Reason
from batchnorm_tool.errors import JobError, ModelError, warn
from batchnorm_tool.norms.norm import numpy_dtype

if TYPE_CHECKING:
    from PIL import Image

Shape = tuple[int | None, ...]
STRING = "string"

_LARGEST = sys.float_info.max
_WHOLE = np.frompyfunc(int, 1, 1)
# Pillow's modes by number of channels. Deeper ones (16-bit grey, float) do not fit into bytes.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_CHANNELS = {"1": 1, "L": 1, "LA": 1, "P": 3, "RGB": 3, "RGBA": 4, "CMYK": 3, "YCbCr": 3}
# What Pillow's decoders raise for damaged bytes.
_DAMAGED = (
    EOFError,
    IndexError,
    KeyError,
    OSError,
    OverflowError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Conversion:
    """Values of one column on their way to one model input; without ``fill``, a null is a fault."""

    column: str
    field: Field
    fill: float | str | None = None

    def filler(self) -> float | str | None:
        """Return ``fill``, checked to be a value of the input's dtype."""
        if self.fill is None:
            return None
        if isinstance(self.fill, str):
            held = self.field.dtype == STRING
        else:
            held = self.field.dtype != STRING and _holds(array_dtype(self.field), self.fill)
        if not held:
            raise JobError(
                f"`input.fill.{self.column}` does not fit the model input `{self.field.name}`. "
                f"Expected a value of type {self.field.dtype}. Received: {self.fill!r}."
            )
        return self.fill


def array_dtype(field: Field) -> np.dtype:
    """Return the NumPy dtype of the array for a model input; ``object`` for strings."""
    try:
        dtype = numpy_dtype(field.dtype)
    except TypeError:
        dtype = np.dtype(np.void)
    if dtype.kind not in "fiub" and field.dtype not in (STRING, "bfloat16"):
        raise ModelError(
            f"The model input `{field.name}` needs a type that no column can provide. Expected "
            f"integers, floats, booleans or strings. Received: {field.dtype}. Choose another "
            "signature or layer, or add a cast in front of the model."
        )
    return dtype


def is_float(dtype: np.dtype) -> bool:
    """Tell whether a dtype has NaN; bfloat16 is no float to NumPy itself."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def fits(found: Shape, wanted: Shape) -> bool:
    """Tell whether a shape is the one wanted, in which ``None`` stands for any size."""
    return len(found) == len(wanted) and all(
        want in (None, have) for have, want in zip(found, wanted, strict=True)
    )


def numbers_of(values: pa.Array, *, whole: bool = False) -> np.ndarray:
    """Return Arrow numbers as a read-only array, copied only if they are booleans or decimals.

    What stands in the place of a null is arbitrary. Decimals are rounded once, to float64, unless
    they are whole by their type or wanted so: then the dtype is ``object``.
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
    """Return numbers ``[n, width]`` in the dtype of a model input, copied only to another dtype.

    With them a `Reason` for each of ``n`` rows (uint8): where an integer dtype cannot hold a number
    of the row, which then became 0: NaN, infinite, with a fraction, or too large. ``None`` where
    all are held.
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


def is_image_shape(shape: Shape) -> bool:
    """Tell whether images fill ``(height, width)`` or ``(height, width, 1, 3 or 4)``."""
    return len(shape) == 2 or (len(shape) == 3 and shape[2] in (None, *_MODES))


def decode_images(
    encoded: Sequence[bytes | None], kind: str, shape: Shape
) -> tuple[np.ndarray, np.ndarray]:
    """Decode images of one size, and mark those that are missing, damaged or of another size.

    Bytes of another format than ``kind``, ``"jpeg"`` or ``"png"``, are not decoded. The ``shape``
    is ``(height, width)`` for grey values or ``(height, width, channels)``, to which colours are
    converted; ``None`` in it stands for the most common size of those given.

    Returns:
        ``uint8[n, height, width(, channels)]``, 0 in bad rows, and the faults ``uint8[n]``:
        ``NULL_FEATURE``, ``UNDECODABLE_IMAGE``, or ``RAGGED_FEATURE`` where the size differs.
    """
    pillow = import_pillow()
    decoded = [None if data is None else _decode(pillow, data, kind, shape) for data in encoded]
    size = shape if None not in shape else _common_shape(decoded, shape)
    images = np.zeros((len(encoded), *(length or 0 for length in size)), np.uint8)
    faults = np.zeros(len(encoded), np.uint8)
    for row, image in enumerate(decoded):
        if image is None:
            is_null = encoded[row] is None
            faults[row] = Reason.NULL_FEATURE if is_null else Reason.UNDECODABLE_IMAGE
        elif image.shape != size:
            faults[row] = Reason.RAGGED_FEATURE
        else:
            images[row] = image
    return images, faults


def _common_shape(decoded: Iterable[np.ndarray | None], shape: Shape) -> Shape:
    """Return the most common shape, the first of several; 1 for unknown sizes without images."""
    shapes = [image.shape for image in decoded if image is not None and fits(image.shape, shape)]
    return Counter(shapes).most_common(1)[0][0] if shapes else tuple(size or 1 for size in shape)


def import_pillow() -> Any:
    """Import Pillow, which is an extra."""
    try:
        from PIL import Image
    except ImportError as error:
        raise JobError(
            "`input.decode` needs Pillow, which is not installed. "
            "Install it with: pip install 'batchnorm-tool[images]'"
        ) from error
    return Image


def _decode(pillow: Any, data: bytes, kind: str, shape: Shape) -> np.ndarray | None:
    """Return the pixels, or zeros of the image's own size where that is not the one wanted."""
    try:
        with pillow.open(io.BytesIO(data), formats=[kind.upper()]) as image:
            return _pixels(image, shape)
    except (*_DAMAGED, pillow.DecompressionBombError, pillow.DecompressionBombWarning):
        return None


def _pixels(image: Image.Image, shape: Shape) -> np.ndarray | None:
    if image.mode not in _CHANNELS:
        return None
    channels = (shape[2] or _CHANNELS[image.mode]) if len(shape) == 3 else 1
    found = (image.height, image.width, channels)[: len(shape)]
    if not fits(found, shape):
        # The header tells the size: what nobody wants is not decompressed, however large.
        return np.broadcast_to(np.uint8(0), found)
    return np.asarray(image.convert(_MODES[channels])).reshape(found)
