"""Encoded images as arrays, with Pillow (extra ``[images]``).

Pixels come out as they were stored: 0 to 255, neither scaled nor resized nor turned by an EXIF tag,
because those are the model's own preprocessing, and a guess at them would shift every prediction
without a word. Not promised: the low-order bits of `tf.io.decode_jpeg`, whose inverse DCT rounds
differently.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from batchnorm_tool.chunk import Reason
from batchnorm_tool.errors import JobError

if TYPE_CHECKING:
    from PIL import Image

Shape = tuple[int | None, ...]

# Pillow's modes by number of channels. Deeper ones (16-bit grey, float) do not fit into bytes.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_CHANNELS = {"1": 1, "L": 1, "LA": 1, "P": 3, "RGB": 3, "RGBA": 4, "CMYK": 3, "YCbCr": 3}

# What Pillow's decoders raise for damaged bytes.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    struct.error,
    zlib.error,
)


def is_image_shape(shape: Shape) -> bool:
    """Tell whether images fill this shape: ``(height, width)`` or ``(height, width, 1, 3 or 4)``.

    Example:
        >>> is_image_shape((224, 224, 3)), is_image_shape((64,))
        (True, False)
    """
    return len(shape) == 2 or (len(shape) == 3 and shape[2] in (None, *_MODES))


def decode_images(
    encoded: Sequence[bytes | None], kind: str, shape: Shape
) -> tuple[np.ndarray, np.ndarray]:
    """Decode images of one size, and mark those that are missing, damaged or of another size.

    Args:
        encoded: One file's bytes for each row, ``None`` where there is no image.
        kind: ``"jpeg"`` or ``"png"``; bytes of any other format are not decoded.
        shape: ``(height, width)`` for grey values or ``(height, width, channels)``; ``None`` stands
            for the most common size of those given. Colours are converted to that many channels.

    Returns:
        ``uint8[n, height, width(, channels)]``, 0 in bad rows, and the faults ``uint8[n]``:
        ``NULL_FEATURE``, ``UNDECODABLE_IMAGE``, or ``RAGGED_FEATURE`` where the size differs.

    Example:
        >>> images, faults = decode_images([b"no image"], "png", (2, 2, 3))
        >>> images.shape, Reason(faults[0]).label
        ((1, 2, 2, 3), 'undecodable_image')
    """
    _require_pillow()
    faults = np.zeros(len(encoded), np.uint8)
    known = None if None in shape else shape
    decoded: dict[int, np.ndarray] = {}
    for row, data in enumerate(encoded):
        image = None if data is None else _decode(data, kind, shape)
        if data is None:
            faults[row] = Reason.NULL_FEATURE
        elif image is None:
            faults[row] = Reason.UNDECODABLE_IMAGE
        elif known is None or image.shape == known:
            decoded[row] = image
        else:
            faults[row] = Reason.RAGGED_FEATURE
    return _collect(decoded, faults, known or _common_shape(decoded, shape)), faults


def _collect(decoded: dict[int, np.ndarray], faults: np.ndarray, shape: Shape) -> np.ndarray:
    images = np.zeros((len(faults), *(size or 0 for size in shape)), np.uint8)
    for row, image in decoded.items():
        if image.shape == shape:
            images[row] = image
        else:
            faults[row] = Reason.RAGGED_FEATURE
    return images


def _common_shape(decoded: dict[int, np.ndarray], shape: Shape) -> Shape:
    """Return the most common shape, the first of several; 1 for unknown sizes without images."""
    fitting = [image.shape for image in decoded.values() if _fits(image.shape, shape)]
    if not fitting:
        return tuple(size or 1 for size in shape)
    return Counter(fitting).most_common(1)[0][0]


def _fits(found: Shape, wanted: Shape) -> bool:
    return all(want in (None, have) for have, want in zip(found, wanted, strict=True))


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise JobError(
            "`input.decode` needs Pillow, which is not installed. "
            "Install it with: pip install 'batchnorm-tool[images]'"
        ) from error


def _decode(data: bytes, kind: str, shape: Shape) -> np.ndarray | None:
    """Return the pixels, or zeros of the image's own size where that is not the one wanted."""
    from PIL import Image

    damaged = (*_DAMAGED, Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        with Image.open(io.BytesIO(data), formats=[kind.upper()]) as image:
            return _pixels(image, shape)
    except damaged:
        return None


def _pixels(image: Image.Image, shape: Shape) -> np.ndarray | None:
    if image.mode not in _CHANNELS:
        return None
    channels = (shape[2] or _CHANNELS[image.mode]) if len(shape) == 3 else 1
    found = (image.height, image.width, channels)[: len(shape)]
    if not _fits(found, shape):
        # The header tells the size: what nobody wants is not decompressed, however large.
        return np.broadcast_to(np.uint8(0), found)
    return np.asarray(image.convert(_MODES[channels])).reshape(found)
