"""What differs between two results, in words: ``another model: 66e5a2 → 073d0d``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from batchnorm_tool.display import cut
from batchnorm_tool.pipeline.plan import Identity

_FILES = "the input files"
# What is known by a hash, of which a few digits tell two apart.
_HASHED = {"model": "another model", "input.transform": "another transform"}
_DIGITS = 6
# In the order in which they are said; all others by their key, after these.
_LABELS = {
    "model.layer": "layer",
    "model.signature": "signature",
    "model.batch_dependent": "batch size of dependent predictions",
    "outputs": "outputs",
    "output": "output",
    "norms": "",
    "features": "features",
    "input.fill": "fill",
    "input.decode": "decode",
    "input.dtype": "input dtype",
    "batch_size": "batch size",
    "threads": "threads",
    "device": "device",
    "cpu": "CPU",
    "versions": "",
    "limit": "limit",
}
# What is said of an output's norm and its further options, by their keys in a space.
_NORM_PARTS = {
    "norm": "norm",
    "axis": "axis",
    "truncate": "truncation",
    "mean": "projected mean",
    "dtype": "vector dtype",
    "scale": "scale",
}
_ORDER = [*_HASHED, *_LABELS]
_MOST_NAMES = 4
_ROOM = 48


def differences(old: Identity, new: Identity, unasked: Collection[str] = ()) -> Iterator[str]:
    """Say what differs between two identities, most meaningful first, but for ``unasked``."""
    for group in ("space", "bits", "policies", "result"):
        yield from changes(getattr(old, group), getattr(new, group), unasked)


def changes(
    before: Mapping[str, object], after: Mapping[str, object], unasked: Collection[str] = ()
) -> Iterator[str]:
    """Say what differs between two parts of identities, such as two spaces."""
    for name in sorted((before.keys() | after.keys()) - set(unasked), key=_rank):
        if before.get(name) != after.get(name):
            yield from _described(name, before.get(name), after.get(name))


def _rank(name: str) -> tuple[int, str]:
    return _ORDER.index(name) if name in _ORDER else len(_ORDER), name


def _described(name: str, before: object, after: object) -> Iterator[str]:
    if name == "input":
        yield _FILES
    elif name in _HASHED:
        yield f"{_HASHED[name]}: {_value(before)[:_DIGITS]} → {_value(after)[:_DIGITS]}"
    elif not isinstance(before, dict) and not isinstance(after, dict):
        yield _changed(_LABELS.get(name, f"`{name}`"), before, after)
    else:
        old, new = (side if isinstance(side, dict) else {} for side in (before, after))
        describe = {"norms": _norms, "features": _features, "backend": _backends}.get(name)
        yield from describe(old, new) if describe else _by_key(name, old, new)


def _changed(label: str, before: object, after: object) -> str:
    return f"{label} {_value(before)} → {_value(after)}"


def _by_key(name: str, before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[str]:
    """Yield only the keys that differ."""
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            label = _LABELS.get(name)
            named = f"`{name}.{key}`" if label is None else f"{label} of `{key}`" if label else key
            yield _changed(named, before.get(key), after.get(key))


def _pairs(
    before: Mapping[str, object], after: Mapping[str, object]
) -> Iterator[tuple[str, object, object]]:
    """Yield what each side has of an input or output; the only one on each side needs no name."""
    if len(before) == len(after) == 1:
        (old,), (new,) = before.values(), after.values()
        yield "", old, new
        return
    for name in sorted(before.keys() | after.keys()):
        yield f" of `{name}`", before.get(name), after.get(name)


def _backends(before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[str]:
    old, new = (str(side.get("name", "tensorflow")) for side in (before, after))
    if old != new:
        yield _changed("back end", old, new)
        return
    for part in ("version", "graph_sha256"):
        if before.get(part) != after.get(part):
            yield _changed(f"{part} of {new}", *(side.get(part) for side in (before, after)))


def _norms(before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[str]:
    for of, old, new in _pairs(before, after):
        if isinstance(old, dict) and isinstance(new, dict):  # the names of outputs say the rest
            for part, words in _NORM_PARTS.items():
                was, now = old.get(part), new.get(part)
                if was != now:
                    digits = _DIGITS if part == "mean" else None
                    yield f"{words}{of} {_value(was)[:digits]} → {_value(now)[:digits]}"


def _features(before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[str]:
    for of, *sides in _pairs(before, after):
        old, new = (list(side) if isinstance(side, list | tuple) else [] for side in sides)
        if old != new:
            gone, added = [n for n in old if n not in new], [n for n in new if n not in old]
            found = [f"without {_names(gone)}"] if gone else []
            found += [f"with {_names(added)}"] if added else []
            yield f"features{of} {', '.join(found) or 'in another order'}"


def _names(names: list[object]) -> str:
    shown = ", ".join(f"`{cut(name, _ROOM)}`" for name in names[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    return f"{shown} and {more:,} more" if more > 0 else shown


def _value(value: object) -> str:
    """Return a value as a job file has it: no quotes, no brackets, and not too long."""
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return cut(", ".join(map(_value, value)), _ROOM)
    return cut(value, _ROOM)
