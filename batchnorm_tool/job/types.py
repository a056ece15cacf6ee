"""The kinds of values in a job: paths, names, numbers, hashes; each checked and resolved."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import PydanticCustomError

from batchnorm_tool.display import did_you_mean, mask_secrets
from batchnorm_tool.errors import JobError
from batchnorm_tool.job.messages import CUSTOM, Expects
from batchnorm_tool.norms.norm import NORM_NAMES, Norm
from batchnorm_tool.registry import ENGINES, FORMATS, TARGETS

_SHA256 = r"^[0-9a-f]{64}$"
_DOTTED = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_NAMES_OF_NORMS = ", ".join(f"`{name}`" for name in NORM_NAMES)


def wrong(text: str, key: str = "") -> PydanticCustomError:
    """Return what a check raises: ``text`` stands behind its key, or a dotted one below that."""
    return PydanticCustomError(CUSTOM, "{text}", {"text": text, "key": key})


def check_distinct(names: Sequence[str], noun: str, key: str = "", where: str = "") -> None:
    """Refuse the names of columns or outputs of which one occurs twice."""
    twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if twice is not None:
        raise wrong(f"lists the {noun} `{twice}` twice{where}. List each {noun} once.", key)


def _as_number(value: Any) -> Any:
    # PyYAML reads 1e-12 as text, and an environment variable never holds anything else.
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _as_whole_number(value: Any) -> Any:
    number = _as_number(value)
    return int(number) if isinstance(number, float) and number.is_integer() else value


def _without_infinity(value: float) -> float | str:
    # JSON has no infinity; as text it is read back as the number.
    return "inf" if value == float("inf") else value


def _as_flag(value: Any) -> Any:
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _as_hash(value: Any) -> Any:
    return value.lower().removeprefix("sha256:") if isinstance(value, str) else value


def _as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _located(path: str, info: pydantic.ValidationInfo) -> str:
    """Make a path absolute from the job file's directory, or from the current one in Python."""
    if "\0" in path:
        raise wrong("contains a NUL character")
    if not is_uri(path):
        base = str((info.context or {}).get("base", "."))
        return os.path.abspath(os.path.join(base, os.path.expanduser(path)))  # noqa: PTH100, PTH111, PTH118
    if mask_secrets(path) != path:
        raise wrong(
            "contains credentials, which would end up in logs and manifests. "
            f"Received: {mask_secrets(path)!r}. Put them in the environment or a profile of the "
            "cloud client, and remove them from the URI."
        )
    return path


def _array_file(path: str) -> str:
    name = os.path.basename(path)  # noqa: PTH119
    if not name.endswith(".npy"):
        hint = did_you_mean(name, ["fit"])
        raise wrong(f"must be `fit`, or the path of an .npy file. Received: {name!r}.{hint}")
    return path


@contextmanager
def norm_errors(key: str = "") -> Iterator[None]:
    """Say of a norm and its `p` that cannot be, at ``key`` below the checked one, what is wrong."""
    try:
        yield
    except JobError as error:
        raise wrong(f"does not fit: {error.message}", key) from error


def _known_norm(value: Any) -> Any:
    """Check the name of a norm; what `p` it takes is checked with `p`."""
    if value is False:
        raise wrong(
            "is false: YAML reads an unquoted `no`, `off` or `false` that way. Write `norm: none` "
            "to keep the vectors' lengths."
        )
    if value is None:
        raise wrong(
            "is empty. Write `norm: none` to keep the vectors' lengths, or remove the key for `l2`."
        )
    if not isinstance(value, str):
        hint = f" Did you mean `l{value}`?" if value in (1, 2) and value is not True else ""
        raise wrong(f"must be one of {_NAMES_OF_NORMS}. Received: {value!r}.{hint}")
    with norm_errors():
        Norm.parse(value, 1.0 if value.strip().lower() == "lp" else None)
    return value


def _fits_norm(p: float | None, info: pydantic.ValidationInfo) -> float | None:
    """Check `p` together with the norm before it, where both are in one section."""
    norm = info.data.get("norm")
    if norm is not None:
        with norm_errors():
            Norm.parse(norm, p)
    return p


def option(default: Any, description: str, **more: Any) -> Any:
    """Return the field of a key that may be left out; a class as its default is called."""
    kind = "default_factory" if isinstance(default, type) else "default"
    return Field(**{kind: default}, description=description, **more)


class JobSchema(GenerateJsonSchema):
    """JSON Schema in which any value may also be an environment variable, as in a job file."""

    def generate_inner(self, schema: Any) -> JsonSchemaValue:
        """Return the schema of a value, or of a variable that stands for it."""
        found = super().generate_inner(schema)
        is_read_from_text = schema["type"] in ("int", "float", "bool", "literal")
        return or_variable(found) if is_read_from_text else found


def or_variable(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Return the schema of a value that may also be an environment variable."""
    return {"anyOf": [schema, {"type": "string", "pattern": r"^\$\{.+\}$"}]}


Text = Annotated[str, StringConstraints(min_length=1)]
Name = Annotated[Text, Expects("a name")]
Names = Annotated[list[Name], Field(min_length=1)]
ColumnName = Annotated[Name, Expects("a column name")]
LocalOrUri = Annotated[Text, BeforeValidator(_as_text), AfterValidator(_located), Expects("a path")]
LocalOrUris = Annotated[list[LocalOrUri], Field(min_length=1)]

Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_as_number)]
Fraction = Annotated[
    float, Field(ge=0, le=1), BeforeValidator(_as_number), Expects("a fraction from 0 to 1")
]
Count = Annotated[
    int, Field(gt=0), BeforeValidator(_as_whole_number), Expects("a positive integer")
]
CountOrAuto = Annotated[Count | Literal["auto"], Expects("a positive integer, or `auto`")]
CountOrNone = Annotated[Count | None, Expects("a positive integer, or null")]
GpuNumber = Annotated[int, Field(ge=0), BeforeValidator(_as_whole_number)]
Flag = Annotated[bool, BeforeValidator(_as_flag), Expects("true or false")]

Compression = Annotated[
    Annotated[str, StringConstraints(pattern=r"^(zstd(:([1-9]|1[0-9]|2[0-2]))?|lz4|none)$")] | None,
    Expects("`zstd`, `zstd:LEVEL` with a level from 1 to 22, `lz4` or `none`"),
]
NormName = Annotated[str, BeforeValidator(_known_norm)]
Exponent = Annotated[
    float, Field(ge=1), BeforeValidator(_as_number), pydantic.PlainSerializer(_without_infinity)
]
ExponentOfNorm = Annotated[
    Exponent | None, AfterValidator(_fits_norm), Expects("a number of at least 1")
]
Truncation = Annotated[Count | None, Expects("a positive number of components")]
MeanSource = Annotated[
    Literal["fit"] | Annotated[LocalOrUri, AfterValidator(_array_file)] | None,
    Expects("`fit`, or the path of an .npy file"),
]
Axis = Literal[-1, "all"]
AxisValue = Annotated[Axis, BeforeValidator(_as_whole_number)]

ModelHash = Annotated[str, BeforeValidator(_as_hash), StringConstraints(pattern=_SHA256)]
TrustedHash = Annotated[str, StringConstraints(to_lower=True, pattern=r"^sha256:[0-9A-Fa-f]{64}$")]
ClassName = Annotated[str, StringConstraints(pattern=rf"^{_DOTTED}$")]
FunctionName = Annotated[str, StringConstraints(pattern=rf"^{_DOTTED}:[^\W\d]\w*$")]

if TYPE_CHECKING:
    EngineName: TypeAlias = str
    FormatName: TypeAlias = str
    TargetName: TypeAlias = str
else:
    EngineName = Literal[tuple(ENGINES)]
    FormatName = Literal[tuple(FORMATS)]
    TargetName = Literal[tuple(TARGETS)]


def is_uri(path: str) -> bool:
    """Tell whether ``path`` begins with a scheme, such as ``s3://``."""
    return _SCHEME.match(path) is not None


def is_within(inner: str, outer: str) -> bool:
    """Tell whether reading one absolute path whole would read another, as far as the text tells.

    Example:
        >>> is_within("/data/out", "/data"), is_within("/data/out", "/data/*.parquet")
        (True, False)
    """
    parts = outer.rstrip("/").split("/")
    if "**" in parts:
        parts = parts[: parts.index("**")]
    start = inner.rstrip("/").split("/")[: len(parts)]
    pairs = zip(start, parts, strict=False)
    return len(start) == len(parts) and all(
        name == pattern or fnmatchcase(name, pattern) for name, pattern in pairs
    )
