"""The flags of the command line, and the job that they make."""

import csv
import functools
import json
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import click

from batchnorm_tool.errors import FRESH, JobError
from batchnorm_tool.registry import ENGINES, FORMATS, NORMS, spellings

_UNLISTED = (
    "Expected names separated by commas, with double quotes around a name that contains a comma "
    "or a line break. Received: "
)


def parse_names(_: object, __: object, text: str | None) -> list[str] | None:
    """Return names separated by commas; double quotes stand around one that holds a comma."""
    if text is None:
        return None
    try:
        first = next(csv.reader([text], strict=True, skipinitialspace=True))
        return [name.strip() for name in first or [""]]
    except csv.Error as error:
        raise click.BadParameter(f"{_UNLISTED}{text!r}.") from error


def _parse_names_several(_: object, __: object, texts: tuple[str, ...]) -> tuple[str, ...]:
    names = [name for text in texts for name in parse_names(None, None, text) or ()]
    if not all(names):
        raise click.BadParameter(f"{_UNLISTED}{', '.join(map(repr, texts))}.")
    return tuple(names)


def any_of(names: Iterable[str]) -> str:
    """Join names as in "parquet, npy or arrow"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


# Every norm but `lp`, which takes a number.
NORM_LIST = ", ".join(name for name in spellings(NORMS) if name != "lp")

_AXES: dict[str, Any] = {"type": click.Choice(["-1", "all"])}
# Several names, by commas or by repetition.
_NAMES: dict[str, Any] = {"multiple": True, "callback": _parse_names_several}

# A flag, the key of the job file that it sets, and what click is told of it.
Flag: TypeAlias = tuple[str, str, dict[str, Any]]
JOB_FLAGS: tuple[Flag, ...] = (
    ("--norm", "normalize.norm", {"help": f"{NORM_LIST}, or lp with --p."}),
    ("--p", "normalize.p", {"type": float, "help": "The p of --norm lp."}),
    ("--axis", "normalize.axis", {**_AXES, "help": "Each vector, or a row's whole output."}),
    ("--key", "input.key", {**_NAMES, "help": "Key columns, as a,b."}),
    ("--passthrough", "input.passthrough", {**_NAMES, "help": "Columns to copy, as a,b."}),
    ("--invalid", "input.invalid", {"help": "fail, quarantine, nullify or drop bad input rows."}),
    ("--zero", "normalize.zero", {"help": "keep, nullify, drop, quarantine or fail zero vectors."}),
    ("--nonfinite", "normalize.nonfinite", {"help": "As --zero, for NaN and inf in predictions."}),
    (
        "--max-bad-fraction",
        "normalize.max_bad_fraction",
        {"type": float, "help": "Largest share of bad rows, 0 to 1."},
    ),
    ("--format", "output.format", {"help": f"{any_of(FORMATS)}."}),
    ("--dtype", "output.dtype", {"help": "Type of the vectors: float32, float16 or float64."}),
    ("--part-rows", "output.part_rows", {"help": "Rows per output file, or auto."}),
    ("--workers", "engine.workers", {"help": "Parts processed in parallel, or auto."}),
)
MODEL_FLAGS: tuple[Flag, ...] = (
    ("--features", "input.features", {**_NAMES, "help": "Columns, as a,b or 'emb_*'."}),
    ("--layer", "model.layer", {"help": "Use the output of this inner layer."}),
    ("--outputs", "model.outputs", {**_NAMES, "help": "Outputs to normalize, as a,b."}),
    (
        "--deduplicate",
        "input.deduplicate",
        {"flag_value": True, "default": None, "help": "Predict rows of the same features once."},
    ),
    ("--backend", "model.backend", {"help": "What computes: tensorflow, onnxruntime or auto."}),
    ("--batch-size", "model.batch_size", {"help": "Rows per model call, or auto."}),
    ("--devices", "engine.devices", {"help": "auto, cpu, gpu, or a list such as [0, 1]."}),
    ("--engine", "engine.kind", {"help": f"{any_of(ENGINES)}."}),
)
# Flags that take a number as well as a word.
_NOT_TEXT = {"axis", "part_rows", "workers", "devices", "batch_size"}
COLUMN_FLAG = ("--column", "input.features", {**_NAMES, "help": "Columns, as a,b or 'emb_*'."})


def of_job(*specs: Flag) -> Callable[[Any], Any]:
    """Add the flags to a command; each sets one key of the job."""
    return _flags(
        *(
            click.option(name, f"set__{key.replace('.', '__')}", **settings)
            for name, key, settings in reversed(specs)
        )
    )


def _flags(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what adds several flags to a command; its help shows the last one first."""
    return lambda command: functools.reduce(lambda done, option: option(done), options, command)


_PROGRESS = click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "plain", "none"]),
    default="auto",
    help="How to show progress.",
)
WAIT = click.option("--wait", metavar="TIME", help="Wait for another run: 30s, 10m, 2h.")

COMMON = (
    click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON document to stdout."),
    click.Option(["--quiet"], is_flag=True, help="Print errors only."),
    click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
    click.Option(
        ["--log-format"],
        type=click.Choice(["text", "json"]),
        default="text",
        help="Format of messages on standard error.",
    ),
)
"""The flags that every command has."""

running = _flags(
    _PROGRESS,
    click.option("--print-config", is_flag=True, help="Print the resolved job, and exit."),
    WAIT,
    click.option("--mixed-bits", is_flag=True, help="Resume with other low-order bits."),
    click.option("--check-input", is_flag=True, help="Validate all of the input first."),
    click.option(
        "--reason",
        multiple=True,
        callback=_parse_names_several,
        metavar="NAME",
        help="Only rows that are in quarantine for it.",
    ),
    click.option(
        "--retry-quarantined", is_flag=True, help="Read the result's quarantined rows again."
    ),
    click.option(FRESH, "fresh", is_flag=True, help="Replace the existing result."),
    click.option("--limit", type=click.IntRange(min=1), help="Process only the first N rows."),
    click.option("--profile", is_flag=True, help="Report where the time went."),
    click.option("--dry-run", is_flag=True, help="Print the plan, and exit."),
    click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a job key."),
)
"""The flags of the commands that do a job."""

waiting = _flags(
    _PROGRESS,
    click.option("--metrics-file", metavar="FILE", help="Write Prometheus metrics to FILE."),
    WAIT,
)
"""The flags of the commands that change a store."""


def seconds_of(text: str | None) -> float:
    """Return seconds from ``30s``, ``10m``, ``2h`` or a plain number."""
    if text is None:
        return 0.0
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise JobError(f"`--wait` must be a time such as 30s, 10m or 2h. Received: {text}.")
    return seconds


def _numbers(_: object, __: object, text: str | None) -> Any:
    try:
        return None if text is None else [int(number) for number in text.split(",")]
    except ValueError as error:
        said = f"Expected integers separated by commas, such as 1,5,10. Received: {text}."
        raise click.BadParameter(said) from error


def _sample(_: object, __: object, text: str | None) -> Any:
    try:
        return text if text in (None, "all") else int(text)
    except ValueError as error:
        raise click.BadParameter(f"Expected an integer, or all. Received: {text}.") from error


comparing = _flags(
    click.option("-o", "--output", metavar="DIR", help="Write the report, as HTML and JSON."),
    click.option("--mixed-spaces", is_flag=True, help="Compare sets of different vector spaces."),
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Seed of every random draw."
    ),
    click.option(
        "--sample", callback=_sample, metavar="N", help="Most rows to use as queries, or all."
    ),
    click.option(
        "--k", callback=_numbers, metavar="K,...", help="Numbers of neighbours, as 1,5,10."
    ),
    click.option("--key", **_NAMES, help="Key columns, as a,b."),
    click.option("--column", **_NAMES, help="Vector columns, as a,b or 'emb_*'."),
)
"""The flags of the commands that compare stored predictions."""


def overrides(options: dict[str, Any]) -> list[str]:
    """Return what the flags say, in the words of ``--set``, whose own come last, and win.

    Example:
        >>> overrides({"set__input__key": ("id",), "mixed_bits": False, "overrides": ()})
        ['input.key="id"']
    """
    found = [
        f"{key}={_as_yaml(key, value)}"
        for parameter, value in options.items()
        if parameter.startswith("set__") and value not in (None, ())
        for key in [parameter.removeprefix("set__").replace("__", ".")]
    ]
    if options["mixed_bits"]:
        found.append("engine.mixed_bits=true")
    return [*found, *options["overrides"]]


def _as_yaml(key: str, value: Any) -> str:
    """Return a flag's value as YAML reads it back: names stay text, even ``no`` or ``1e5``."""
    if isinstance(value, tuple):
        alone = len(value) == 1 and key in ("input.key", "input.features")
        return json.dumps(value[0] if alone else value)
    if key == "engine.devices" and "," in value:
        return f"[{value.strip('[]')}]"
    if key.partition(".")[2] in _NOT_TEXT:
        return str(value)
    return json.dumps(value)
