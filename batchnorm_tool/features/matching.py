"""Which stored columns feed which model input: as the job says, or found where none is in doubt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from batchnorm_tool.errors import InputError, JobError
from batchnorm_tool.features.columns import StoredColumn, in_words
from batchnorm_tool.features.feed import Feed, check_fit, feeds, input_in_words
from batchnorm_tool.features.values import STRING
from batchnorm_tool.input_warnings import warn

if TYPE_CHECKING:
    from batchnorm_tool.chunk import Field
    from batchnorm_tool.job import Input

VECTOR = "vector"

Columns = dict[str, tuple[str, ...]]

# Columns that a message lists before it says how many more there are.
_SHOWN = 12


def match_features(schema: pa.Schema, inputs: Sequence[Field], spec: Input) -> Columns:
    """Find the stored columns that feed each model input.

    Without ``spec.features``, an input takes the column of its own name; otherwise the only list
    column of fitting kind and width; otherwise, where one input is left, all scalar columns of its
    kind, if they are exactly as many as it is wide. Key and passed-through columns are never
    features unless named. Any doubt is an error.

    Args:
        schema: All columns of the input.
        inputs: The model's inputs; empty where predictions are stored already: then the columns
            named, or the only list column of numbers, are ``"vector"``, and a dict's names stay.
        spec: The job's ``input`` section.

    Returns:
        For each model input its columns in order: one, or several scalar ones to stack. With
        ``spec.transform`` each input has all columns that the function is given.

    Raises:
        InputError: A column is missing, or does not fit its input in kind or width; or what
            belongs together is not evident. The message shows both sides.
        JobError: ``spec.features``, ``fill`` or ``decode`` names what there is not.

    Warns:
        InputWarning: A column has an extension type that is not known here.

    Example:
        >>> from batchnorm_tool.chunk import Field
        >>> from batchnorm_tool.job import Input
        >>> schema = pa.schema({"id": pa.int64(), "pixels": pa.list_(pa.float32(), 64)})
        >>> spec = Input(path="digits.parquet", key="id")
        >>> match_features(schema, [Field("image", (8, 8, 1), "float32")], spec)
        {'image': ('pixels',)}
    """
    _refuse_duplicates(schema)
    if spec.transform is not None:
        return _for_transform(schema, inputs, spec)
    if spec.features is None:
        matched = _found(schema, inputs, spec)
    else:
        matched = _as_named(inputs, spec.features)
    _require_columns(schema, matched)
    _refuse_unused(matched, spec)
    for feed in feeds(schema, matched, inputs, spec):
        check_fit(schema, feed)
        for name in feed.columns:
            feed.conversion(name).filler()
            _warn_of_extension(schema.field(name))
    return matched


def _as_named(
    inputs: Sequence[Field], features: str | Sequence[str] | Mapping[str, str | Sequence[str]]
) -> Columns:
    if isinstance(features, Mapping):
        if inputs:
            _check_names(features, [field.name for field in inputs])
        return {name: _tuple(names) for name, names in features.items()}
    if len(inputs) > 1:
        listed = ", ".join(input_in_words(field) for field in inputs)
        raise JobError(
            "`input.features` names columns, but not for which of the model's inputs. "
            f"Expected {{model input: column or [columns]}} for {listed}. Received: {features!r}."
        )
    return {inputs[0].name if inputs else VECTOR: _tuple(features)}


def _check_names(features: Iterable[str], inputs: Sequence[str]) -> None:
    given = list(features)
    for name in given:
        if name not in inputs:
            raise JobError(
                f"`input.features.{name}` names no input of the model.{_did_you_mean(name, inputs)}"
                f" Expected: {_listed(inputs)}. Received: `{name}`."
            )
    missing = [name for name in inputs if name not in given]
    if missing:
        raise JobError(
            f"`input.features` says nothing of the model input `{missing[0]}`. Expected columns "
            f"for each of: {_listed(inputs)}. Received: {_listed(given)}."
        )


def _for_transform(schema: pa.Schema, inputs: Sequence[Field], spec: Input) -> Columns:
    """All columns for every input, because only the user's function knows which it needs."""
    if not inputs:
        raise JobError(
            "`input.transform` makes the inputs of a model, and this job has none. "
            "Take it out, or name a model."
        )
    if spec.fill or spec.decode:
        raise JobError(
            "`input.transform` takes the place of `input.fill` and `input.decode`. Expected one or "
            "the other. Received: both. Fill and decode in your function, or take it out."
        )
    features = spec.features
    if features is None:
        names = tuple(schema.names)
    elif isinstance(features, Mapping):
        names = tuple(name for value in features.values() for name in _tuple(value))
    else:
        names = _tuple(features)
    matched = {field.name: tuple(dict.fromkeys(names)) for field in inputs}
    _require_columns(schema, matched)
    return matched


def _found(schema: pa.Schema, inputs: Sequence[Field], spec: Input) -> Columns:
    carried = {*_tuple(spec.key or ()), *spec.passthrough}
    free = [name for name in schema.names if name not in carried]
    if not inputs:
        return {VECTOR: (_only_vector(schema, free),)}
    matched = {field.name: (field.name,) for field in inputs if field.name in free}
    rest = [field for field in inputs if field.name not in matched]
    free = [name for name in free if name not in matched]
    found = _matched_by_fit(schema, rest, free, spec)
    if found is None and len(rest) == 1:
        found = _only_candidate(schema, rest[0], free)
    if found is None:
        raise InputError(_not_evident(schema, rest, free))
    return {field.name: (matched | found)[field.name] for field in inputs}


def _matched_by_fit(
    schema: pa.Schema, inputs: Sequence[Field], free: Sequence[str], spec: Input
) -> Columns | None:
    """The only column or columns that fit each input; ``None`` where there are several, or none."""
    found: Columns = {}
    for field in inputs:
        lists: list[tuple[str, ...]] = [
            (name,)
            for name in free
            if (_lengths(schema, name) or name in spec.decode)
            and _fits(schema, Feed(field, (name,), {}, spec.decode))
        ]
        if not lists and len(inputs) == 1:
            lists = _all_scalars(schema, field, free)
        if len(lists) != 1:
            return None
        found[field.name] = lists[0]
    distinct = set(found.values())
    return found if len(distinct) == len(found) else None


def _only_candidate(schema: pa.Schema, field: Field, free: Sequence[str]) -> Columns | None:
    """The only list column, although it does not fit: what is wrong with it says most."""
    lists = [name for name in free if _lengths(schema, name)]
    return {field.name: (lists[0],)} if len(lists) == len(free) == 1 else None


def _all_scalars(schema: pa.Schema, field: Field, free: Sequence[str]) -> list[tuple[str, ...]]:
    columns = [StoredColumn.of(schema.field(name)) for name in free]
    names = tuple(
        column.name
        for column in columns
        if not column.lengths and (column.is_text if field.dtype == STRING else column.is_numeric)
    )
    return [names] if names and _fits(schema, Feed(field, names, {}, {})) else []


def _fits(schema: pa.Schema, feed: Feed) -> bool:
    try:
        check_fit(schema, feed)
    except InputError:
        return False
    return True


def _only_vector(schema: pa.Schema, free: Sequence[str]) -> str:
    columns = [StoredColumn.of(schema.field(name)) for name in free]
    vectors = [column.name for column in columns if column.lengths and column.is_numeric]
    if len(vectors) != 1:
        raise InputError(
            "Which column holds the predictions is not evident. Expected one column with lists of "
            f"numbers. Received: {_listed(vectors) if vectors else 'none'} among "
            f"{_columns_in_words(schema, free)}. Name it with `input.features` (on the command "
            "line: `--column`)."
        )
    return vectors[0]


def _lengths(schema: pa.Schema, name: str) -> int:
    return len(StoredColumn.of(schema.field(name)).lengths)


def _not_evident(schema: pa.Schema, inputs: Sequence[Field], free: Sequence[str]) -> str:
    wanted = ", ".join(input_in_words(field) for field in inputs)
    return (
        "Which columns feed the model is not evident from names and widths. Expected columns for "
        f"{wanted}. Received: {_columns_in_words(schema, free)}. Name them with `input.features`: "
        "a column, a list of scalar columns, or {model input: columns}; and what is no feature "
        "with `input.key` or `input.passthrough`."
    )


def _columns_in_words(schema: pa.Schema, names: Sequence[str]) -> str:
    if not names:
        return "no column that is neither key nor passed through"
    shown = ", ".join(in_words(StoredColumn.of(schema.field(name))) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return shown + more


def _refuse_duplicates(schema: pa.Schema) -> None:
    names = schema.names
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            raise InputError(
                f"The input has {names.count(name)} columns called `{name}`. Expected different "
                f"names. Received: {_listed(names)}. Rename one of them."
            )


def _require_columns(schema: pa.Schema, matched: Columns) -> None:
    for name in dict.fromkeys(name for names in matched.values() for name in names):
        if name not in schema.names:
            raise InputError(
                f"The input has no column `{name}`, which `input.features` names."
                f"{_did_you_mean(name, schema.names)} Expected one of: {_listed(schema.names)}. "
                f"Received: `{name}`."
            )


def _refuse_unused(matched: Columns, spec: Input) -> None:
    used = [name for names in matched.values() for name in names]
    for key, names in (("fill", spec.fill), ("decode", spec.decode)):
        for name in names:
            if name not in used:
                raise JobError(
                    f"`input.{key}.{name}` names a column that is no feature."
                    f"{_did_you_mean(name, used)} Expected one of: {_listed(used)}. "
                    f"Received: `{name}`."
                )


def _warn_of_extension(field: pa.Field) -> None:
    unknown = (field.metadata or {}).get(b"ARROW:extension:name")
    if isinstance(field.type, pa.BaseExtensionType) and not isinstance(
        field.type, pa.FixedShapeTensorType
    ):
        unknown = field.type.extension_name.encode()
    if unknown is not None:
        msg = (
            f"The column `{field.name}` has the extension type {unknown.decode(errors='replace')}, "
            "which is not known here: the values stored under it are read as they are."
        )
        warn(msg)


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3)
    return f" Did you mean {' or '.join(f'`{match}`' for match in near)}?" if near else ""


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _tuple(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
