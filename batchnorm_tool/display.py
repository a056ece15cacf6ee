"""Text for a person or a log: numbers, tables and hints, without secrets and control characters."""

import difflib
import io
import math
import re
import textwrap
from collections.abc import Iterable, Sequence

# Control characters and lone surrogates cannot stand in HTML; direction overrides would let a
# column's name reorder the words around it; line separators would break a terminal's line.
INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
# `//` then everything up to the last `@`: secret keys may themselves hold `/` and `@`, but then
# a `:` comes before the first `/`.
# What cannot be a port is a password, which may then hold `?` and `#` as well.
_PASSWORD = re.compile(r"(?s)(?<=://)[^/?#@]*:(?:(?!\d*(?:[/?#]|$)).*|[^?#]*)(?=@)")
_USER = re.compile(r"(?<=://)([^/?#@:]+)(?=@)")
_NO_PORT = re.compile(r"(?<=://)[^/?#@:]*:(?!\d+(?=[/?#]|$)|(?=[/?#]|$))[^?#]*")
_SECRET = re.compile(
    r"(?i)(?<=[?&])([^=&#]*(?:secret|passw|token|signature|credential|access_?key|account_?key|"
    r"key_?id)[^=&#]*|sig|sas|key)=([^&#]*)"
)
# A whole text, a quotation in a message, or a word.
_URI = re.compile(
    r"(?s)(?:\A{0}.*|(?<=`){0}[^`]*|(?<='){0}[^']*|(?<=\"){0}[^\"]*|{0}[^\s`]*)".format(
        # Bounded: the time for a long word is not the square of its length.
        "[A-Za-z][A-Za-z0-9+.-]{0,30}://"
    )
)
# As in libpq's connection strings.
_ASSIGNED = re.compile(
    r"(?i)\b(\w*(?:password|passwd|pwd|secret_?key))\s*=\s*(?:'(?:[^'\\]|\\.)*'?|[^\s&`*][^\s&`]*)"
)
# There a bare name before the `@` is an account, a container or "anonymous", not a credential.
_NAMED_BEFORE_AT = ("abfs", "wasb", "gs", "gcs", "hdfs", "sftp", "ssh")
# More nobody reads in one line, and a hostile file may name things at any length.
_MOST_SHOWN = 10_000
# Items of a list that a line shows before it says how many there are.
_LISTED = 4
_NO_BREAK = "\N{NO-BREAK SPACE}"
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=(?:%|s|min|h|[kMG]i?B)(?:\W|$))")

DASH = "\N{EN DASH}"
"""What stands where there is no number."""

NAME_WIDTH = 12
"""Columns that `entry` leaves for a name."""

PLAIN_FROM, PLAIN_TO = 1e-3, 1e6
"""Numbers of this size are written without an exponent."""


def printable(text: str) -> str:
    """Return one line with secrets masked, and no control character of data in it."""
    return visible(mask_secrets(bounded(text)))


def bounded(text: str) -> str:
    """Return a text without what follows its first 10,000 characters."""
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def visible(text: str) -> str:
    """Return a text of the same length with U+FFFD for what a terminal or UTF-8 cannot take."""
    return INVISIBLE.sub("\ufffd", text)


def mask_secrets(text: str) -> str:
    """Replace passwords, user names and secret parameters of URIs by ``***``.

    Example:
        >>> mask_secrets("s3://AKIA:secret@bucket/key?region=eu&session_token=abc")
        's3://***@bucket/key?region=eu&session_token=***'
    """
    return _ASSIGNED.sub(r"\1=***", _URI.sub(lambda found: _masked_uri(found[0]), text))


def _masked_uri(uri: str) -> str:
    masked = _PASSWORD.sub("***", uri)
    scheme = uri.partition("://")[0].lower()
    if not scheme.endswith(_NAMED_BEFORE_AT) and not scheme.startswith(_NAMED_BEFORE_AT):
        masked = _USER.sub("***", masked)
    return _SECRET.sub(r"\1=***", _NO_PORT.sub("***", masked))


def did_you_mean(name: object, choices: Iterable[str], likeness: float = 0.6) -> str:
    """Ask for the nearest of several names in a sentence of its own; "" where none is near."""
    near = _nearest(str(name), choices, likeness)
    return f" Did you mean `{near}`?" if near else ""


def near_matches(name: str, present: Iterable[str]) -> str:
    """Ask for the nearest of several names within a sentence; "" where none is near."""
    near = _nearest(name, present)
    return f" (did you mean `{near}`?)" if near else ""


def _nearest(name: str, choices: Iterable[str], likeness: float = 0.6) -> str | None:
    spelled = {choice.casefold(): choice for choice in choices}
    near = difflib.get_close_matches(name.casefold(), spelled, n=1, cutoff=likeness)
    return spelled[near[0]] if near else None


def number(value: float | None, digits: int = 4) -> str:
    """Return a measured value with so many significant digits, a dash where there is none.

    Such as ``12.30``, ``1,797``, or ``1.230e-30`` outside of 0.001 to a million.
    """
    if value is None or math.isnan(value):
        return DASH
    if value == 0:
        return "0"
    size = abs(value)
    if not PLAIN_FROM <= size < PLAIN_TO:
        return typeset(f"{value:.{digits - 1}e}")
    # Rounded first: 0.99999 becomes 1.000, as 1 does, and not 1.0000.
    rounded = float(f"{size:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(rounded)))
    return typeset(f"{value:,.{decimals}f}")


def fixed(value: float | None, decimals: int = 4) -> str:
    """Return a value with so many decimals, such as a share: points stand below one another."""
    if value is None or not math.isfinite(value):
        return DASH
    # Adding zero takes the sign from a zero.
    return typeset(f"{round(value, decimals) + 0.0:,.{decimals}f}")


def signed(value: float | None, decimals: int = 4) -> str:
    """Return a difference with its sign and so many decimals."""
    shown = fixed(value, decimals)
    return f"+{shown}" if value is not None and round(value, decimals) > 0 else shown


def span(low: float, high: float) -> str:
    """Return an interval; a dash where an end is unknown."""
    return f"{fixed(low)}{DASH}{fixed(high)}" if math.isfinite(low + high) else DASH


def percent(value: float | None, decimals: int = 1) -> str:
    """Return a share as a percentage with so many decimals, such as ``42.1 %``."""
    shown = fixed(None if value is None else 100 * value, decimals)
    return shown if shown == DASH else f"{shown} %"


def probability(value: float | None) -> str:
    """Return a p value with four decimals, never rounded to nothing."""
    return "<0.0001" if value is not None and 0 <= value < 0.00005 else fixed(value)


def short(value: float) -> str:
    """Return a round value without trailing zeros."""
    size = abs(value)
    if value == 0 or PLAIN_FROM <= size < PLAIN_TO:
        text = f"{value:,.6f}".rstrip("0").rstrip(".")
        return typeset(text)
    return typeset(f"{value:.6g}")


def count(value: int) -> str:
    """Return an integer with thousands set apart."""
    return f"{value:,}"


def share(part: int, whole: int) -> str:
    """Return a part as a percentage that is never rounded to none or all of it."""
    if part == 0 or whole == 0:
        return "0 %"
    percent = 100 * part / whole
    if percent < 0.005:
        return "<0.01 %"
    if part < whole and percent > 99.995:
        return ">99.99 %"
    return "100 %" if part == whole else f"{percent:.2f} %"


def size(value: int) -> str:
    """Return a number of bytes in binary units, such as ``1.5 KiB``."""
    amount, unit = float(value), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{value} B" if unit == "B" else f"{amount:,.1f} {unit}"


def typeset(text: str) -> str:
    """Write the digits of a number with a true minus, and a short exponent."""
    mantissa, mark, exponent = text.partition("e")
    shown = f"{mantissa}e{int(exponent)}" if mark else text
    return shown.replace("-", "\N{MINUS SIGN}")


def plural(amount: int, noun: str, several: str | None = None) -> str:
    """Return an amount with what is counted, such as ``2,000 rows``."""
    return f"{amount:,} {noun if amount == 1 else several or f'{noun}s'}"


def table(rows: Iterable[Sequence[object]], sides: str = "") -> list[str]:
    """Set cells below one another, as many in each row.

    For each column, ``sides`` has an ``l`` or ``r``, to which side its cells go; default: all but
    the first to the right, as numbers do.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[Text(visible(str(cell))) for cell in row] for row in rows]
    if not cells:
        return []
    grid = Table.grid(padding=(0, 2, 0, 0))
    for place in range(len(cells[0])):
        right = sides[place] == "r" if sides else place > 0
        grid.add_column(justify="right" if right else "left", no_wrap=True, overflow="crop")
    for row in cells:
        grid.add_row(*row)
    # As wide as it takes: a path that is cut, or wrapped, cannot be copied.
    width = 2 + sum(
        max(cell.cell_len for cell in column) + 2 for column in zip(*cells, strict=True)
    )
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as captured:
        console.print(grid)
    return [line.rstrip() for line in captured.get().splitlines()]


def wrapped(words: str, width: int, indent: str = "", left: int = 0) -> list[str]:
    """Break words into lines with a margin, those after the first indented further.

    A number and its unit stay together.
    """
    margin = " " * left
    lines = textwrap.wrap(
        _BEFORE_UNIT.sub(_NO_BREAK, words),
        max(width, left + 24),
        initial_indent=margin,
        subsequent_indent=margin + indent,
        break_on_hyphens=False,
        break_long_words=False,  # a path in a command is there to be copied
    )
    return [line.replace(_NO_BREAK, " ") for line in lines]


def entry(name: str, words: str, width: int) -> list[str]:
    """Set words beside their name, broken into lines below one another."""
    return wrapped(f"{name:<{NAME_WIDTH}}{words}", width, " " * NAME_WIDTH)


def cut(words: object, room: int) -> str:
    """Return the beginning of words that may take so many columns, at least eight."""
    shown = visible(str(words))
    return shown if len(shown) <= max(room, 8) else f"{shown[: max(room, 8) - 1]}…"


def described(value: object) -> str:
    """Return a value as a person writes it; of a long list the first items and the last."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {described(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        shown = ", ".join(map(str, value[:_LISTED]))
        return shown if len(value) <= _LISTED else f"{shown} … {value[-1]} ({len(value)})"
    return str(value)
