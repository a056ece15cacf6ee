"""Spark: ``predict_batch_udf`` over a Parquet table.

Settings: ``model``, ``input``, ``output``, ``batch_size``, ``cores``.

What it is given, so that it is at its best here: one thread for each core, Arrow batches as large
as the model's batches, ``predict_on_batch`` on one TensorFlow thread in each Python worker, the
norm in the same function (so that rows cross into Python once), workers that are kept, and enough
memory for the JVM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping

import numpy as np
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql.types import ArrayType, FloatType, StructField, StructType

from benchmarks.contenders.stopwatch import Stopwatch, settings

os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
RESULT = StructType(
    [StructField("vector", ArrayType(FloatType())), StructField("norm", FloatType())]
)


def main() -> None:
    """Score and normalize a table."""
    wanted = settings()
    session = (
        SparkSession.builder.master(f"local[{wanted['cores']}]")
        .config("spark.driver.memory", "4g")
        .config("spark.ui.enabled", "false")
        .config("spark.python.worker.reuse", "true")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", wanted["batch_size"])
        .getOrCreate()
    )
    with Stopwatch() as watch:
        score = predict_batch_udf(
            scorer_of(wanted["model"]),
            return_type=RESULT,
            batch_size=wanted["batch_size"],
            input_tensor_shapes=[[wanted["features"]]],
        )
        scored = session.read.parquet(wanted["input"]).withColumn("scored", score("features"))
        scored.select("id", "scored.*").write.parquet(wanted["output"])
    watch.say()
    session.stop()


def scorer_of(path: str) -> Callable[[], Callable[[np.ndarray], Mapping[str, np.ndarray]]]:
    """What makes the prediction function in a Python worker."""

    def load() -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
        import keras
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        model = keras.saving.load_model(path)

        def score(features: np.ndarray) -> Mapping[str, np.ndarray]:
            vectors = np.asarray(model.predict_on_batch(features))
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            return {"vector": vectors / norms, "norm": norms[:, 0]}

        return score

    return load


if __name__ == "__main__":
    main()
