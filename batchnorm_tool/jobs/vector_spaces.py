"""Whether two sets of predictions lie in one vector space, as far as their provenance tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchnorm_tool.predictions import Predictions

# Digits of a hash that messages show.
_DIGITS = 12


@dataclass(frozen=True)
class SpaceComparison:
    """Two vector spaces.

    Attributes:
        same: Whether they are one; ``None`` where that is not known.
        words: What a person should know of it, as a sentence or two; empty where they are one.
    """

    same: bool | None
    words: str = ""


def compare_spaces(a: Predictions, b: Predictions) -> SpaceComparison:
    """Tell whether two sets lie in one space.

    Of runs, the raw predictions are compared, so that their norms make no difference. Of runs over
    predictions that were stored already nobody knows the model.

    Args:
        a: One set.
        b: The other.
    """
    one, other = a.provenance or {}, b.provenance or {}
    if not (one.get("space") and other.get("space")):
        return SpaceComparison(None)
    if not ("made_of" in one and "made_of" in other):  # lone parts tell no more than the space's id
        same = None if one["space"] == other["space"] else False
        parts = ["the space that their files name"]
    else:
        before, after = _raw_space(one), _raw_space(other)
        parts = [name for name in before | after if before.get(name) != after.get(name)]
        is_known = before["model"] is not None and after["model"] is not None
        same = False if before["model"] != after["model"] else (not parts if is_known else None)
    if same is not False:
        return SpaceComparison(same)
    listed = ", ".join(_PARTS.get(name, f"`{name}`") for name in parts)
    return SpaceComparison(
        same,
        f"These are two vector spaces, which differ in {listed}. A: {_in_words(one)}. "
        f"B: {_in_words(other)}.",
    )


_PARTS = {"model": "the model's content", "output": "the output"}


def _raw_space(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What the raw predictions of one output are made of."""
    made_of = dict(provenance["made_of"])
    # Columns may be called otherwise, and the model be fed the same.
    for name in ("norms", "outputs", "features"):
        made_of.pop(name, None)
    return {**made_of, "output": provenance["output"]}


def _in_words(provenance: Mapping[str, Any]) -> str:
    if "made_of" not in provenance:
        return f"space {provenance['space'][:_DIGITS]}, norm {provenance['norm']}"
    model = provenance["model"]
    named = (
        "predictions that were stored already"
        if model is None
        else f"model `{model}` ({provenance['model_sha256'][:_DIGITS]})"
    )
    return f"{named}, output `{provenance['output']}`, norm {provenance['norm']}"
