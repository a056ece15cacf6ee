"""What a person should make of two sets of predictions: the same, moved, or of another space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Vectors that were stored in float32, or as unit vector and norm, differ by a few of its roundings
# (6e-8); those of float16 by 5e-4, whose square is what a cosine loses.
_ROUNDING = 1e-6
_NORM_ROUNDING = 1e-3


def verdict_of(document: Mapping[str, Any], space_words: str) -> dict[str, str]:
    """Sum up a difference.

    Args:
        document: All else that `Difference.to_dict` gives.
        space_words: How the two spaces differ, where they are known to.

    Returns:
        ``kind`` (``"same"``, ``"moved"`` or ``"other space"``), ``words`` and ``reason``.
    """
    if document["same_space"] is False and not _mostly_identical(document["rows"]):
        return {
            "kind": "other space",
            "words": f"Two vector spaces. {_sentence(_neighbours(document))}".strip(),
            "reason": space_words,
        }
    rows = document["rows"]
    is_whole = rows["compared"] == rows["common"]
    same = _same_words(document)
    words = same or _moved_words(document)
    pieces = [words, _sentence(_came_and_went(rows))]
    return {
        "kind": "same" if same and is_whole else "moved",
        "words": " ".join(piece for piece in pieces if piece),
        "reason": "" if rows["identical"] == rows["common"] else _sentence(_figures(document)),
    }


def _same_words(document: Mapping[str, Any]) -> str:
    """How equal the rows that were compared are; empty where they are not."""
    rows = document["rows"]
    if not rows["compared"]:
        return ""
    which = f"all {rows['common']:,} common rows"
    lost = rows["common"] - rows["compared"]
    if lost:
        which += f" but {lost:,}, where one of the two is missing or not finite"
    if rows["identical"] == rows["compared"]:
        return f"The same vectors, bit for bit, in {which}."
    return f"The same vectors, to rounding, in {which}." if _within_rounding(document) else ""


def _moved_words(document: Mapping[str, Any]) -> str:
    if not document["rows"]["compared"]:
        return "No row can be compared: of every pair one is missing or not finite."
    if _is_aligned(document):
        middle = document["norm_ratio"]["quantiles"]["0.5"]
        return (
            f"The vectors kept their directions, not their lengths: B over A, median {middle:.4g}."
        )
    rows = document["rows"]
    if _mostly_identical(rows):
        changed = rows["compared"] - rows["identical"]
        return (
            f"{changed:,} of {rows['compared']:,} common rows changed, the others are the same bit "
            f"for bit. {_sentence(_neighbours(document))}".strip()
        )
    return f"The vectors moved. {_sentence(_neighbours(document))}".strip()


def _mostly_identical(rows: Mapping[str, int]) -> bool:
    return 2 * rows["identical"] > rows["compared"]


def _within_rounding(document: Mapping[str, Any]) -> bool:
    if not _is_aligned(document):
        return False
    ratio = document["norm_ratio"]
    return bool(ratio["min"] >= 1 - _NORM_ROUNDING and ratio["max"] <= 1 + _NORM_ROUNDING)


def _is_aligned(document: Mapping[str, Any]) -> bool:
    """Whether every row that was compared kept its direction."""
    cosine = document["cosine"]
    has_all = bool(document["rows"]["compared"] == cosine["count"])  # else one side is zero
    return has_all and cosine["min"] >= 1 - _ROUNDING


def _came_and_went(rows: Mapping[str, int]) -> Iterator[str]:
    if rows["added"]:
        yield f"{rows['added']:,} {_are(rows['added'])} only in B"
    if rows["removed"]:
        yield f"{rows['removed']:,} {_are(rows['removed'])} only in A"


def _are(count: int) -> str:
    return "row is" if count == 1 else "rows are"


def _neighbours(document: Mapping[str, Any]) -> Iterator[str]:
    overlap = document["overlap"]
    if overlap:
        k = max((k for k in overlap if int(k) <= 10), key=int, default=min(overlap, key=int))
        share = overlap[k]["value"]
        # Not all and not none are never rounded to all or none.
        shown = f"{share:.0%}" if share in (0, 1) else f"{min(max(share, 0.001), 0.999):.1%}"
        yield f"{shown} of a row's {k} nearest neighbours stayed"


def _figures(document: Mapping[str, Any]) -> Iterator[str]:
    cosine, ratio, norms = document["cosine"], document["norm_ratio"], document["norms"]
    if cosine["count"]:
        middle, least = cosine["quantiles"]["0.5"], cosine["min"]
        yield f"Cosine of a pair: median {middle:.6f}, lowest {least:.6f}"
    if ratio["count"]:
        yield f"length in B over A: median {ratio['quantiles']['0.5']:.4g}"
    if norms["psi"] is not None:
        yield f"stability index of the norms {norms['psi']:.3f}"


def _sentence(pieces: Iterator[str]) -> str:
    text = "; ".join(pieces)
    return f"{text}." if text else ""
