"""The table of normalizers says what they give here."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import normalizers
from benchmarks.normalizers import NORMALIZERS, Normalizer, on_the_page, table, words

pytestmark = pytest.mark.usefixtures("tensorflow")


def is_installed(normalizer: Normalizer) -> bool:
    try:
        importlib.metadata.version(normalizer.package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def cells(text: str) -> list[list[str]]:
    """Its lines, without head and versions, which are of the day when it was made."""
    lines = [line.strip("|").split("|")[:-1] for line in text.splitlines()[2:]]
    return [[cell.strip() for cell in line] for line in lines]


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=lambda one: one.code)
def test_the_page_says_what_each_gives(normalizer: Normalizer) -> None:
    [shown] = [line for line in cells(on_the_page()[1]) if line[0] == f"`{normalizer.code}`"]
    if is_installed(normalizer):
        assert shown[1:] == words(normalizer)
    else:
        assert normalizer.package == "torch"
        assert len(shown) == 7


def test_a_line_that_cannot_be_made_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (Normalizer(name, "numpy", lambda x: x) for name in ("one", "two"))
    monkeypatch.setattr(normalizers, "NORMALIZERS", [first, second])
    shown = table()
    assert cells(shown)[1] == [
        "`two`",
        "zeros",
        "length 2e-30",
        "length 2e-08",
        "length 2e+20",
        "length 6e+38",
        "length 6e+02",
    ]
    monkeypatch.setattr(
        normalizers, "NORMALIZERS", [first, replace(second, package="no-such-library")]
    )
    assert table(shown) == shown
    assert cells(table())[1] == ["`two`"]


def test_what_a_normalizer_refuses_is_told() -> None:
    def refuse(x: np.ndarray) -> np.ndarray:
        if x.dtype == np.float16:
            raise TypeError("float32 alone")
        return x + np.inf

    assert words(Normalizer("f(x)", "numpy", refuse)) == ["inf"] * 5 + ["refused"]
