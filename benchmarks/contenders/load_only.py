"""Importing TensorFlow and loading the model: the memory that no scorer can do without.

Settings: ``model``.
"""

from __future__ import annotations

from benchmarks.contenders.stopwatch import Stopwatch, settings


def main() -> None:
    """Import and load."""
    with Stopwatch() as watch:
        import keras

        keras.saving.load_model(settings()["model"])
    watch.say()


if __name__ == "__main__":
    main()
