"""Job files: YAML or TOML into plain values, safely, with overrides and the environment.

YAML is read without tags (nothing in a file can make Python objects), without aliases (nothing
can expand), and with every key given once.
"""

import copy
import os
import re
import stat
import tomllib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import yaml

from batchnorm_tool.display import printable
from batchnorm_tool.errors import JobError

_LARGEST_BYTES = 1 << 20
_DEEPEST = 20
_VARIABLE = re.compile(r"\$(\$?)\{([^}]*)(\}?)")
_VARIABLE_INSIDE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, without tags, aliases, repeated keys and deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refused(f"the alias *{event.anchor} is not allowed: write the value out", event)
        if getattr(event, "tag", None) is not None:
            raise _refused(f"the tag {event.tag} is not allowed: write a plain value", event)
        if self.depth >= _DEEPEST:
            raise _refused(f"more than {_DEEPEST} levels are nested", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:  # noqa: ARG002, FBT001, FBT002
        values: dict[Hashable, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused("a key must be a string", key)
            # Keys are names: `on` and `1` are not a truth value and a number here.
            if key.value in values:
                raise _refused(f"the key `{key.value}` is given twice", key)
            try:
                values[key.value] = self.construct_object(value, deep=True)
            except ValueError as error:
                raise _refused(
                    f"the value of `{key.value}` is not a date or number", key
                ) from error
        return values


def _refused(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def read_job_file(path: str | os.PathLike[str]) -> dict[str, object]:
    """Read the sections of a job file: TOML where it is named ``.toml``, otherwise YAML or JSON.

    It must be a regular file of at most 1 MiB, in UTF-8. Nothing is expanded or checked.
    """
    name = os.fspath(path)
    parse = _parse_toml if name.lower().endswith(".toml") else _parse_yaml
    data = parse(_text_of(name), name)
    if isinstance(data, dict):
        return data
    received = "nothing" if data is None else type(data).__name__
    raise JobError(
        f"{name}: a job file must be a mapping with the sections `input`, `model`, `normalize`, "
        f"`output` and `engine`. Received: {received}. See configs/quickstart.yaml for one."
    )


def set_values(data: Mapping[str, object], overrides: Sequence[str]) -> dict[str, object]:
    """Set single values, ``key.in.section=value`` each, as though they stood in the job file.

    A value is YAML, and nothing after ``=`` is null. Returns a copy, the last of a key winning.

    Example:
        >>> set_values({"normalize": {"norm": "l2"}}, ["normalize.norm=l1", "engine.workers=4"])
        {'normalize': {'norm': 'l1'}, 'engine': {'workers': 4}}
    """
    result = copy.deepcopy(dict(data))
    for override in overrides:
        key, equals, text = str(override).partition("=")
        keys = key.strip().split(".")
        if not equals or not all(keys):
            raise JobError(f"--set takes `section.key=value`. Received: {override!r}.")
        _set(result, keys, _parse_yaml(text, f"--set {key.strip()}"))
    return result


def expand_environment(
    data: Mapping[str, object], environment: Mapping[str, str]
) -> tuple[dict[str, object], dict[str, str]]:
    """Put environment variables where texts name them: ``${NAME}`` or ``${NAME:-default}``.

    A default stands in for a variable that is unset or empty, as in a shell; ``$${`` is a plain
    ``${``. A text that is one variable alone, and comes out empty, is null. What a variable holds
    is not expanded again.

    What is wrong is said for each dotted key that could not be expanded.

    Example:
        >>> expand_environment({"path": "${ROOT:-/data}/x", "key": "${KEY}"}, {})
        ({'path': '/data/x', 'key': '${KEY}'}, {'key': 'needs the environment variable `KEY`, \
    which is not set. Set it, or add a default: `${KEY:-default}`.'})
    """
    complaints: dict[str, str] = {}

    def expand(text: str, keys: tuple[str, ...]) -> str | None:
        try:
            found = _VARIABLE.sub(lambda match: _value_of(match, environment), text)
        except JobError as error:
            complaints[".".join(keys)] = error.message
            return text
        whole = _VARIABLE.fullmatch(text)
        return None if whole and not whole[1] and not found else found

    return map_texts(dict(data), expand), complaints


def escape_variables(value: Any) -> Any:
    """Return the opposite of expanding: texts in which ``${`` would be read back as it is."""
    return map_texts(value, lambda text, _: text.replace("${", "$${"))


def as_yaml(values: Mapping[str, object]) -> str:
    """Return the YAML of a job file with these values; what no terminal shows is escaped in it."""
    escaped = escape_variables(dict(values))
    text = yaml.safe_dump(escaped, sort_keys=False, allow_unicode=True)
    if all(printable(line) == line for line in text.splitlines()):
        return text
    return yaml.safe_dump(escaped, sort_keys=False)


def map_texts(
    value: Any, change: Callable[[str, tuple[str, ...]], object], keys: tuple[str, ...] = ()
) -> Any:
    """Return plain values, nested or not, with each text changed; ``change`` gets its keys too."""
    if isinstance(value, dict):
        return {key: map_texts(item, change, (*keys, str(key))) for key, item in value.items()}
    if isinstance(value, list):
        return [map_texts(item, change, keys) for item in value]
    return change(value, keys) if isinstance(value, str) else value


def _value_of(match: re.Match[str], environment: Mapping[str, str]) -> str:
    if match[1]:
        return match[0][1:]
    inside = _VARIABLE_INSIDE.fullmatch(match[2])
    if not match[3] or inside is None:
        # The text itself is not shown: half an expansion may hold half a secret.
        raise JobError(
            "has a `${` that is not an environment variable. Expected: `${NAME}`, "
            "`${NAME:-default}`, or `$${` for a plain `${`."
        )
    name, default = inside.groups()
    value = environment.get(name)
    if default is not None:
        return value or default
    if value is None:
        raise JobError(
            f"needs the environment variable `{name}`, which is not set. Set it, or add a "
            f"default: `${{{name}:-default}}`."
        )
    return value


def _set(data: dict[str, object], keys: list[str], value: object) -> None:
    for depth, key in enumerate(keys[:-1], start=1):
        inner = data.setdefault(key, {})
        if inner is None:
            inner = data[key] = {}
        if not isinstance(inner, dict):
            at = ".".join(keys[:depth])
            raise JobError(f"--set {'.'.join(keys)}: `{at}` is a single value, and has no keys.")
        data = inner
    data[keys[-1]] = value


def _text_of(name: str) -> str:
    try:
        status = os.stat(name)  # noqa: PTH116
        if not stat.S_ISREG(status.st_mode):
            raise JobError(
                f"{name}: a job file must be a regular file. Received: a directory or device."
            )
        with open(name, "rb") as file:  # noqa: PTH123
            raw = file.read(_LARGEST_BYTES + 1)
        if len(raw) > _LARGEST_BYTES:
            raise JobError(
                f"{name}: a job file may have at most {_LARGEST_BYTES:,} bytes. Received: more."
            )
        return raw.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise JobError(f"{name}: the job file cannot be read: {reason}.") from error


def _parse_toml(text: str, name: str) -> Any:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a ValueError alone is a number too long
        raise JobError(f"{name}: this is not valid TOML: {error}.") from error


def _parse_yaml(text: str, name: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader, made stricter
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        # PyYAML's own text would quote the lines around it, and with them perhaps a secret.
        problem = getattr(error, "problem", None) or "a value or character cannot be read"
        in_braces = mark is not None and "${" in text.split("\n")[mark.line]
        hint = " Inside {…} and […], quote strings that contain `${`." if in_braces else ""
        raise JobError(f"{name}{at}: {problem}. Expected: YAML of plain values.{hint}") from error
