"""One call of ``model.predict`` over an array in memory, at its best batch size.

Settings: ``model``, ``input`` (an NPY file). The best of 32 to 8192 is found on the first eighth of
the rows; TensorFlow has all cores.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from benchmarks.contenders.stopwatch import Stopwatch, settings

BATCH_SIZES = tuple(32 * 2**power for power in range(9))


def main() -> None:
    """Find the batch size, then predict all rows once."""
    wanted = settings()
    model = keras.saving.load_model(wanted["model"])
    images = np.load(wanted["input"])
    sample = images[: max(1, len(images) // 8)]
    sizes = [size for size in BATCH_SIZES if size <= len(sample)] or [len(sample)]
    tried = {size: seconds_of(model, sample, size) for size in sizes}
    best = min(sizes, key=tried.__getitem__)
    with Stopwatch() as watch:
        model.predict(images, batch_size=best, verbose=0)
    watch.say(rows=len(images), batch_size=best, tried=tried)


def seconds_of(model: Any, images: np.ndarray, batch_size: int) -> float:
    """Seconds for these images, after a first call that compiles."""
    model.predict(images[:batch_size], batch_size=batch_size, verbose=0)
    with Stopwatch() as watch:
        model.predict(images, batch_size=batch_size, verbose=0)
    return watch.seconds


if __name__ == "__main__":
    main()
