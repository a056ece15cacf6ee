from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from batchnorm_tool.inputs.files import InputFile
from batchnorm_tool.job import Job
from batchnorm_tool.pipeline import plan
from batchnorm_tool.pipeline.differences import differences
from batchnorm_tool.pipeline.plan import Identity, ResolvedOptions, identify
from tests.pipeline.test_plan import RESOLVED

FILES = (InputFile("/in/a.parquet", "parquet", 100, 7, "a" * 64),)
DATA: dict[str, Any] = {
    "input": {"path": "/in", "key": "id"},
    "model": {"path": "/m.keras"},
    "output": {"path": "/out"},
}


def identity_of(
    resolved: ResolvedOptions = RESOLVED,
    files: tuple[InputFile, ...] = FILES,
    limit: int | None = None,
    **changed: dict[str, Any],
) -> Identity:
    data = {name: {**DATA.get(name, {}), **changed.get(name, {})} for name in {**DATA, **changed}}
    return identify(Job.from_dict(data), resolved, files, limit)


def changing(**more: Any) -> Callable[[], Identity]:
    return lambda: identity_of(**more)


def resolving(**more: Any) -> Callable[[], Identity]:
    return lambda: identity_of(replace(RESOLVED, **more))


NOTHING = {
    "workers": changing(engine={"workers": 7}),
    "devices by another name": changing(engine={"devices": "cpu"}),
    "mixed bits allowed": changing(engine={"mixed_bits": True}),
    "the way the input is named": changing(input={"path": ["/in/a.parquet"]}),
    "where the output goes": changing(output={"path": "/other"}),
    "an alias of the norm": changing(normalize={"norm": "euclidean"}),
    "where the model lies": changing(model={"path": "/copy.keras"}),
}
SPACE = {
    "norm": changing(normalize={"norm": "l1"}),
    "p": changing(normalize={"norm": "lp", "p": 3}),
    "norm of one output": changing(normalize={"outputs": {"score": {"norm": "max"}}}),
    "axis": changing(normalize={"axis": "all"}),
    "model content": resolving(model_content="b" * 64),
    "layer": changing(model={"layer": "tower"}),
    "signature": changing(model={"signature": "encode"}),
    "order of features": resolving(features={"image": ("pixels",), "words": ("body", "title")}),
    "outputs": resolving(outputs=RESOLVED.outputs[:1]),
    "fill": changing(input={"fill": {"price": 0.5}}),
    "decode": changing(input={"decode": {"pixels": "png"}}),
    "transform": resolving(transform="c" * 64),
}
BITS = {
    "batch size": resolving(batch_size=64),
    "threads": resolving(threads=2),
    "device": resolving(device="gpu"),
}
POLICIES = {
    "invalid": changing(input={"invalid": "drop"}),
    "zero": changing(normalize={"zero": "drop"}),
    "nonfinite": changing(normalize={"nonfinite": "drop"}),
    "bad fraction": changing(normalize={"max_bad_fraction": 0.5}),
}
RESULT = {
    "file size": lambda: identity_of(files=(replace(FILES[0], bytes=101),)),
    "footer": lambda: identity_of(files=(replace(FILES[0], fingerprint="b" * 64),)),
    "path": lambda: identity_of(files=(replace(FILES[0], path="/in/b.parquet"),)),
    "another file": lambda: identity_of(files=(*FILES, replace(FILES[0], path="/in/b"))),
    "limit": changing(limit=5),
    "key": changing(input={"key": "name"}),
    "passthrough": changing(input={"passthrough": ["label"]}),
    "format": changing(output={"format": "npy"}),
    "dtype": changing(output={"dtype": "float64"}),
    "columns": changing(output={"columns": {"vector": "v"}}),
    "encoding": changing(output={"byte_stream_split": True}),
    "compression": changing(output={"compression": "lz4"}),
    "part rows": resolving(part_rows=256),
}


def changed_ids(other: Identity) -> set[str]:
    mine = identity_of()
    names = ("space_id", "bits_id", "result_id")
    return {name for name in names if getattr(mine, name) != getattr(other, name)}


@pytest.mark.parametrize("change", NOTHING.values(), ids=NOTHING)
def test_what_changes_no_result(change: Callable[[], Identity]) -> None:
    assert changed_ids(change()) == set()
    assert list(differences(identity_of(), change())) == []


@pytest.mark.parametrize("change", SPACE.values(), ids=SPACE)
def test_what_changes_the_space_changes_all(change: Callable[[], Identity]) -> None:
    assert changed_ids(change()) == {"space_id", "bits_id", "result_id"}


@pytest.mark.parametrize("change", BITS.values(), ids=BITS)
def test_what_changes_low_bits_keeps_the_space(change: Callable[[], Identity]) -> None:
    assert changed_ids(change()) == {"bits_id", "result_id"}


@pytest.mark.parametrize("change", [*POLICIES.values(), *RESULT.values()], ids=[*POLICIES, *RESULT])
def test_what_changes_the_result_keeps_the_bits(change: Callable[[], Identity]) -> None:
    assert changed_ids(change()) == {"result_id"}


@pytest.mark.parametrize("change", POLICIES.values(), ids=POLICIES)
def test_policies_stand_apart(change: Callable[[], Identity]) -> None:
    mine, other = identity_of(), change()
    assert mine.policies != other.policies
    assert replace(other, policies=mine.policies) == mine


@pytest.mark.parametrize("part", ["versions", "cpu"])
def test_another_machine_has_other_bits(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity_of()
    if part == "cpu":
        monkeypatch.setattr(plan.environment, "cpu", lambda: "x86_64-other")
    else:
        monkeypatch.setattr(plan.environment, "_version", lambda name: f"{name}-99")
    after = identity_of()
    assert before.space_id == after.space_id
    assert before.bits_id != after.bits_id


def test_versions_of_tensorflow_matter_only_with_a_model() -> None:
    without = identify(Job.from_dict({**DATA, "model": None}), RESOLVED, FILES, None)
    assert "tensorflow" in identity_of().bits["versions"]
    assert without.bits["versions"].keys() == {"numpy", "pyarrow", "batchnorm-tool"}
    assert all(without.bits["versions"][name] for name in ("numpy", "pyarrow"))


WORDS = {
    "norm of `score` l2 → l1": SPACE["norm"],
    "norm of `score` l2 → lp:3": SPACE["p"],
    "norm of `score` l2 → max": SPACE["norm of one output"],
    "axis of `score` -1 → all": SPACE["axis"],
    "another model: aaaaaa → bbbbbb": SPACE["model content"],
    "layer none → tower": SPACE["layer"],
    "signature none → encode": SPACE["signature"],
    "outputs embedding, score → embedding": SPACE["outputs"],
    "features of `words` in another order": SPACE["order of features"],
    "features of `words` without `title`, `body`, with `head`": resolving(
        features={"image": ("pixels",), "words": ("head",)}
    ),
    "fill of `price` none → 0.5": SPACE["fill"],
    "decode of `pixels` none → png": SPACE["decode"],
    "input dtype none → bfloat16": changing(input={"dtype": "bfloat16"}),
    "another transform: none → cccccc": SPACE["transform"],
    "batch size 32 → 64": BITS["batch size"],
    "threads 1 → 2": BITS["threads"],
    "device cpu → gpu": BITS["device"],
    "`normalize.zero` keep → drop": POLICIES["zero"],
    "the input files": RESULT["footer"],
    "`output.columns.vector` vector → v": RESULT["columns"],
    "`output.byte_stream_split` false → true": RESULT["encoding"],
    "`input.passthrough` none → label": RESULT["passthrough"],
    "limit none → 5": RESULT["limit"],
}


@pytest.mark.parametrize(("words", "change"), WORDS.items(), ids=WORDS)
def test_differences_are_said_in_words(words: str, change: Callable[[], Identity]) -> None:
    assert words in list(differences(identity_of(), change()))


EVERY = {**SPACE, **BITS, **POLICIES, **RESULT}


@pytest.mark.parametrize("change", EVERY.values(), ids=EVERY)
def test_what_differs_is_one_line_without_brackets_or_quotes(
    change: Callable[[], Identity],
) -> None:
    for old, new in ((identity_of(), change()), (change(), identity_of())):
        said = ", ".join(differences(old, new))
        assert said
        assert not {*said} & {*"[](){}'\"\n"}, said
        assert "None" not in said


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (["vector"], ["embedding"], "outputs vector → embedding, norm l2 → l1"),
        (["a", "b"], ["b", "c"], "outputs a, b → b, c, norm of `b` l2 → l1"),
    ],
    ids=["the only one", "one of several"],
)
def test_norms_of_other_outputs_are_compared_where_they_can_be(
    before: list[str], after: list[str], words: str
) -> None:
    sides = (
        {"outputs": names, "norms": {name: {"norm": norm, "axis": -1} for name in names}}
        for names, norm in ((before, "l2"), (after, "l1"))
    )
    old, new = (Identity(space, {}, {}, {}) for space in sides)
    assert ", ".join(differences(old, new)) == words


def test_of_many_features_a_few_are_named() -> None:
    names = [f"f{n}" for n in range(100)]
    old, new = (Identity({"features": {"x": x}}, {}, {}, {}) for x in (["y"], names))
    words = "features without `y`, with `f0`, `f1`, `f2`, `f3` and 96 more"
    assert list(differences(old, new)) == [words]


def test_only_the_version_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    old = identity_of()
    versions = {**old.bits["versions"], "numpy": "1.0"}
    new = replace(old, bits={**old.bits, "versions": versions})
    (said,) = differences(old, new)
    assert said == f"numpy {old.bits['versions']['numpy']} → 1.0"


def test_what_is_long_is_cut() -> None:
    old = identity_of()
    new = replace(old, result={**old.result, "input.passthrough": ["column"] * 100})
    (said,) = differences(old, new)
    assert len(said) < 120
    assert said.endswith("…")
