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
    with Stopwatch() as watch:
        predict(step, features, batch_size, wanted["cores"])
    watch.say(rows=len(features))


def predict(step: Any, features: np.ndarray, batch_size: int, cores: int) -> None:
    """Predict all rows, on a thread for each core."""
    shares = np.array_split(range(0, len(features), batch_size), cores)

    def work(starts: np.ndarray) -> None:
        for start in starts:
            step(tf.constant(features[start : start + batch_size])).numpy()

    threads = [threading.Thread(target=work, args=(starts,)) for starts in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def in_memory(path: str, batch_size: int) -> np.ndarray:
    """The features, in whole batches."""
    column = pq.read_table(path, columns=["features"])["features"].combine_chunks()
    return filled_up(column.flatten().to_numpy().reshape(len(column), -1), batch_size)


def filled_up(rows: np.ndarray, batch_size: int) -> np.ndarray:
    """The rows, the last batch filled up with the first ones."""
    return np.concatenate([rows, np.resize(rows, (-len(rows) % batch_size, rows.shape[1]))])


def compiled(model: Any, batch_size: int, features: np.ndarray) -> Any:
    """The model as one graph for batches of one size."""
    signature = [tf.TensorSpec((batch_size, *features.shape[1:]), tf.float32)]
    graph = tf.function(lambda batch: model(batch, training=False), input_signature=signature)
    return graph.get_concrete_function()


if __name__ == "__main__":
    main()
