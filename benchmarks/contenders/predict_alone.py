"""Prediction alone, data in memory: what the model itself costs at the tool's batch size.

Settings: ``model``, ``input``, ``batch_size``, ``cores``. As many threads as cores, each calling
one compiled step that computes on one thread.
"""

from __future__ import annotations

import threading
from typing import Any

import keras
import numpy as np
import pyarrow.parquet as pq
import tensorflow as tf

from benchmarks.contenders.stopwatch import Stopwatch, settings


def main() -> None:
    """Predict all rows once."""
    wanted = settings()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    batch_size = wanted["batch_size"]
    features = in_memory(wanted["input"], batch_size)
    step = compiled(keras.saving.load_model(wanted["model"]), batch_size, features)
    step(tf.constant(features[:batch_size]))
    shares = np.array_split(range(0, len(features), batch_size), wanted["cores"])

    def predict(starts: np.ndarray) -> None:
        for start in starts:
            step(tf.constant(features[start : start + batch_size])).numpy()

    threads = [threading.Thread(target=predict, args=(starts,)) for starts in shares]
    with Stopwatch() as watch:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    watch.say(rows=len(features))


def in_memory(path: str, batch_size: int) -> np.ndarray:
    """The features, the last batch filled up with its first rows."""
    column = pq.read_table(path, columns=["features"])["features"].combine_chunks()
    rows: np.ndarray = column.flatten().to_numpy().reshape(len(column), -1)
    return np.concatenate([rows, np.resize(rows, (-len(rows) % batch_size, rows.shape[1]))])


def compiled(model: Any, batch_size: int, features: np.ndarray) -> Any:
    """The model as one graph for batches of one size."""
    signature = [tf.TensorSpec((batch_size, *features.shape[1:]), tf.float32)]
    graph = tf.function(lambda batch: model(batch, training=False), input_signature=signature)
    return graph.get_concrete_function()


if __name__ == "__main__":
    main()
