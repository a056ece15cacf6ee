"""What people write by hand: pandas, ``model.predict``, a norm, one file for each batch.

Settings: ``model``, ``input``, ``output``, ``batch_size`` (32 is what ``predict`` takes if nothing
is said). Everything else is as the libraries have it by default: TensorFlow uses all cores, pyarrow
reads 65,536 rows at a time, pandas writes with snappy.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from benchmarks.contenders.stopwatch import Stopwatch, settings


def main() -> None:
    """Score and normalize a table."""
    wanted = settings()
    model = keras.saving.load_model(wanted["model"])
    output = Path(wanted["output"])
    output.mkdir(parents=True)
    with Stopwatch() as watch:
        for number, batch in enumerate(pq.ParquetFile(wanted["input"]).iter_batches()):
            frame = batch.to_pandas()
            features = np.stack(frame["features"])
            vectors = model.predict(features, batch_size=wanted["batch_size"], verbose=0)
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            scored = {"id": frame["id"], "vector": list(vectors / norms), "norm": norms[:, 0]}
            pd.DataFrame(scored).to_parquet(output / f"part-{number:05}.parquet")
    watch.say()


if __name__ == "__main__":
    main()
