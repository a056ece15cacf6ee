"""Which stored columns feed which model input: as the job says, or found where none is in doubt."""

import fnmatch
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

import pyarrow as pa

from batchnorm_tool.chunk import Field
from batchnorm_tool.display import did_you_mean
from batchnorm_tool.errors import InputError, JobError, warn
from batchnorm_tool.features import columns as stored
from batchnorm_tool.features.columns import InputBinding, StoredColumn
from batchnorm_tool.features.values import STRING, import_pillow
from batchnorm_tool.job import Input

VECTOR = "vector"

Columns = dict[str, tuple[str, ...]]
_Named = str | Sequence[str] | Mapping[str, str | Sequence[str]]

# Columns that a message lists before it says how many more there are.
_SHOWN = 12

# Names that keys, row numbers and labels bear: what is so called is no feature unless named.
_KEY_NAME = re.compile(
    r"((^|[_\W])(id|key|pk|uuid|guid|sku|isbn|asin|ean)|(?<=[a-z])(Id|ID|Key|UUID|Uuid))$"
    r"|^(id_.*|index|row|row_?(id|index|num(ber)?)|unnamed: \d+|__index_level_\d+__)$"
)
_LABEL_NAME = re.compile(r"(^|_)(labels?|targets?)$|^(class|y|y_true|ground_truth)$")

# Rows that it takes to tell integers without repetition from features.
_LEAST_ROWS = 8


def match_features(
    schema: pa.Schema,
    inputs: Sequence[Field],
    spec: Input,
    sample: Callable[[Columns], pa.Table] | None = None,
) -> Columns:
    """Find the stored columns that feed each model input.

    Without ``spec.features``, an input takes the column of its own name; otherwise the only list
    column of fitting kind and width; otherwise, where one input is left, all scalar columns of its
    kind, if they are exactly as many as it is wide. A column that is a key, a label or an index by
    its name is no feature unless named, nor is one that is the key or passed through, unless it is
    the only list that fits. Any doubt is an error. Where predictions are stored already, there are
    no ``inputs``: then the columns named, or the only list column of numbers, are ``"vector"``, and
    a dict's names stay.

    A name with ``*``, ``?`` or ``[`` among ``spec.features`` that is no column's stands for all
    columns that it matches (see `fnmatch`), those with a number at the end in its order. The
    ``sample`` gives some rows of the columns found, by which scalar ones are told from keys;
    without it, names alone decide.

    Returns:
        For each model input its columns in order: one, or several scalar ones to stack. With
        ``spec.transform`` each input has all columns that the function is given.
    """
    _refuse_duplicates(schema)
    if spec.features is not None:
        named = _resolved(schema, spec.features, _tuple(spec.key or ()))
        spec = spec.model_copy(update={"features": named})
    if spec.transform is not None:
        return _for_transform(schema, inputs, spec)
    if spec.features is None:
        matched = _found(schema, inputs, spec)
        if sample is not None:
            _refuse_unique_numbers(schema, matched, sample)
    else:
        matched = _as_named(inputs, spec.features)
    _require_columns(schema, matched)
    _refuse_unused(matched, spec)
    if spec.decode:
        import_pillow()
    for binding in stored.input_bindings(schema, matched, inputs, spec):
        stored.check_fit(schema, binding)
        for name in binding.columns:
            binding.conversion(name).filler()
            _warn_of_extension(schema.field(name))
    return matched


def names_in(columns: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return the stored columns that feed any input, each once."""
    return tuple(dict.fromkeys(chain.from_iterable(columns.values())))


def is_key_name(name: str) -> bool:
    """Tell whether keys, row numbers or an index are usually called so.

    Example:
        >>> [name for name in ("user_id", "itemId", "index", "paid", "n") if is_key_name(name)]
        ['user_id', 'itemId', 'index']
    """
    return bool(_KEY_NAME.search(name) or _KEY_NAME.search(name.lower()))


def names_of(schema: pa.Schema, names: Iterable[str], key: Sequence[str] = ()) -> tuple[str, ...]:
    """Return names of columns, with each pattern replaced by the columns that it matches."""
    given = tuple(names)
    plain = [name for name in given if not _is_pattern(schema, name)]
    found: dict[str, None] = {}
    for name in given:
        if _is_pattern(schema, name):
            found |= dict.fromkeys(_matching(schema, name, {*plain, *key, *found}))
        else:
            found[name] = None
    return tuple(found) if len(plain) < len(given) else given


def _is_pattern(schema: pa.Schema, name: str) -> bool:
    return bool(set(name) & set("*?[")) and name not in schema.names


def _matching(schema: pa.Schema, pattern: str, taken: set[str]) -> list[str]:
    matching = [name for name in schema.names if fnmatch.fnmatchcase(name, pattern)]
    if not matching:
        near = did_you_mean(re.sub(r"[*?]|\[.*?\]", "", pattern), schema.names)
        raise InputError(
            f"No column of the input matches `{pattern}`.{near} Expected one "
            f"of: {join_names(schema.names)}. Received: `{pattern}`."
        )
    names = [name for name in matching if name not in taken]
    apart = sorted(_set_apart(schema).intersection(names))
    if apart and len(apart) < len(names):
        raise InputError(
            f"`{pattern}` also matches `{apart[0]}`, which looks like a key, a label or an index. "
            f"Expected features only. Received: {join_names(names)}. If it is a feature, list it "
            "next to the pattern; otherwise use a narrower pattern, such as `emb_[0-9]*`."
        )
    ordered = _by_number(names)
    if ordered != names:
        warn(
            f"The columns that `{pattern}` matches are not stored in numeric order. They are used "
            f"in this order: {join_names(ordered)}. List them one by one if the model was "
            "trained on another order."
        )
    return ordered


def _by_number(names: Sequence[str]) -> list[str]:
    """Sort names that differ in the number at their end; others stay where they are."""
    stems = [_stem(name) for name in names]
    first = {stem: at for at, stem in reversed([*enumerate(stems)])}

    def place(name: str) -> tuple[int, int, str]:
        number = name.removeprefix(_stem(name)).lstrip("0")
        return first[_stem(name)], len(number), number  # as numbers sort, however long they are

    return sorted(names, key=place)


def _stem(name: str) -> str:
    return name.rstrip("0123456789")


def _resolved(schema: pa.Schema, features: _Named, key: Sequence[str]) -> _Named:
    """Return ``features`` without patterns."""
    if isinstance(features, Mapping):
        return {name: names_of(schema, _tuple(value), key) for name, value in features.items()}
    return names_of(schema, _tuple(features), key)


def _as_named(inputs: Sequence[Field], features: _Named) -> Columns:
    if isinstance(features, Mapping):
        if inputs:
            _check_names(features, [field.name for field in inputs])
        return {name: _tuple(names) for name, names in features.items()}
    if len(inputs) > 1:
        listed = ", ".join(stored.describe_input(field) for field in inputs)
        raise JobError(
            "`input.features` lists columns without the model inputs that they are for. Expected "
            f"{{model input: column or [columns]}} for {listed}. Received: {features!r}."
        )
    return {inputs[0].name if inputs else VECTOR: _tuple(features)}


def _check_names(features: Iterable[str], inputs: Sequence[str]) -> None:
    given = list(features)
    for name in given:
        if name not in inputs:
            raise JobError(
                f"`input.features.{name}` is not an input of the "
                f"model.{did_you_mean(name, inputs)} Expected: {join_names(inputs)}. Received: "
                f"`{name}`."
            )
    missing = [name for name in inputs if name not in given]
    if missing:
        raise JobError(
            f"`input.features` lacks the model input `{missing[0]}`. Expected columns for each "
            f"of: {join_names(inputs)}. Received: {join_names(given)}."
        )


def _for_transform(schema: pa.Schema, inputs: Sequence[Field], spec: Input) -> Columns:
    """Return all columns for every input, because only the user's function knows which it needs."""
    if not inputs:
        raise JobError(
            "`input.transform` prepares a model's inputs, and this job has no model. Remove it, "
            "or add a model."
        )
    if spec.fill or spec.decode:
        raise JobError(
            "`input.transform` replaces `input.fill` and `input.decode`. Expected one or the "
            "other. Received: both. Fill and decode in your function, or remove it."
        )
    features = schema.names if spec.features is None else spec.features
    matched = dict.fromkeys((field.name for field in inputs), names_in(_as_named((), features)))
    _require_columns(schema, matched)
    return matched


def _found(schema: pa.Schema, inputs: Sequence[Field], spec: Input) -> Columns:
    key = _tuple(spec.key or ())
    carried = {*key, *spec.passthrough}
    apart = carried | _set_apart(schema)
    free = [name for name in schema.names if name not in apart]
    if not inputs:
        others = [name for name in schema.names if name in apart and name not in key]
        return {VECTOR: (_only_vector(schema, free, others),)}
    passed = [name for name in spec.passthrough if name in schema.names]
    matched = {
        field.name: (field.name,)
        for field in inputs
        if field.name in schema.names
        and (field.name not in carried or _fits(schema, field, (field.name,), spec.decode))
    }
    rest = [field for field in inputs if field.name not in matched]
    free, passed = ([name for name in names if name not in matched] for names in (free, passed))
    found = _matched_by_fit(schema, rest, (free, passed), spec)
    if found is None and len(rest) == len(free) == 1 and _columns(schema, free)[0].lengths:
        found = {rest[0].name: tuple(free)}  # unfit as it is: what is wrong with it says most
    if found is None:
        raise InputError(_not_evident(schema, rest, free))
    return {field.name: (matched | found)[field.name] for field in inputs}


def _set_apart(schema: pa.Schema) -> set[str]:
    """Return the columns that are keys, labels or an index by name or by what pandas wrote."""
    try:
        written = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
        index = [name for name in written["index_columns"] if isinstance(name, str)]
    except (ValueError, TypeError, LookupError, RecursionError):  # another program's
        index = []
    labels = {name for name in schema.names if _LABEL_NAME.search(name.lower())}
    if {"x", "X"} & {*schema.names}:
        labels -= {"y", "Y"}  # a coordinate
    return {name for name in schema.names if is_key_name(name) or name in index} | labels


def _matched_by_fit(
    schema: pa.Schema,
    inputs: Sequence[Field],
    names: tuple[Sequence[str], Sequence[str]],
    spec: Input,
) -> Columns | None:
    """Return the only columns that fit each input; ``None`` where there are several or none.

    Of the two kinds of ``names``, those of columns that are passed through come second.
    """
    found: Columns = {}
    for field in inputs:
        lists, passed = (_fitting_lists(schema, field, some, spec) for some in names)
        if not lists:
            lists = passed
            scalars = tuple(_scalars(schema, field, names[0])) if len(inputs) == 1 else ()
            if scalars and _fits(schema, field, scalars, {}):
                lists.append(scalars)
        if len(lists) != 1:
            return None
        found[field.name] = lists[0]
    # Two inputs that the same column fits are a doubt like any other.
    distinct = set(found.values())
    return found if len(distinct) == len(found) else None


def _fitting_lists(
    schema: pa.Schema, field: Field, names: Sequence[str], spec: Input
) -> list[tuple[str, ...]]:
    return [
        (column.name,)
        for column in _columns(schema, names)
        if (column.lengths or column.name in spec.decode)
        and _fits(schema, field, (column.name,), spec.decode)
    ]


def _scalars(schema: pa.Schema, field: Field, free: Sequence[str]) -> list[str]:
    return [
        column.name
        for column in _columns(schema, free)
        if not column.lengths
        and not column.is_bytes
        and (column.is_text if field.dtype == STRING else column.is_numeric)
    ]


def _refuse_unique_numbers(
    schema: pa.Schema, matched: Columns, sample: Callable[[Columns], pa.Table]
) -> None:
    """Refuse what was matched by count with a column among it that could as well be a key."""
    for name, names in matched.items():
        # Of `pixel_0` to `pixel_63` none is a key, however its numbers are spread: they are a
        # series.
        stems = Counter(_stem(column) for column in names)
        whole = [
            column
            for column in names
            if pa.types.is_integer(schema.field(column).type) and stems[_stem(column)] == 1
        ]
        if len(names) == 1 or not whole:
            continue
        rows = sample({name: names})
        for column in whole:
            if _LEAST_ROWS <= rows.num_rows == len(rows[column].unique()):
                raise InputError(
                    f"Cannot tell whether the column `{column}` feeds the model input `{name}`: "
                    f"its first {rows.num_rows:,} integers are all different, as in a key. "
                    f"Expected features only. Received: {join_names(names)}. {_naming(names)}"
                )


def _fits(
    schema: pa.Schema, field: Field, columns: tuple[str, ...], decode: Mapping[str, str]
) -> bool:
    try:
        stored.check_fit(schema, InputBinding(field, columns, {}, decode))
    except InputError:
        return False
    return True


def _only_vector(schema: pa.Schema, free: Sequence[str], others: Sequence[str]) -> str:
    """Return the only column of number lists; the ``others`` count where ``free`` has none."""
    vectors, second = (
        [
            column.name
            for column in _columns(schema, names)
            if column.lengths and column.is_numeric and 0 not in column.lengths
        ]
        for names in (free, others)
    )
    vectors = vectors or second
    if len(vectors) != 1:
        kept = "" if vectors else _conversions(schema, free)
        raise InputError(
            "Cannot tell which column holds the predictions. Expected one column with lists of "
            f"numbers. Received: {join_names(vectors) if vectors else 'none'} "
            f"among {_describe_columns(schema, free)}. Set it with `input.features` (on the "
            "command line: `--column`, which also takes several scalar columns: `--column "
            f"a,b,c`).{kept}"
        )
    return vectors[0]


def _not_evident(schema: pa.Schema, inputs: Sequence[Field], free: Sequence[str]) -> str:
    wanted = ", ".join(stored.describe_input(field) for field in inputs)
    candidates = _scalars(schema, inputs[0], free) if len(inputs) == 1 else []
    return (
        "Cannot tell from names and widths which columns feed the model. Expected columns "
        f"for {wanted}. Received: {_describe_columns(schema, free)}. {_naming(candidates)}"
        f"{_conversions(schema, free)}"
    )


def _conversions(schema: pa.Schema, names: Sequence[str]) -> str:
    """Say how the columns among these that keep vectors in another way become lists."""
    return "".join(map(stored.conversion, _columns(schema, names)))


def _naming(candidates: Sequence[str]) -> str:
    names = [f'"{name}"' if "," in name else name for name in candidates[:_SHOWN]]
    flag = ",".join(names or ["a", "b", "c"]) + (",…" if len(candidates) > _SHOWN else "")
    return (
        "Set them with `input.features`: a column, a list of scalar columns (on the command line: "
        f"`--features {flag}`), or {{model input: columns}}; and list other columns in "
        "`input.key` or `input.passthrough`."
    )


def _describe_columns(schema: pa.Schema, names: Sequence[str]) -> str:
    """Return some columns, and those that are set apart by their names."""
    shown = ", ".join(map(stored.describe, _columns(schema, names[:_SHOWN])))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    apart = sorted(_set_apart(schema).difference(names))
    none = "no column besides keys and passed-through columns"
    beside = f" ({join_names(apart)}: treated as a key, a label or an index)" if apart else ""
    return (shown or none) + more + beside


def _columns(schema: pa.Schema, names: Iterable[str]) -> list[StoredColumn]:
    return [StoredColumn.of(schema.field(name)) for name in names]


def _refuse_duplicates(schema: pa.Schema) -> None:
    for name, count in Counter(schema.names).items():
        if count > 1:
            raise InputError(
                f"The input has {count} columns named `{name}`. Expected unique names. "
                f"Received: {join_names(schema.names)}. Rename one of them."
            )


def _require_columns(schema: pa.Schema, matched: Columns) -> None:
    present = set(schema.names)
    for name in names_in(matched):
        if name not in present:
            several = f" For several columns, write a list: [{name}]." if "," in name else ""
            raise InputError(
                f"The input has no column `{name}`, which `input.features` names."
                f"{did_you_mean(name, schema.names)} Expected one of: {join_names(schema.names)}. "
                f"Received: `{name}`.{several}"
            )


def _refuse_unused(matched: Columns, spec: Input) -> None:
    used = names_in(matched)
    for key, names in (("fill", spec.fill), ("decode", spec.decode)):
        for name in names:
            if name not in used:
                raise JobError(
                    f"`input.{key}.{name}` names a column that is not a "
                    f"feature.{did_you_mean(name, used)} Expected one of: {join_names(used)}. "
                    f"Received: `{name}`."
                )


def _warn_of_extension(field: pa.Field) -> None:
    unknown = (field.metadata or {}).get(b"ARROW:extension:name", b"").decode(errors="replace")
    if isinstance(field.type, pa.BaseExtensionType):
        is_known = isinstance(field.type, pa.FixedShapeTensorType)
        unknown = unknown if is_known else field.type.extension_name
    if unknown:
        warn(
            f"The column `{field.name}` has the extension type {unknown}, which is not known here: "
            "its storage values are read as they are."
        )


def join_names(names: Sequence[str]) -> str:
    """Return names as messages list them, the first dozen and how many more there are."""
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _tuple(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
