"""Ray Data: ``read_parquet -> map_batches -> write_parquet``.

Settings: ``model``, ``input``, ``output``, ``batch_size``, ``cores``.

What it is given, so that it is at its best here: Arrow batches, which reach NumPy without a copy;
large batches; ``predict_on_batch``, which has none of the cost of a call of ``predict``; one actor
for each core, each computing on one thread, so that they do not get in each other's way; no
dashboard. (Actors reserve no CPU: on two cores, two of them would otherwise keep the tasks that
read and write waiting, and Ray warns that it may hang.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from benchmarks.contenders.stopwatch import Stopwatch, settings


class Scorer:
    """The model in an actor.

    Args:
        path: The model file.
    """

    def __init__(self, path: str) -> None:
        import keras
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        self._model: Any = keras.saving.load_model(path)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Unit vectors and norms of a batch."""
        column = batch["features"].combine_chunks()
        features = column.flatten().to_numpy().reshape(len(column), -1)
        vectors = np.asarray(self._model.predict_on_batch(features))
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        flat = pa.array((vectors / norms).ravel())
        lists = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        return pa.table({"id": batch["id"], "vector": lists, "norm": norms[:, 0]})


def main() -> None:
    """Score and normalize a table."""
    wanted = settings()
    ray.init(num_cpus=wanted["cores"], include_dashboard=False, log_to_driver=False)
    with Stopwatch() as watch:
        ray.data.read_parquet(wanted["input"]).map_batches(
            Scorer,
            fn_constructor_args=(wanted["model"],),
            batch_size=wanted["batch_size"],
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=wanted["cores"]),
            num_cpus=0,
        ).write_parquet(wanted["output"])
    watch.say()
    ray.shutdown()


if __name__ == "__main__":
    main()
