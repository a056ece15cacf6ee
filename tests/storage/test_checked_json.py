from __future__ import annotations

import json

import pytest

from batchnorm_tool.storage.checked_json import canonical_json, dump_checked_json, load_checked_json

DATA = {"part": 7, "files": ["a", "ü"], "counts": {"b": 1, "a": 2.5}}
SEALED = dump_checked_json(DATA)


def test_what_was_sealed_is_opened() -> None:
    assert load_checked_json(SEALED) == DATA
    assert json.loads(SEALED) == {**DATA, "checksum": json.loads(SEALED)["checksum"]}


@pytest.mark.parametrize("place", range(0, len(SEALED), 7))
def test_one_flipped_bit_anywhere_is_noticed(place: int) -> None:
    damaged = bytearray(SEALED)
    damaged[place] ^= 1
    assert load_checked_json(bytes(damaged)) is None


@pytest.mark.parametrize("text", [b"", b"\0" * 9, SEALED[:50], SEALED[:-1], canonical_json(DATA)])
def test_what_is_not_sealed_is_not_opened(text: bytes) -> None:
    assert load_checked_json(text) is None
