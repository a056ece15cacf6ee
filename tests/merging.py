"""Statistics in pieces: rows split anywhere, records as they are stored, and what must agree."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import strategies as st


def pieces_of(x: np.ndarray, data: st.DataObject) -> list[np.ndarray]:
    cuts = data.draw(st.lists(st.integers(0, len(x)), max_size=4).map(sorted))
    return np.split(x, cuts)


def unsplit(stats: Any) -> Any:
    """What must not depend on how rows are split: everything but the moments."""
    if isinstance(stats, dict):
        moments = ("mean", "m2", "std")
        return {name: unsplit(value) for name, value in stats.items() if name not in moments}
    return stats


def through_json(data: dict[str, Any]) -> Any:
    return json.loads(json.dumps(data, allow_nan=False, sort_keys=True))
