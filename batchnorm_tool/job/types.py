"""The kinds of values in a job: paths, names, numbers, hashes; each checked and resolved."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationInfo,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import PydanticCustomError, core_schema

from batchnorm_tool.display import mask_secrets
from batchnorm_tool.errors import JobError
from batchnorm_tool.job.messages import CUSTOM, Expects
from batchnorm_tool.norms.norm import NORM_NAMES, Norm
from batchnorm_tool.registry import ENGINES, FORMATS, TARGETS

_SHA256 = r"^[0-9a-f]{64}$"
_DOTTED = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def wrong(text: str, key: str = "") -> PydanticCustomError:
    """Return what a check raises inside a section.

    Args:
        text: What is wrong, to stand behind the key: "is …, write …".
        key: The key below the checked one that is at fault, dotted; empty for that one itself.
    """
    return PydanticCustomError(CUSTOM, "{text}", {"text": text, "key": key})


def repeated(names: Sequence[str]) -> str | None:
    """Return the first name that occurs twice, if one does.

    Example:
        >>> repeated(["id", "label", "id"])
        'id'
    """
    return next((name for at, name in enumerate(names) if name in names[:at]), None)


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


def _located(path: str, info: ValidationInfo) -> str:
    """Make a path absolute from the job file's directory, or from the current one in Python."""
    if "\0" in path:
        raise wrong("contains a NUL character")
    if is_uri(path) and holds_secrets(path):
        raise wrong(
            "contains credentials, which would end up in logs and manifests. "
            f"Received: {mask_secrets(path)!r}. Put them in the environment or a profile of the "
            "cloud client, and remove them from the URI."
        )
    base = (info.context or {}).get("base", ".")
    return absolute(path, str(base))


def known_norm(value: Any) -> Any:
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
        raise wrong(f"must be one of {_NAMES_OF_NORMS}. Received: {value!r}.{_numbered(value)}")
    _parsed(value, 1.0 if value.strip().lower() == "lp" else None)
    return value


_NAMES_OF_NORMS = ", ".join(f"`{name}`" for name in NORM_NAMES)


def _numbered(value: object) -> str:
    return f" Did you mean `l{value}`?" if value in (1, 2) and value is not True else ""


def _parsed(norm: str, p: float | None) -> None:
    try:
        Norm.parse(norm, p)
    except JobError as error:
        raise wrong(f"does not fit: {error.message}") from error


def fits_norm(p: float | None, info: ValidationInfo) -> float | None:
    """Check `p` together with the norm before it, where both are in one section."""
    norm = info.data.get("norm")
    if norm is not None:
        _parsed(norm, p)
    return p


def available_engine(value: Any) -> Any:
    """Check that this version has the engine."""
    if value in ("ray", "spark") and value not in ENGINES:
        raise wrong(f"is `{value}`, which this version does not support. Use `local`.")
    return value


class JobSchema(GenerateJsonSchema):
    """JSON Schema in which any value may also be an environment variable, as in a job file."""

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        """Return an integer, or a variable."""
        return or_variable(super().int_schema(schema))

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        """Return a number, or a variable."""
        return or_variable(super().float_schema(schema))

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        """Return a truth value, or a variable."""
        return or_variable(super().bool_schema(schema))

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        """Return one of several words, or a variable."""
        return or_variable(super().literal_schema(schema))


def or_variable(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Return the schema of a value that may also be an environment variable."""
    return {"anyOf": [schema, {"type": "string", "pattern": r"^\$\{.+\}$"}]}


Text = Annotated[str, StringConstraints(min_length=1)]


Name = Annotated[Text, Expects("a name")]


Names = Annotated[list[Name], Field(min_length=1)]


LocalOrUri = Annotated[Text, BeforeValidator(_as_text), AfterValidator(_located), Expects("a path")]


LocalOrUris = Annotated[list[LocalOrUri], Field(min_length=1)]


Finite = Annotated[float, Field(allow_inf_nan=False)]


Fraction = Annotated[
    float, Field(ge=0, le=1), BeforeValidator(_as_number), Expects("a fraction from 0 to 1")
]


NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_as_number)]


Exponent = Annotated[
    float, Field(ge=1), BeforeValidator(_as_number), PlainSerializer(_without_infinity)
]


Count = Annotated[
    int, Field(gt=0), BeforeValidator(_as_whole_number), Expects("a positive integer")
]


GpuNumber = Annotated[int, Field(ge=0), BeforeValidator(_as_whole_number)]


CountOrAuto = Annotated[Count | Literal["auto"], Expects("a positive integer, or `auto`")]


Flag = Annotated[bool, BeforeValidator(_as_flag), Expects("true or false")]


Axis = Literal[-1, "all"]


AxisValue = Annotated[Axis, BeforeValidator(_as_whole_number)]


NormName = Annotated[str, BeforeValidator(known_norm)]


ModelHash = Annotated[str, BeforeValidator(_as_hash), StringConstraints(pattern=_SHA256)]


TrustedHash = Annotated[str, StringConstraints(to_lower=True, pattern=r"^sha256:[0-9A-Fa-f]{64}$")]


ClassName = Annotated[str, StringConstraints(pattern=rf"^{_DOTTED}$")]


FunctionName = Annotated[str, StringConstraints(pattern=rf"^{_DOTTED}:[^\W\d]\w*$")]


def is_uri(path: str) -> bool:
    """Tell whether ``path`` begins with a scheme, such as ``s3://``.

    Example:
        >>> is_uri("s3://bucket/key"), is_uri("a/b.parquet")
        (True, False)
    """
    return _SCHEME.match(path) is not None


def holds_secrets(uri: str) -> bool:
    """Tell whether a URI carries credentials: those belong in the environment, not in a job.

    Example:
        >>> holds_secrets("s3://AKIA:secret@bucket/key"), holds_secrets("abfss://box@host/key")
        (True, False)
    """
    return mask_secrets(uri) != uri


def absolute(path: str, base: str) -> str:
    """Return a local path made absolute and free of ``.`` and ``..``; a URI as it is.

    Example:
        >>> absolute("../data/x.parquet", "/jobs/nightly")
        '/jobs/data/x.parquet'
    """
    if is_uri(path):
        return path
    return os.path.abspath(os.path.join(base, os.path.expanduser(path)))  # noqa: PTH100, PTH111, PTH118


def is_within(inner: str, outer: str) -> bool:
    """Tell whether one absolute path is another or lies below it, as far as the text tells.

    Returns:
        True where reading ``outer`` whole would read ``inner`` too.

    Example:
        >>> is_within("/data/out", "/data"), is_within("/data/out", "/data/*.parquet")
        (True, False)
    """
    parts = outer.rstrip("/").split("/")
    if "**" in parts:
        parts = parts[: parts.index("**")]
    start = inner.rstrip("/").split("/")[: len(parts)]
    return len(start) == len(parts) and all(map(_matches, start, parts))


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


if TYPE_CHECKING:
    EngineName: TypeAlias = str
    FormatName: TypeAlias = str
    TargetName: TypeAlias = str
else:
    EngineName = Literal[tuple(ENGINES)]
    FormatName = Literal[tuple(FORMATS)]
    TargetName = Literal[tuple(TARGETS)]
