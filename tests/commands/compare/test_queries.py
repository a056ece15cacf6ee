"""Who asks in a comparison, what classes make relevant, and which groups there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.commands.compare.compare import compare
from batchnorm_tool.commands.compare.queries import Groups
from batchnorm_tool.errors import InputError
from batchnorm_tool.readers.vectors import open_predictions
from tests.commands.compare.compared import (
    EVERYONE,
    NORMS,
    ROWS,
    classes,
    draw,
    figures,
    nearest,
    precision,
    shared,
    store,
    values,
    with_nulls,
)
from tests.commands.workshop import lists

ASKED = 60
ITEMS = [f"item {row}" for row in range(ROWS)]
ASKING = [f"query {row}" for row in range(ASKED)]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    x = draw()
    return store(tmp_path / "base.parquet", x, id=pa.array(ITEMS), label=classes(x))


@pytest.fixture
def asking(tmp_path: Path) -> Path:
    x = draw(ASKED, seed=1)
    group = np.arange(ASKED) % 3
    return store(tmp_path / "asking.parquet", x, id=pa.array(ASKING), label=classes(x), group=group)


# Queries of a second file


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_queries_of_a_second_file_find_every_row(base: Path, asking: Path, metric: str) -> None:
    found = figures(compare(base, queries=asking, label="label", k=5, metric=metric))
    assert found["queries_from"]["path"] == str(asking)
    assert (found["queries"]["rows"], found["source"]["rows"]) == (ASKED, ROWS)
    x, y = draw(), draw(ASKED, seed=1)
    rows = {norm: nearest(y, x, norm, k=5, metric=metric) for norm in NORMS}
    assert found["overlap"]["none"]["l1"]["5"] == pytest.approx(shared(rows["none"], rows["l1"]))
    expected = {norm: precision(of, classes(y), classes(x)) for norm, of in rows.items()}
    assert values(found["quality"], "precision@5") == pytest.approx(expected)


def write_npy(path: Path, x: np.ndarray) -> Path:
    np.save(path.with_suffix(".npy"), x)
    return path.with_suffix(".npy")


GIVEN: dict[str, Callable[[Path, np.ndarray], Any]] = {
    "npy": write_npy,
    "parquet": store,
    "array": lambda _, x: x,
    "float64": lambda _, x: x.astype(float),
}


@pytest.mark.parametrize("give", GIVEN.values(), ids=GIVEN)
def test_queries_may_be_a_file_of_any_format_or_an_array(
    tmp_path: Path, base: Path, give: Callable[[Path, np.ndarray], Any]
) -> None:
    queries = give(tmp_path / "asking", draw(ASKED, seed=1))
    found = figures(compare(base, queries=queries, k=5))
    rows = [nearest(draw(ASKED, seed=1), draw(), norm, k=5) for norm in ("none", "max")]
    assert found["overlap"]["none"]["max"]["5"] == pytest.approx(shared(*rows))


def test_a_query_that_is_a_row_of_the_base_finds_itself_from_a_second_file(base: Path) -> None:
    found = figures(compare(base, queries=base, label="label", k=1, metric="cosine", **EVERYONE))
    assert values(found["quality"], "precision@1")["l2"] == 1


def test_queries_that_are_not_finite_are_counted_and_left_out(tmp_path: Path, base: Path) -> None:
    y = draw(ASKED, seed=1)
    y[3, 1], y[5, 0] = np.nan, np.inf
    asking = store(tmp_path / "asking", with_nulls(y, [7]), part=np.arange(ASKED) % 4)
    found = figures(compare(base, queries=asking, by="part", k=5))
    assert (found["queries"]["used"], found["queries"]["nonfinite"]) == (ASKED - 3, 3)
    assert (found["source"]["nonfinite"], found["source"]["missing"]) == (0, 0)
    kept = np.delete(np.arange(ASKED), [3, 5, 7])
    rows = [nearest(y[kept], draw(), norm, k=5) for norm in ("none", "l2")]
    assert found["overlap"]["none"]["l2"]["5"] == pytest.approx(shared(*rows))
    # Rows 3 and 7 belong to one group, row 5 to another.
    assert [group["queries"] for group in found["by"]["groups"]] == [15, 14, 15, 13]
    part = np.flatnonzero(kept % 4 == 1)
    expected = shared(rows[0][part], rows[1][part])
    assert found["by"]["groups"][1]["overlap"]["none"]["l2"]["5"] == pytest.approx(expected)


def test_another_width_is_refused(base: Path, tmp_path: Path) -> None:
    asking = store(tmp_path / "asking", np.ones((3, 4), np.float32))
    with pytest.raises(InputError, match=r"asking: .* differ in width .*base\.parquet.*6.*ed: 4"):
        compare(base, queries=asking)


# Labels


def of_kind(numbers: np.ndarray, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(numbers).cast(kind.value_type).dictionary_encode()
    return pa.array(numbers).cast(kind)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.int8(), pa.float64(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_classes_may_be_of_any_type_and_differ_between_files(
    tmp_path: Path, kind: pa.DataType
) -> None:
    x, y = draw(), draw(ASKED, seed=1)
    one = store(tmp_path / "numbers", x, label=pa.array(classes(x)))
    other = store(tmp_path / "kind", y, label=of_kind(classes(y), kind))
    for base, asking, of_base, of_asking in ((one, other, x, y), (other, one, y, x)):
        found = figures(compare(base, queries=asking, label="label", k=5, sample=None))
        rows = nearest(of_asking, of_base, "l2", k=5)
        expected = precision(rows, classes(of_asking), classes(of_base))
        assert values(found["quality"], "precision@5")["l2"] == pytest.approx(expected)
        assert found["relevance"]["classes"] == 3


def test_a_query_of_a_class_that_no_row_has_counts_as_zero(tmp_path: Path, base: Path) -> None:
    y = draw(4, seed=1)
    queries = store(tmp_path / "asking", y, label=np.array([*classes(y)[:3], 77]))
    found = figures(compare(base, queries=queries, label="label", k=5))
    assert (found["queries"]["judged"], found["queries"]["without_relevant"]) == (4, 1)
    label = np.append(classes(y)[:3], 77)
    expected = precision(nearest(y, draw(), "none", k=5), label, classes(draw()))
    assert values(found["quality"], "precision@5")["none"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (pa.array([None, *range(ROWS - 1)]), "row 0: the label `label` is null.*1 null in 200"),
        (
            pa.array([*range(150), *[None] * 50]),
            r"base/b, row 50: the label `label` is null.*Received: 50 nulls in 200 rows",
        ),
        (pa.array([0.0] * 120 + [np.nan] * 80), "base/b, row 20: the label `label` is null"),
        (pa.nulls(ROWS), "row 0: the label `label` is null"),
        (pa.array([[1]] * ROWS), r"label column `label` does not hold classes.*list<"),
    ],
    ids=["first", "second file", "nan", "all", "lists"],
)
def test_classes_that_are_missing_are_refused(tmp_path: Path, label: pa.Array, words: str) -> None:
    (tmp_path / "base").mkdir()
    for name, rows in (("a", slice(0, 100)), ("b", slice(100, ROWS))):
        store(tmp_path / "base" / name, draw()[rows], label=label[rows])
    with pytest.raises(InputError, match=words):
        compare(tmp_path / "base", column="raw", label="label", k=5)


def test_classes_of_queries_are_looked_at_too(base: Path, tmp_path: Path) -> None:
    y = draw(3, seed=1)
    null = store(tmp_path / "null", y, label=pa.array([1, None, 2]))
    with pytest.raises(InputError, match="null, row 1: the label `label` is null"):
        compare(base, queries=null, label="label")
    texts = store(tmp_path / "texts", y, label=pa.array(["a", "b", "c"]))
    with pytest.raises(InputError, match=r"differ in type.*Expected: int64\. Received: string"):
        compare(base, queries=texts, label="label")


# Groups


@pytest.mark.parametrize("judged", [True, False], ids=["judged", "not judged"])
def test_figures_of_a_group_are_those_of_its_queries_alone(
    tmp_path: Path,
    base: Path,
    asking: Path,
    judged: bool,  # noqa: FBT001
) -> None:
    given = {"label": "label" if judged else None, "k": [1, 5]}
    found = figures(compare(base, queries=asking, by="group", **given))["by"]
    assert (found["column"], found["kind"]) == ("group", "values")
    assert [(one["group"], one["queries"]) for one in found["groups"]] == [
        ("0", 20),
        ("1", 20),
        ("2", 20),
    ]
    for number, group in enumerate(found["groups"]):
        table = pq.read_table(asking)
        alone = tmp_path / f"{number}.parquet"
        pq.write_table(table.take(np.arange(number, ASKED, 3)), alone)
        expected = figures(compare(base, queries=alone, **given))
        for name in ("quality", "tests", "overlap", "rbo", "hubness"):
            assert group[name] == expected[name]


def test_groups_of_a_sample_hold_its_queries(base: Path) -> None:
    found = figures(compare(base, by="label", k=5, sample=50, seed=4))
    drawn = np.random.default_rng(4).choice(ROWS, 50, replace=False)
    counts = np.bincount(classes(draw())[drawn])
    assert [group["queries"] for group in found["by"]["groups"]] == counts.tolist()


def groups_of(tmp_path: Path, column: pa.Array) -> Groups:
    source = store(tmp_path / "x", draw(len(column)), column=column)
    return Groups.of(open_predictions(source), "column", np.arange(len(column)))


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([10, 9, 10, None]), {"9": [1], "10": [0, 2], "null": [3]}),
        (pa.array(["b", "a", "b"]), {"a": [1], "b": [0, 2]}),
        (pa.array(["b", "a", "b"]).dictionary_encode(), {"a": [1], "b": [0, 2]}),
        (pa.array([True, False, None]), {"False": [1], "True": [0], "null": [2]}),
        (pa.array([2.5, float("nan"), 1.5, None]), {"1.5": [2], "2.5": [0], "null": [1, 3]}),
        (pa.array(["null", None]), {"null": [0], "null (missing)": [1]}),
        (pa.nulls(2), {"null": [0, 1]}),
        (pa.array([86_400_000], pa.date64()), {"1970-01-02": [0]}),
    ],
    ids=["numbers", "texts", "dictionary", "bools", "nan", "the text null", "nulls", "dates"],
)
def test_a_column_of_few_values_is_grouped_by_them(
    tmp_path: Path, column: pa.Array, expected: dict[str, list[int]]
) -> None:
    found = groups_of(tmp_path, column)
    assert found.kind == "values"
    members = {name: rows.tolist() for name, rows in found.members.items() if len(rows)}
    assert members == expected
    assert list(members) == list(expected)


def test_rare_values_are_put_together(tmp_path: Path) -> None:
    texts = [f"{number:02}" for number in range(50)] * 2 + ["rare 1", "rare 2", None]
    found = groups_of(tmp_path, pa.array(texts))
    assert list(found.members) == [*texts[:50], "2 other values", "null"]
    assert found.members["07"].tolist() == [7, 57]
    assert found.members["2 other values"].tolist() == [100, 101]


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "int32"])
def test_numbers_of_many_values_are_cut_into_tenths(tmp_path: Path, kind: str) -> None:
    numbers = (np.random.default_rng(0).normal(size=1003) * 1000).astype(kind)
    found = groups_of(tmp_path, pa.array(numbers))
    assert (found.column, found.kind) == ("column", "deciles")
    assert len(found.members) == 10
    assert all(abs(len(rows) - 100) <= 5 for rows in found.members.values())
    assert np.sort(np.concatenate([*found.members.values()])).tolist() == list(range(1003))
    assert all(name.endswith(")") for name in [*found.members][:-1])
    ends = [sorted(numbers[rows])[:: len(rows) - 1] for rows in found.members.values()]
    for name, (low, high), (least, most) in zip(found.members, edges_of(found), ends, strict=True):
        assert low == pytest.approx(float(least), rel=1e-5)
        assert most <= high if name.endswith("]") else most < high


def edges_of(found: Groups) -> list[tuple[float, float]]:
    texts = [name.strip("[])").split(", ") for name in found.members]
    return [(float(low), float(high)) for low, high in texts]


def test_numbers_in_a_dictionary_are_numbers(tmp_path: Path) -> None:
    table = {"raw": lists(draw(100)), "x": pa.array(np.arange(100)).dictionary_encode()}
    pyarrow.feather.write_feather(pa.table(table), tmp_path / "x", compression="uncompressed")
    assert Groups.of(open_predictions(tmp_path / "x"), "x", np.arange(100)).kind == "deciles"


def test_tenths_of_numbers_that_are_near_each_other_have_names_of_their_own(tmp_path: Path) -> None:
    found = groups_of(tmp_path, pa.array(1_700_000_000 + np.arange(100)))
    assert len(found.members) == 10
    assert next(iter(found.members)) == "[1700000000, 1700000009)"
    assert [*found.members][-1] == "[1700000089, 1700000099]"


def test_what_is_no_number_and_what_is_infinite_has_a_place(tmp_path: Path) -> None:
    numbers = np.arange(100.0)
    numbers[:15], numbers[85:] = -np.inf, np.inf
    column = pa.array([*numbers, np.nan, None])
    found = groups_of(tmp_path, column)
    assert found.members["null"].tolist() == [100, 101]
    assert next(iter(found.members)) == "[-inf, 19)"
    assert found.members["[-inf, 19)"].tolist() == list(range(19))
    assert set(range(85, 100)) <= set([*found.members.values()][-2].tolist())


def test_a_column_of_lists_makes_no_groups(base: Path, tmp_path: Path) -> None:
    source = store(tmp_path / "x", draw(3), tags=pa.array([["a"], [], ["b"]]))
    with pytest.raises(InputError, match=r"`tags`, which does not hold plain values.*list<"):
        compare(source, by="tags", column="raw")
