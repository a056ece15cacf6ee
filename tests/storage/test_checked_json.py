from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from batchnorm_tool.errors import Damaged
from batchnorm_tool.storage.checked_json import SealedRecord, canonical_json, is_sealed
from tests.sealing import sealed


@dataclass(frozen=True)
class Sample(SealedRecord):
    part: int
    files: tuple[str, ...]
    share: float


SAMPLE = Sample(7, ("a", "ü"), 2.5)
SEALED = SAMPLE.to_json()


def test_what_was_sealed_is_opened() -> None:
    assert Sample.opened(SEALED, "records/7.json") == SAMPLE
    assert sealed(SAMPLE.to_dict()) == SEALED
    assert json.loads(SEALED) == {**SAMPLE.to_dict(), "checksum": json.loads(SEALED)["checksum"]}


@pytest.mark.parametrize("place", range(0, len(SEALED), 7))
def test_one_flipped_bit_anywhere_is_noticed(place: int) -> None:
    damaged = bytearray(SEALED)
    damaged[place] ^= 1
    assert Sample.from_json(bytes(damaged)) is None


@pytest.mark.parametrize(
    "text", [b"", b"\0" * 9, SEALED[:50], SEALED[:-1], canonical_json(SAMPLE.to_dict())]
)
def test_what_is_not_sealed_is_not_opened(text: bytes) -> None:
    assert not is_sealed(text)
    with pytest.raises(Damaged, match=r"`records/7.json` is damaged: its checksum does not match"):
        Sample.opened(text, "records/7.json")


def test_what_another_version_sealed_is_refused_by_field() -> None:
    text = sealed({**SAMPLE.to_dict(), "share": "x"})
    assert Sample.from_json(text) is None
    with pytest.raises(Damaged, match=r"`records/7.json` is not as .*: `share`: .* Received: 'x'"):
        Sample.opened(text, "records/7.json")
