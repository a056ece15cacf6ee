"""What is wrong with a job, in words: each key in backticks, what it takes, what it got."""

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from batchnorm_tool.display import did_you_mean, mask_secrets
from batchnorm_tool.errors import JobError, Lines
from batchnorm_tool.job.loader import map_texts

_LONGEST_SHOWN = 80
_NUMBER_HINTS = {
    "axis": " -1 is the last axis, which is axis 1 of a table of vectors.",
    "devices": " Write `[0]` for the first GPU alone.",
}
CUSTOM = "job"
_KINDS: dict[type, str] = {
    type(None): "nothing",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
    dt.date: "a date or time",
    dt.time: "a date or time",
}


@dataclass(frozen=True)
class Expects:
    """What a key takes, in words that follow "must be"; put into its ``Annotated`` type."""

    text: str


@dataclass(frozen=True)
class _Place:
    """Where an error belongs: a key, its field where there is one, and the type expected there."""

    keys: tuple[str, ...]
    field: FieldInfo | None
    annotation: Any
    section: type[BaseModel]

    @property
    def key(self) -> str:
        return ".".join(self.keys)


def refusal(where: str, complaints: Mapping[str, str]) -> JobError:
    """Return one error for all that is wrong with a job."""
    lines = [f"`{key}` {text}" for key, text in complaints.items()]
    if len(lines) == 1:
        return JobError(f"{where}: {lines[0]}")
    head = f"{where}: {len(lines)} errors:"
    return JobError(Lines(head, *(f"  {line}" for line in lines)))


def complaints_of(error: ValidationError, model: type[BaseModel], data: object) -> dict[str, str]:
    """Return what is wrong with each key, from all errors of one validation.

    By dotted key a sentence to stand behind it. A key with a choice of types makes one complaint,
    not one for each type.
    """
    complaints: dict[str, str] = {}
    for details in error.errors():
        place = _place(model, details["loc"], data)
        if details["type"] == CUSTOM:
            context = details["ctx"]
            key = ".".join((*place.keys, *([context["key"]] if context["key"] else [])))
            complaints[key] = context["text"]
        elif place.key not in complaints:
            complaints[place.key] = _complaint(place, details, model, data)
    return complaints


def format_value(value: object) -> str:
    """Return a value received, as YAML would spell it, short and without secrets, with its kind."""
    if isinstance(value, (bool, type(None))):
        text = {True: "true", False: "false", None: "null"}[value]
    elif isinstance(value, str):
        text = repr(mask_secrets(value))
    else:
        # Masked item by item: in the text of a whole list one URI would run into the next.
        text = str(mask_values(value))
    if len(text) > _LONGEST_SHOWN:
        text = f"{text[:_LONGEST_SHOWN]}…"
    return f"{text} ({_kind(value)})"


def mask_values(value: Any) -> Any:
    """Return plain values, nested or not, with secrets in URIs replaced by ``***``."""
    return map_texts(value, lambda text, _: mask_secrets(text))


def _kind(value: object) -> str:
    found = (text for kind, text in _KINDS.items() if isinstance(value, kind))
    return next(found, type(value).__name__)


def _complaint(place: _Place, details: ErrorDetails, model: type[BaseModel], data: object) -> str:
    own_words = getattr(place.section, "complaint", None)
    beside = _value_at(data, place.keys[:-1], {})
    if own_words and (told := own_words(details["type"], place.keys[-1], beside)):
        return str(told)
    if details["type"] in ("extra_forbidden", "invalid_key"):
        return f"is not a key.{_nearest_key(place, model)}"
    expected = _expected(place)
    if details["type"] == "missing":
        return f"is missing. Expected: {expected}."
    value = _value_at(data, place.keys, details["input"])
    return f"must be {expected}. Received: {format_value(value)}.{_hint(place, value)}"


def _place(model: type[BaseModel], loc: tuple[int | str, ...], data: object) -> _Place:
    """Follow pydantic's location as long as it names keys, and stop at its tags for types."""
    place = _Place((), None, model, model)
    for step in loc:
        inner, field, section = _alone(place.annotation), place.field, _section_in(place.annotation)
        if section is not None:
            if hasattr(section, "class_for"):
                section = section.class_for(_value_at(data, place.keys, None))
            field = section.model_fields.get(str(step))
            annotation = field.annotation if field else None
        elif get_origin(inner) is dict or (
            get_origin(inner) is list and _section_in(get_args(inner)[0])
        ):
            annotation = get_args(inner)[-1]
        else:
            break
        place = _Place((*place.keys, str(step)), field, annotation, section or place.section)
    return place


def _alone(annotation: Any) -> Any:
    """Return the one type in ``annotation`` besides ``None``; ``None`` where there is a choice."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is None or get_origin(annotation) in (list, dict, Literal):
        return annotation
    others = [each for each in get_args(annotation) if each is not type(None)]
    return _alone(others[0]) if len(others) == 1 else None


def _section_in(annotation: object) -> type[BaseModel] | None:
    alone = _alone(annotation)
    return alone if isinstance(alone, type) and issubclass(alone, BaseModel) else None


def _nearest_key(place: _Place, model: type[BaseModel]) -> str:
    own = list(place.section.model_fields)
    elsewhere = [key for key in dotted_keys(model) if key.rpartition(".")[2] == place.keys[-1]]
    # One letter more or less, as in a plural, is likelier than another section.
    slip = did_you_mean(place.keys[-1], own, likeness=0.85)
    if elsewhere and not slip:
        return f" Did you mean `{elsewhere[0]}`?"
    return slip or did_you_mean(place.keys[-1], own) or f" Known keys: {_join_names(own)}."


def dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the keys of a section and of the sections in it, such as ``output.columns.norm``."""
    for name, field in model.model_fields.items():
        yield prefix + name
        section = _section_in(field.annotation)
        if section is not None:
            yield from dotted_keys(section, f"{prefix}{name}.")


def _expected(place: _Place) -> str:
    section = _section_in(place.annotation)
    if section is not None:
        return f"a section with the keys {_join_names(list(section.model_fields))}"
    # The outermost is the narrowest: a column name is a name.
    for note in reversed(_notes(place)):
        if isinstance(note, Expects):
            return note.text
    choices = [str(each) for each in _choices(place.annotation)]
    return _join_names(choices, "or") if choices else "a non-empty string"


def _notes(place: _Place) -> tuple[Any, ...]:
    if get_origin(place.annotation) is Annotated:
        return get_args(place.annotation)[1:]
    is_whole_field = place.field is not None and place.annotation is place.field.annotation
    return tuple(place.field.metadata) if place.field and is_whole_field else ()


def _choices(annotation: object) -> list[object]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for each in get_args(annotation) for choice in _choices(each)]


def _join_names(names: list[str], last: str = "and") -> str:
    quoted = [f"`{name}`" for name in names]
    if len(quoted) == 1:
        return quoted[0]
    return f"{', '.join(quoted[:-1])} {last} {quoted[-1]}"


def _value_at(data: object, keys: tuple[str, ...], otherwise: object) -> object:
    for key in keys:
        if isinstance(data, list) and key.isdigit():
            data = dict(enumerate(data)).get(int(key), otherwise)
        elif isinstance(data, Mapping) and key in data:
            data = data[key]
        else:
            return otherwise
    return data


def _hint(place: _Place, value: object) -> str:
    """Return the next step for the mistakes that are made most."""
    expected = _expected(place)
    takes_no_words = expected.startswith(
        ("a number", "an integer", "a positive integer", "a fraction", "`sha256")
    )
    if isinstance(value, (bool, dt.date)) and not takes_no_words:
        return " YAML converts yes, no, on, off and dates: quote strings."
    if isinstance(value, str) and expected.startswith("a list"):
        return f" Write `[{mask_secrets(value)}]` for a list{'' if ',' in value else ' of one'}."
    if place.keys == ("input", "keys"):
        return " Did you mean `input.key`, which names columns?"
    if isinstance(value, str):
        return did_you_mean(value, [str(each) for each in _choices(place.annotation)])
    return _NUMBER_HINTS.get(place.keys[-1], "") if isinstance(value, int) else ""
