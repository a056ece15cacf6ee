"""A structure-aware fuzzer: whatever is read, nothing but our own errors comes out.

By default each target takes few examples, the same every time. `FUZZ_EXAMPLES=20000 python -m
pytest tests/fuzz` is the longer mode: other examples every time, some minutes for each target.
A target is a test in a file `test_fuzz_*.py` here, decorated with `@fuzzed()` and hypothesis's
`@given`, that reads what it is given within `only_our_errors()`.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from batchnorm_tool.errors import BatchnormToolError

_WANTED = os.environ.get("FUZZ_EXAMPLES")

_HOSTILE_TEXTS = (
    *("", "\0", "\x1b[2J", "\ud800", "../../etc/passwd", "/etc/passwd", "s3://bucket/a", "a" * 999),
    *("nan", "no", "1e-12", "-0", "all", "auto", "sha256:", "%s{}", "__class__", "\u202e", "null"),
)
# Where lengths, counts and addresses wrap, and what is no number at all.
_HOSTILE_NUMBERS = (
    *(0, -1, 1, 2**31, -(2**31), 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**400),
    *(0.1, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
)


def fuzzed(examples: int = 100) -> settings:
    """The settings of one target.

    Args:
        examples: How many it takes where `FUZZ_EXAMPLES` does not say.
    """
    return settings(
        max_examples=int(_WANTED or examples),
        derandomize=_WANTED is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def only_our_errors() -> Iterator[None]:
    """Let pass what running again cannot heal, said by an error of ours; all else is a fault."""
    try:
        yield
    except BatchnormToolError as error:
        if error.exit_code not in (2, 4) or not error.message:
            raise AssertionError(f"exit code {error.exit_code}: {error.message}") from error


def json_values(words: Sequence[str] = ()) -> st.SearchStrategy[Any]:
    """Any JSON value, with texts and keys that mean something to the reader among the others.

    Args:
        words: Keys and texts that the reader knows.
    """
    texts = st.sampled_from([*words, *_HOSTILE_TEXTS]) | st.text(max_size=8)
    numbers = st.sampled_from(_HOSTILE_NUMBERS) | st.integers(-9, 9) | st.floats()
    leaves = st.none() | st.booleans() | numbers | texts
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
        max_leaves=8,
    )


@st.composite
def mutated(draw: st.DrawFn, document: Any, words: Sequence[str] = ()) -> Any:
    """A JSON document with one to four changes: replaced, removed, repeated, wrapped, swapped.

    Args:
        draw: Given by hypothesis.
        document: The whole document; it is left as it is.
        words: As for `json_values`.
    """
    box = [copy.deepcopy(document)]
    for _ in range(draw(st.integers(1, 4))):
        places = list(_places(box))
        holder, key = draw(st.sampled_from(places))
        change = draw(st.sampled_from(["replace", "replace", "remove", "repeat", "wrap", "swap"]))
        if change == "remove" and holder is not box:
            del holder[key]
        elif change == "repeat" and isinstance(holder, list) and holder is not box:
            holder.insert(key, copy.deepcopy(holder[key]))
        elif change == "repeat" and isinstance(holder, dict):
            holder[draw(st.sampled_from([*words, *_HOSTILE_TEXTS]))] = copy.deepcopy(holder[key])
        elif change == "wrap":
            holder[key] = draw(st.sampled_from([[holder[key]], {"config": holder[key]}]))
        elif change == "swap":
            other, place = draw(st.sampled_from(places))
            holder[key] = copy.deepcopy(other[place])
        else:
            holder[key] = draw(json_values(words))
    return box[0]


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document as (what holds it, its key or number)."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        yield data, key
        if isinstance(value, dict | list):
            yield from _places(value)


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with one to four changes: flipped, overwritten, cut out, repeated, cut short.

    Args:
        draw: Given by hypothesis.
        content: The whole file.
    """
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        end = start + draw(st.integers(1, 64))
        change = draw(st.sampled_from(["flip", "write", "insert", "remove", "repeat", "cut"]))
        if change == "flip" and data:
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif change == "write":
            data[start:end] = draw(st.binary(max_size=16) | _numbers())
        elif change == "insert":
            data[start:start] = draw(st.binary(max_size=16) | _numbers())
        elif change == "remove":
            del data[start:end]
        elif change == "repeat":
            data[end:end] = data[start:end]
        else:
            del data[start:]
    return bytes(data)


def _numbers() -> st.SearchStrategy[bytes]:
    whole = [n for n in _HOSTILE_NUMBERS if isinstance(n, int) and -(2**63) <= n < 2**63]
    return st.sampled_from([n.to_bytes(8, "little", signed=True) for n in whole])
