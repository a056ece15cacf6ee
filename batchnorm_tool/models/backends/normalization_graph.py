"""What `norms.normalization` does after prediction, as a graph: plain ``keras.ops`` on tensors.

Nothing of ours is in it, so that a file with it loads anywhere.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from batchnorm_tool.errors import JobError
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.norms.normalization import Normalization

# It takes the first 12 of float32's 24 bits: a product of two such numbers is exact (Dekker, 1971).
_SPLIT = 4097
_TINY = float(np.finfo(np.float32).tiny)


def normalize_tensor(x: Any, normalization: Normalization, axis: int | str = -1) -> tuple[Any, Any]:
    """Normalize the vectors of a tensor; float16 and bfloat16 are computed in float32.

    Args:
        x: ``[..., d]``, symbolic or not; integers are taken as float32.
        normalization: The norm, what is kept, and the direction that is projected off. How it is
            quantized does not matter here.
        axis: ``-1``, or ``"all"``: what follows the first axis is one vector.

    Returns:
        Vectors ``[..., k]`` and norms, with 1 for each axis of a vector: float32, or float64 where
        x is. A row of zeros stays zeros, its norm 0; a row whose largest component is below
        float32's smallest normal number, 1.18e-38, becomes zeros: runtimes flush it, or make NaN of
        it. A row with NaN or inf becomes NaN, and changes no other. A norm beyond the dtype's
        maximum is inf, and its vector right.

    Example:
        >>> from batchnorm_tool.norms.norm import L2
        >>> vectors, norms = normalize_tensor(np.float32([[3e38, 0], [3, 4]]), Normalization(L2))
        >>> np.asarray(vectors)
        array([[1. , 0. ],
               [0.6, 0.8]], dtype=float32)
    """
    from keras import ops

    x = ops.cast(x, "float64" if ops.dtype(x) == "float64" else "float32")
    if axis == "all" and not normalization.keeps_all:
        x, axis = ops.reshape(x, (-1, math.prod(x.shape[1:]))), -1
    if normalization.truncate is not None:
        x = x[..., : normalization.truncate]
    axes = tuple(range(1, len(x.shape))) if axis == "all" else (-1,)
    vectors, sizes = x, None
    if normalization.mean is not None:
        sizes = _rough_sizes(x)
        vectors = _projected(x / sizes, np.array(normalization.mean))
    if normalization.norm.name == "none":
        ones = ops.ones_like(ops.sum(x, axis=axes, keepdims=True))
        return vectors if sizes is None else vectors * sizes, ones
    vectors, norms = _divided_by_peaks(vectors, axes)
    lengths = _lengths(vectors, normalization.norm, axes)
    norms = norms * lengths
    return vectors / lengths, norms if sizes is None else norms * sizes


def checked_axis(axis: int | str | None) -> int | str:
    """Return -1, the default, or ``"all"``; anything else is refused."""
    if axis not in (None, -1, "-1", "all"):
        raise JobError(f"`axis` must be -1 or 'all'. Received: {axis!r}.")
    return "all" if axis == "all" else -1


def _divided_by_peaks(x: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
    """Divide each vector by its largest component: no power or sum of it leaves float32's range."""
    from keras import ops

    # Neither vectors nor norms depend on what is divided by first, and multiplied by at the end: it
    # has no gradient, where a compiler may compute NaN for one.
    peaks = ops.stop_gradient(ops.max(ops.abs(x), axis=axes, keepdims=True))
    is_zero = ops.less(peaks, _TINY)
    # Zeros never reach a division: behind one, `where` would hide NaN but not its gradient.
    divisors = ops.where(is_zero, ops.ones_like(peaks), peaks)
    quotients = ops.where(is_zero, ops.zeros_like(x), x / divisors)
    return quotients, ops.where(is_zero, ops.zeros_like(peaks), peaks)


def _rough_sizes(x: Any) -> Any:
    """Return powers of two, division by which rounds nothing, and keeps products in range."""
    from keras import ops

    peaks = ops.max(ops.abs(x), axis=-1, keepdims=True)
    small_or_not = ops.where(ops.less(peaks, 2.0**-40), 2.0**-64, 1.0)
    return ops.where(ops.greater(peaks, 2.0**40), 2.0**64, small_or_not)


def _lengths(x: Any, norm: Norm, axes: tuple[int, ...]) -> Any:
    """Measure vectors of which the largest component is 1; zeros count as 1."""
    from keras import ops

    sizes = ops.abs(x)
    is_max = norm.name == "max" or norm.p == math.inf
    power = 1.0 if norm.name == "l1" or is_max else norm.p or 2.0
    powers = sizes if power == 1 else sizes * sizes if power == 2 else ops.power(sizes, power)
    total = ops.sum(powers, axis=axes, keepdims=True)
    # Of all others it is 1 at least; their roots have a gradient.
    total = ops.where(ops.equal(total, 0.0), ops.ones_like(total), total)
    if is_max:  # 1, or NaN where there is one, which a maximum may overlook
        peaks = ops.max(sizes, axis=axes, keepdims=True)
        return ops.where(ops.equal(peaks, 0.0), total, peaks * (total / total))
    return total if power == 1 else ops.sqrt(total) if power == 2 else total ** (1 / power)


def _projected(x: Any, mean: np.ndarray) -> Any:
    """Return ``x - (x . mean) mean``, exact in float32 to the rounding of what is left."""
    from keras import ops

    rounded = mean.astype(ops.dtype(x))
    high = rounded * _SPLIT - (rounded * _SPLIT - rounded)
    low = (mean - high).astype(high.dtype)
    products = ops.sum(x * rounded, axis=-1, keepdims=True)
    # Where little is left of a vector, the rounding of one product would be much of it: most is
    # taken off by exact products, and the rest, which is small, once more.
    leading = products * _SPLIT - (products * _SPLIT - products)
    x = x - leading * high - leading * low
    return x - ops.sum(x * rounded, axis=-1, keepdims=True) * rounded
