"""A process that imports and does nothing: what starting costs another.

Settings: ``modules``, the names of what that one imports, in a JSON file.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from pathlib import Path

from benchmarks.contenders.stopwatch import Stopwatch, settings


def main() -> None:
    """Import."""
    names = json.loads(Path(settings()["modules"]).read_text())
    with Stopwatch() as watch:
        for name in names:
            with contextlib.suppress(ImportError):  # others made it, under a name of their own
                importlib.import_module(name)
    watch.say(modules=len(names))


if __name__ == "__main__":
    main()
