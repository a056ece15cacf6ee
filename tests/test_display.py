"""Numbers, hints and tables as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from batchnorm_tool import display


@pytest.mark.parametrize(
    ("write", "arguments", "text"),
    [
        (display.number, (12.3,), "12.30"),
        (display.number, (123456.7,), "123,457"),
        (display.number, (1.23e-30,), "1.230e\u221230"),
        (display.number, (0.99999,), "1.000"),
        (display.number, (0.0,), "0"),
        (display.number, (None,), "\u2013"),
        (display.number, (math.nan,), "\u2013"),
        (display.fixed, (0.70214,), "0.7021"),
        (display.fixed, (-0.00001,), "0.0000"),
        (display.fixed, (None,), "\u2013"),
        (display.fixed, (math.inf,), "\u2013"),
        (display.signed, (0.25,), "+0.2500"),
        (display.signed, (-0.25, 2), "\u22120.25"),
        (display.signed, (0.0,), "0.0000"),
        (display.percent, (0.4213,), "42.1 %"),
        (display.percent, (None,), "\u2013"),
        (display.probability, (0.0312,), "0.0312"),
        (display.probability, (0.00001,), "<0.0001"),
        (display.short, (0.5,), "0.5"),
        (display.short, (20.0,), "20"),
        (display.short, (1e-30,), "1e\u221230"),
        (display.short, (200000.0,), "200,000"),
        (display.count, (1234567,), "1,234,567"),
        (display.share, (1, 1_000_000), "<0.01 %"),
        (display.share, (999_999, 1_000_000), ">99.99 %"),
        (display.share, (1, 3), "33.33 %"),
        (display.share, (3, 3), "100 %"),
        (display.share, (0, 5), "0 %"),
        (display.share, (0, 0), "0 %"),
        (display.size, (900,), "900 B"),
        (display.size, (1536,), "1.5 KiB"),
        (display.size, (16 * 2**20,), "16.0 MiB"),
        (display.plural, (1, "row"), "1 row"),
        (display.plural, (2_000, "row"), "2,000 rows"),
        (display.plural, (0, "query", "queries"), "0 queries"),
        (display.visible, ("a\x1b[31m",), "a\ufffd[31m"),
    ],
)
def test_a_value_is_written(
    write: Callable[..., str], arguments: tuple[object, ...], text: str
) -> None:
    assert write(*arguments) == text


def test_the_nearest_name_is_asked_for() -> None:
    assert display.did_you_mean("featurs", ["format", "features"]) == " Did you mean `features`?"
    assert display.near_matches("pixel", ["pixels", "label"]) == " (did you mean `pixels`?)"
    assert display.near_matches("zzz", ["pixels"]) == ""


def test_an_endless_line_is_cut_before_it_is_searched_for_secrets() -> None:
    endless = display.printable("A" * 5_000_000)
    assert len(endless) == 10_001
    assert endless.endswith("A…")
    assert display.printable("s3://me:secret@" + "b" * 20_000).startswith("s3://***@bbb")


def test_a_number_stays_with_its_unit() -> None:
    words = "the prediction took long 1.5 s"
    assert display.wrapped(words, 28) == ["the prediction took long", "1.5 s"]
    assert display.wrapped(words.replace(" s", " sets"), 28)[1] == "sets"


def test_cells_stand_below_one_another() -> None:
    assert display.table([["norm", "value"], ["l2", "9"]]) == ["norm  value", "l2        9"]
    assert display.table([["a", "b"], ["cc", "dd"]], "rl") == [" a  b", "cc  dd"]
    assert display.table([]) == []
