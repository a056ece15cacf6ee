"""Records as JSON: the same bytes every time, a checksum over them, and the declared types back."""

import base64
import functools
import hashlib
import itertools
import json
from typing import Annotated, Any, ClassVar, Self

import pyarrow as pa
import pydantic

from batchnorm_tool.errors import Damaged

_SEAL = b'{"checksum":"%s",%s'
_SEAL_BYTES = len(_SEAL % (64 * b"0", b""))


def canonical_json(data: Any) -> bytes:
    """Return ``data`` as JSON with sorted keys and no spare space; NaN and infinity are refused.

    Example:
        >>> canonical_json({"b": 1, "a": [1.5]})
        b'{"a":[1.5],"b":1}'
    """
    text = json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    # A file name may hold bytes that are no text; `json.loads` reads them back the same way.
    return text.encode(errors="surrogatepass")


def sha256(data: Any) -> str:
    """Return SHA-256 of the canonical JSON of ``data``, in hexadecimal digits."""
    return hashlib.sha256(canonical_json(data)).hexdigest()


def plain(record: Any, kind: Any = None) -> dict[str, Any]:
    """Turn a dataclass into plain data, as JSON has it; of a ``kind``, only what that one has."""
    chosen: Any = kind or type(record)
    data: dict[str, Any] = _adapter(chosen).dump_python(record, mode="json", by_alias=True)
    return data


@functools.cache  # most commands meet few kinds of records, and an adapter takes 3 ms to make
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


class Record:
    """A dataclass that is kept as JSON: its fields are the keys, and unknown keys are refused."""

    __pydantic_config__: ClassVar = pydantic.ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False
    )

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return plain(self)

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Read plain data, as `to_dict` gives it; see `decoded`."""
        text = json.dumps(data, ensure_ascii=False).encode(errors="surrogatepass")
        return cls.decoded(text, cls.__name__)

    def to_document(self) -> bytes:
        """Return a document for others to read: a line of JSON with a checksum over the rest."""
        return canonical_json(with_checksum(self.to_dict())) + b"\n"

    @classmethod
    def from_document(cls, text: bytes | None) -> Self | None:
        """Read what `to_document` gave; ``None`` where it is missing, damaged or another's."""
        data = verified_json(text or b"")
        try:
            return None if data is None else cls.decoded(canonical_json(data), "")
        except Damaged:
            return None

    @classmethod
    def decoded(cls, text: bytes, path: str) -> Self:
        """Read a record."""
        kind: Any = cls
        adapter: pydantic.TypeAdapter[Self] = _adapter(kind)
        try:
            try:
                text.decode()
            except UnicodeDecodeError:
                # Only `json` reads file names that are no text, and they are in few records.
                return adapter.validate_python(json.loads(text), strict=False)
            return adapter.validate_json(text)
        except pydantic.ValidationError as error:
            raise Damaged(_complaint(error, path)) from error


def _complaint(error: pydantic.ValidationError, path: str) -> str:
    first = error.errors(include_url=False)[0]
    # Behind a key of several kinds, pydantic names the kind that it tried last.
    keys = itertools.takewhile(lambda key: "[" not in key, map(str, first["loc"]))
    field = ".".join(keys) or "the whole"
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    shown = "" if first["type"] == "missing" else f" Received: {_short(first['input'])}."
    return (
        f"`{path}` is not as this version writes it: `{field}`: {said}.{shown} Read it with the "
        "version that wrote it, restore it from a copy, or make it again."
    )


def _short(value: object, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


class SealedRecord(Record):
    """A record that lies in a file of its own, with a checksum over all the rest in front.

    Read back without encoding it again, which matters where there are many.
    """

    def to_json(self) -> bytes:
        """Return the file's content."""
        return _sealed(canonical_json(self.to_dict()))

    @classmethod
    def opened(cls, text: bytes, path: str) -> Self:
        """Read what `to_json` gave."""
        if not is_sealed(text):
            raise Damaged(
                f"`{path}` is damaged: its checksum does not match. Restore it from a backup, or "
                "recreate it."
            )
        return cls.decoded(_unsealed(text), path)

    @classmethod
    def from_json(cls, text: bytes | None) -> Self | None:
        """Read what `to_json` gave; ``None`` where it is missing, damaged or of another version."""
        try:
            return None if text is None else cls.opened(text, "")
        except Damaged:
            return None


def is_sealed(text: bytes) -> bool:
    """Tell whether a file is as `SealedRecord.to_json` wrote it, whatever record it holds."""
    return text == _sealed(_unsealed(text))


def _sealed(body: bytes) -> bytes:
    return _SEAL % (hashlib.sha256(body).hexdigest().encode(), body[1:])


def _unsealed(text: bytes) -> bytes:
    return b"{" + text[_SEAL_BYTES:]


def with_checksum(data: dict[str, Any]) -> dict[str, Any]:
    """Return ``data`` with a ``checksum`` over the rest of it, as in documents for readers."""
    return {**data, "checksum": sha256(data)}


def verified_json(text: bytes) -> dict[str, Any] | None:
    """Return the data without its checksum, or ``None`` where the checksum disagrees."""
    try:
        data = json.loads(text)
        checksum = data.pop("checksum") if isinstance(data, dict) else None
        return data if checksum is not None and checksum == sha256(data) else None
    except (ValueError, KeyError):
        return None


def _encoded(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize()).decode()


def _decoded(text: object) -> pa.Schema:
    try:
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(str(text), validate=True)))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(str(error)) from error


# What is counted: more than NumPy's int64 holds is nothing that we have counted.
Count = Annotated[int, pydantic.Field(ge=0, lt=2**63)]
Positive = Annotated[int, pydantic.Field(gt=0, lt=2**63)]
# A text in which bytes of a file name may stand that are no text.
FileName = pydantic.InstanceOf[str]
# Marks a field that is not written where it is None.
LEFT_OUT_IF_NONE = pydantic.Field(exclude_if=lambda value: value is None)
# An Arrow schema; in JSON its IPC message in base 64.
ArrowSchema = Annotated[
    pa.Schema, pydantic.PlainValidator(_decoded), pydantic.PlainSerializer(_encoded)
]


def stored_as(key: str) -> Any:
    """Mark a field that has another name in JSON."""
    return pydantic.Field(alias=key)
