"""Messages, help, pages and public docstrings use the field's words, and none of our own."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchnorm_tool
from batchnorm_tool import job
from batchnorm_tool.cli.app import cli

ROOT = Path(batchnorm_tool.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# Patterns of old words, and what is said instead.
OLD = {
    r"mend(s|ed|ing)?": "fix",
    r"sound\.|sound ones": "OK, intact",
    r"tonight('s)?": "this refresh, the input",
    r"last night('s)?": "the previous version",
    r"nights?": "a refresh, a version",
    r"fates?": "an outcome, a policy",
    r"befall(s|en)?": "happens to",
    r"settles?": "checks, completes",
    r"tally|tallies": "a summary",
    r"crew|spool(s|ed)?": "workers, staged files",
    r"ledger": "the checksum file",
    r"anew|afresh": "again",
    r"told": "receives, is warned of",
    r"heals?": "helps",
    r"lets? go": "closes",
    r"somebody|nobody|whoever": "another program, nothing",
    r"this very": "this",
    r"stands? (in|there)": "is in",
    r"(lie|lies) (in|inside|there)": "is in",
    r"(a )?whole numbers?": "an integer",
    r"truth value": "a boolean",
    r"disagrees?": "does not match",
    r"under way": "running",
    r"low bits": "low-order bits",
    r"not evident": "cannot tell",
    r"there (already|twice)": "a duplicate",
    r"nothing to do:": "up to date",
    r"look(ed|s)? at": "check, inspect",
}
# Names on disk, keys of records and names of the public interface.
KEPT = {"Night", "/fates.npy", "fates", "night", "night-", "night-*.json", "nights", "tonight"}
KEPT_PATHS = re.compile(r"/night\b\S*|`[^`]*`|\bnight: ")

_OLD = re.compile("|".join(rf"\b({old})(?!\w)" for old in OLD), re.IGNORECASE)


def _old_word(text: str) -> str | None:
    found = _OLD.search(KEPT_PATHS.sub("", text))
    return found[0] if found and text not in KEPT else None


def _strings(path: Path) -> Iterator[tuple[int, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in documentation:
            yield node.lineno, node.value


def _public() -> Iterator[tuple[str, str]]:
    places = ((module, name) for module in (batchnorm_tool, job) for name in module.__all__)
    for module, name in places:
        item = getattr(module, name)
        yield name, inspect.getdoc(item) or ""
        if inspect.isclass(item):
            for part, method in vars(item).items():
                if not part.startswith("_"):
                    yield f"{name}.{part}", inspect.getdoc(method) or ""
    yield from ((name, command.help or "") for name, command in cli.commands.items())


def test_no_text_has_an_old_word() -> None:
    texts = (
        (f"{path.relative_to(ROOT)}:{line}", text)
        for path in FILES
        for line, text in _strings(path)
    )
    assert {place: word for place, text in texts if (word := _old_word(text))} == {}


def test_no_public_docstring_has_an_old_word() -> None:
    documented = dict(_public())
    assert {name: word for name, text in documented.items() if (word := _old_word(text))} == {}
    assert {"refresh", "accept", "Job.load", "RunResult.rows"} <= {*documented}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Mend the input.", "Mend"),
        ("Column `c`: 1 % nulls, 2 % last night", "last night"),
        ("Sound. All is well.", "Sound."),
        ("`night/fates.npy` is missing.", None),
        ("nights", None),
    ],
)
def test_an_old_word_is_found(text: str, word: str | None) -> None:
    assert _old_word(text) == word


def test_percentages_are_written_in_one_way() -> None:
    """Use `percent` or `share` of `display`, which set a space before the sign."""
    specs = {
        f"{path.relative_to(ROOT)}:{node.lineno}": ast.unparse(node.format_spec)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None
    }
    assert {place: spec for place, spec in specs.items() if "%" in spec} == {}
