"""How much is measured: for a test, for every day, and for docs/speed.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """The amounts of one size of the benchmark.

    Attributes:
        name: As on the command line.
        rows: Rows of the table of row 1, which most cases share.
        images: Images of row 5.
        stored: Stored predictions of row 6.
        tiny_files: Files of row 12's layout of many small ones.
        growth_rows: Rows of the runs that show how cost grows; multiples of the first.
        widths: Vector widths of the runs that show how cost grows.
        width_values: Predicted values of each of those, so that wide vectors have fewer rows.
        base: Rows among which `compare` looks for neighbours.
        queries: Rows of those whose neighbours are looked for.
        streamed_base: The same for a base that is never in memory.
        surveyed: Stored predictions whose norms `compare` measures.
        kept: Rows of the store that is refreshed again and again.
        nights: How often.
        repetitions: Measurements of each contender that is not slow.
    """

    name: str
    rows: int
    images: int
    stored: int
    tiny_files: int
    growth_rows: tuple[int, ...]
    widths: tuple[int, ...]
    width_values: int
    base: int
    queries: int
    streamed_base: int
    surveyed: int
    kept: int
    nights: int
    repetitions: int


SIZES = {
    size.name: size
    for size in (
        Size(
            "tiny",
            rows=4_000,
            images=256,
            stored=4_000,
            tiny_files=10,
            growth_rows=(1_000, 4_000, 16_000),
            widths=(16, 64, 256),
            width_values=64_000,
            base=4_000,
            queries=50,
            streamed_base=16_000,
            surveyed=20_000,
            kept=4_000,
            nights=3,
            repetitions=1,
        ),
        Size(
            "quick",
            rows=200_000,
            images=10_000,
            stored=200_000,
            tiny_files=400,
            growth_rows=(50_000, 200_000, 800_000),
            widths=(16, 256, 4096),
            width_values=16_000_000,
            base=200_000,
            queries=2_000,
            streamed_base=1_000_000,
            surveyed=1_000_000,
            kept=200_000,
            nights=30,
            repetitions=1,
        ),
        Size(
            "full",
            rows=1_000_000,
            images=60_000,
            stored=2_000_000,
            tiny_files=2_000,
            growth_rows=(250_000, 1_000_000, 4_000_000, 16_000_000),
            widths=(16, 64, 256, 1024, 4096),
            width_values=64_000_000,
            base=200_000,
            queries=2_000,
            streamed_base=2_000_000,
            surveyed=10_000_000,
            kept=200_000,
            nights=30,
            repetitions=3,
        ),
    )
}
