"""Prediction of changed rows alone, loading and compiling the model included, as a night does it.

Settings: ``model``, ``input``, ``rows`` and ``night`` of that table, ``batch_size``, ``cores``.
The rows that changed that night are in memory before the watch starts, and TensorFlow is awake;
otherwise as ``predict_alone``.
"""

from __future__ import annotations

import keras
import pyarrow.parquet as pq
import tensorflow as tf

from benchmarks.contenders.predict_alone import compiled, filled_up, predict
from benchmarks.contenders.stopwatch import Stopwatch, settings
from benchmarks.data import Table


def main() -> None:
    """Load the model and predict the rows once."""
    wanted = settings()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.constant(0.0).numpy()
    batch_size = wanted["batch_size"]
    column = pq.read_table(wanted["input"], columns=["features"])["features"]
    changed = Table(wanted["rows"], night=wanted["night"]).changed
    taken = column.take(changed).combine_chunks()
    features = filled_up(taken.flatten().to_numpy().reshape(len(taken), -1), batch_size)
    with Stopwatch() as watch:
        step = compiled(keras.saving.load_model(wanted["model"]), batch_size, features)
        predict(step, features, batch_size, wanted["cores"])
    watch.say(rows=len(taken))


if __name__ == "__main__":
    main()
