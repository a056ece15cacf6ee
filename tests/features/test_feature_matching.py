from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import InputError, InputWarning, JobError
from batchnorm_tool.features import match_features
from batchnorm_tool.job import Input

IMAGE = Field("image", (8, 8, 1), "float32")
FLAT = Field("x", (64,), "float32")
PIXELS = pa.list_(pa.float32(), 64)


def match(columns: dict[str, pa.DataType], *inputs: Field, **keys: object) -> dict:
    return match_features(pa.schema(columns), inputs, Input(path="table.parquet", **keys))


SCALARS = {f"f{place}": pa.float32() for place in range(3)}
THREE = Field("x", (3,), "float32")


@pytest.mark.parametrize(
    ("columns", "inputs", "keys", "expected"),
    [
        pytest.param(
            {"a": PIXELS, "image": PIXELS}, [IMAGE], {}, {"image": ("image",)}, id="equal name"
        ),
        pytest.param(
            {"id": pa.int64(), "pixels": PIXELS, "label": pa.int8()},
            [IMAGE],
            {},
            {"image": ("pixels",)},
            id="only list of its width",
        ),
        pytest.param(
            {"a": PIXELS, "b": pa.list_(pa.int32(), 3)}, [THREE], {}, {"x": ("b",)}, id="by width"
        ),
        pytest.param(
            {"tags": pa.list_(pa.string()), "pixels": pa.list_(pa.float64())},
            [FLAT],
            {},
            {"x": ("pixels",)},
            id="by kind",
        ),
        pytest.param(
            {"u": PIXELS, "v": pa.list_(pa.int32(), 3)},
            [Field("b", (3,), "float32"), Field("a", (64,), "float32")],
            {},
            {"b": ("v",), "a": ("u",)},
            id="two inputs of different widths",
        ),
        pytest.param(
            {"u": PIXELS, "a": PIXELS},
            [Field("a", (64,), "float32"), Field("b", (64,), "float32")],
            {},
            {"a": ("a",), "b": ("u",)},
            id="one by name, one left",
        ),
        pytest.param(
            {"id": pa.int64(), "name": pa.string(), **SCALARS, "label": pa.int8()},
            [THREE],
            {"key": "id", "passthrough": ["label"]},
            {"x": ("f0", "f1", "f2")},
            id="all scalars that are not carried",
        ),
        pytest.param(
            {"id": pa.int64(), "text": pa.string()},
            [Field("t", (1,), "string")],
            {},
            {"t": ("text",)},
            id="only text",
        ),
        pytest.param(
            {"a": PIXELS, "pixels": PIXELS},
            [FLAT],
            {"passthrough": ["a"]},
            {"x": ("pixels",)},
            id="carried list is no feature",
        ),
        pytest.param(
            {"label": PIXELS, "pixels": PIXELS}, [FLAT], {}, {"x": ("pixels",)}, id="label list"
        ),
        pytest.param(
            {"id": pa.int64(), "label": pa.int8(), **SCALARS},
            [THREE],
            {},
            {"x": ("f0", "f1", "f2")},
            id="a key and a label by their names",
        ),
        pytest.param(
            {"x": pa.float32(), "y": pa.float32(), "z": pa.float32()},
            [Field("point", (3,), "float32")],
            {},
            {"point": ("x", "y", "z")},
            id="y is no label beside x",
        ),
        pytest.param(
            {"x": PIXELS, "id": pa.int64()},
            [FLAT],
            {"passthrough": ["x"]},
            {"x": ("x",)},
            id="the input's own name, passed through",
        ),
        pytest.param(
            {"user": pa.int64(), "x": PIXELS},
            [Field("user", (1,), "int64"), FLAT],
            {"key": "user"},
            {"user": ("user",), "x": ("x",)},
            id="the input's own name, the key",
        ),
        pytest.param(
            {"x": pa.string(), "pixels": PIXELS},
            [FLAT],
            {"key": "x"},
            {"x": ("pixels",)},
            id="a key of the input's name that does not fit",
        ),
        pytest.param(
            {"pixels": PIXELS, "id": pa.int64()},
            [FLAT],
            {"passthrough": ["pixels"]},
            {"x": ("pixels",)},
            id="the only list, passed through",
        ),
        pytest.param(
            {"p": pa.list_(pa.float32())},
            [],
            {"passthrough": ["p"]},
            {"vector": ("p",)},
            id="the only predictions, passed through",
        ),
        pytest.param(
            {"id": pa.int64(), "y": pa.list_(pa.float32())}, [], {}, {"vector": ("y",)}, id="y"
        ),
        pytest.param(
            {"jpg": pa.binary(), "id": pa.int64()},
            [Field("image", (None, None, 3), "float32")],
            {"decode": {"jpg": "jpeg"}},
            {"image": ("jpg",)},
            id="only images to decode",
        ),
    ],
)
def test_inputs_find_their_columns(
    columns: dict, inputs: list[Field], keys: dict, expected: dict
) -> None:
    assert match(columns, *inputs, **keys) == expected


@pytest.mark.parametrize(
    ("features", "inputs", "expected"),
    [
        pytest.param("u", [FLAT], {"x": ("u",)}, id="one column"),
        pytest.param(["f1", "f0", "f2"], [THREE], {"x": ("f1", "f0", "f2")}, id="order given"),
        pytest.param(
            {"x": ["f0", "f2", "f1"], "image": "u"},
            [IMAGE, THREE],
            {"x": ("f0", "f2", "f1"), "image": ("u",)},
            id="by input",
        ),
        pytest.param("u", [], {"vector": ("u",)}, id="no model"),
        pytest.param(
            {"a": "u", "b": ["f0", "f1"]}, [], {"a": ("u",), "b": ("f0", "f1")}, id="named"
        ),
    ],
)
def test_features_named_are_taken(features: object, inputs: list[Field], expected: dict) -> None:
    columns = {"u": PIXELS, **SCALARS}
    assert match(columns, *inputs, features=features) == expected


def test_named_features_may_be_carried_too() -> None:
    columns = {"u": PIXELS, "id": pa.int64()}
    assert match(columns, FLAT, features="u", passthrough=["u"]) == {"x": ("u",)}


NOT_FEATURES = [
    "id",
    "ID",
    "user_id",
    "itemId",
    "id_product",
    "key",
    "uuid",
    "index",
    "row_number",
    "Unnamed: 0",
    "__index_level_0__",
    "label",
    "target",
    "class_label",
    "y",
]


@pytest.mark.parametrize("name", NOT_FEATURES)
def test_what_is_called_so_is_no_feature_unless_named(name: str) -> None:
    columns = {name: pa.int64(), "f0": pa.float32(), "f1": pa.float32()}
    with pytest.raises(InputError, match=r"treated as a key.*--features f0,f1`"):
        match(columns, THREE)
    assert match(columns, THREE, features=[*columns]) == {"x": (name, "f0", "f1")}


def test_what_pandas_wrote_as_its_index_is_no_feature() -> None:
    schema = pa.schema(
        {"when": pa.int64(), **SCALARS}, metadata={"pandas": '{"index_columns": ["when", {}]}'}
    )
    assert match_features(schema, [THREE], Input(path="x")) == {"x": ("f0", "f1", "f2")}
    garbled = schema.with_metadata({"pandas": "[" * 99_999})
    with pytest.raises(InputError, match="Cannot tell"):
        match_features(garbled, [THREE], Input(path="x"))


NUMBERS = pa.array(range(100, 120))


@pytest.mark.parametrize(
    ("name", "numbers", "refused"),
    [
        pytest.param("product", NUMBERS, True, id="whole numbers, each once"),
        pytest.param("product", NUMBERS.cast(pa.float64()), False, id="floats"),
        pytest.param("stars", pa.array([*range(19), 3]), False, id="one twice"),
        pytest.param("f9", NUMBERS, False, id="one of several that are numbered"),
        pytest.param("product", NUMBERS[:7], False, id="too few rows to tell"),
    ],
)
def test_matched_by_count_no_column_may_look_like_a_key(
    name: str, numbers: pa.Array, *, refused: bool
) -> None:
    floats = pa.array(np.zeros(len(numbers), np.float32))
    table = pa.table({name: numbers, "f0": floats, "f1": floats})
    arguments = (table.schema, [THREE], Input(path="x"), lambda _: table)
    if refused:
        with pytest.raises(InputError, match=r"`product` feeds.*--features product,f0,f1`"):
            match_features(*arguments)
    else:
        assert match_features(*arguments) == {"x": (name, "f0", "f1")}


WIDE = {"id": pa.int64(), **{f"emb_{place}": pa.float32() for place in range(11)}}
IN_ORDER = tuple(f"emb_{place}" for place in range(11))
ELEVEN = Field("x", (11,), "float32")


@pytest.mark.parametrize(
    ("columns", "inputs", "features", "expected"),
    [
        pytest.param(WIDE, [ELEVEN], "emb_*", {"x": IN_ORDER}, id="one pattern"),
        pytest.param(WIDE, [], "emb_*", {"vector": IN_ORDER}, id="predictions"),
        pytest.param(WIDE, [ELEVEN], {"x": "emb_*"}, {"x": IN_ORDER}, id="by input"),
        pytest.param(WIDE, [THREE], "emb_[12]*", {"x": ("emb_1", "emb_2", "emb_10")}, id="digits"),
        pytest.param(
            WIDE,
            [Field("x", (12,), "float32")],
            ["emb_3", "id", "emb_*"],
            {"x": ("emb_3", "id", *(name for name in IN_ORDER if name != "emb_3"))},
            id="beside names, which come once",
        ),
        pytest.param(
            {"emb_*": pa.float32(), **SCALARS},
            [Field("x", (1,), "float32")],
            "emb_*",
            {"x": ("emb_*",)},
            id="a column of that very name",
        ),
        pytest.param(
            {"user_id": pa.int64(), "item_id": pa.int64(), "n": pa.int8()},
            [Field("x", (2,), "int64")],
            "*_id",
            {"x": ("user_id", "item_id")},
            id="keys alone, in their order",
        ),
    ],
)
def test_a_pattern_takes_the_columns_that_it_matches(
    columns: dict, inputs: list[Field], features: object, expected: dict
) -> None:
    assert match(columns, *inputs, features=features) == expected


def test_a_pattern_goes_by_numbers_and_says_where_that_is_not_the_stored_order() -> None:
    columns = {name: pa.float32() for name in ("e10", "e2", "f1", "e007")}
    with pytest.warns(InputWarning, match="`e2`, `e007`, `e10`, `f1`"):
        found = match(columns, Field("x", (4,), "float32"), features="*")
    assert found == {"x": ("e2", "e007", "e10", "f1")}


def test_a_pattern_leaves_the_key_alone() -> None:
    assert match(WIDE, ELEVEN, features="*", key="id") == {"x": IN_ORDER}


def test_stored_predictions_are_the_only_list_of_numbers() -> None:
    columns = {"id": pa.int64(), "tags": pa.list_(pa.string()), "p": pa.list_(pa.float32())}
    assert match(columns) == {"vector": ("p",)}


@pytest.mark.parametrize(
    ("columns", "inputs", "keys", "words"),
    [
        pytest.param(
            {"a": PIXELS, "b": PIXELS},
            [IMAGE],
            {},
            ["`image` (float32, shape (8, 8, 1))", "`a` (", "`b` (", "`input.features`"],
            id="two candidates",
        ),
        pytest.param(
            {"d": pa.int64(), **SCALARS},
            [THREE],
            {},
            ["shape (3,)", "`d` (int64)", "`input.key`", "--features d,f0,f1,f2"],
            id="one scalar too many",
        ),
        pytest.param(
            {f"c{place}": pa.int8() for place in range(99)}, [THREE], {}, ["and 87 more"], id="wide"
        ),
        pytest.param({"id": pa.int64()}, [FLAT], {"key": "id"}, ["no column besides"], id="none"),
        pytest.param(
            {"u": PIXELS},
            [Field("a", (64,), "float32"), Field("b", (64,), "float32")],
            {},
            ["`a` (", "`b` ("],
            id="one column for two inputs",
        ),
        pytest.param(
            {"a": PIXELS, "b": PIXELS}, [], {}, ["`a`, `b`", "--column"], id="two vectors"
        ),
        pytest.param({"a": pa.int8()}, [], {}, ["Received: none among `a`"], id="no vector"),
        pytest.param(
            {"x": pa.list_(pa.int8(), 60)},
            [FLAT],
            {},
            ["width differs from the model's input", "64 values", "60 values"],
            id="equal name, other width",
        ),
        pytest.param(
            {"id": pa.int8(), "embedding": pa.list_(pa.int8(), 60)},
            [FLAT],
            {"key": "id"},
            ["`embedding`", "width differs from the model's input", "64 values", "60 values"],
            id="only list, other width",
        ),
        pytest.param(
            {"a": pa.int8(), "b": PIXELS},
            [FLAT],
            {"features": ["a", "b"]},
            ["a list among 2 columns"],
            id="list among scalars",
        ),
        pytest.param(
            SCALARS,
            [FLAT],
            {"features": [*SCALARS]},
            ["64 values", "3 values"],
            id="too few scalars",
        ),
        pytest.param(
            {"pixels": PIXELS},
            [FLAT],
            {"features": "pixel"},
            ["no column `pixel`", "Did you mean `pixels`?"],
            id="missing",
        ),
        pytest.param(
            {"emb_0": pa.int8()},
            [THREE],
            {"features": "embed_*"},
            ["No column of the input matches `embed_*`", "Did you mean `emb_0`?"],
            id="pattern without a match",
        ),
        pytest.param(
            {"id": pa.int64(), **SCALARS},
            [THREE],
            {"features": "*"},
            ["`*` also matches `id`", "narrower pattern"],
            id="pattern with a key",
        ),
        pytest.param(
            SCALARS,
            [THREE],
            {"features": "f0,f1,f2"},
            ["no column `f0,f1,f2`", "For several columns, write a list: [f0,f1,f2]."],
            id="commas in a job file",
        ),
        pytest.param(
            {"when": pa.timestamp("s")},
            [Field("x", (1,), "float32")],
            {"features": "when"},
            ["timestamp[s]", "Expected numbers"],
            id="time",
        ),
        pytest.param(
            {"t": pa.string()},
            [],
            {"features": "t"},
            ["does not hold vectors"],
            id="text for a vector",
        ),
        pytest.param(
            {"png": pa.binary()},
            [FLAT],
            {"features": "png", "decode": {"png": "png"}},
            ["(height, width, channels)"],
            id="image for a flat input",
        ),
        pytest.param(
            {"png": PIXELS},
            [IMAGE],
            {"features": "png", "decode": {"png": "png"}},
            ["encoded images (binary)"],
            id="numbers to decode",
        ),
    ],
)
def test_doubt_is_refused_showing_both_sides(
    columns: dict, inputs: list[Field], keys: dict, words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        match(columns, *inputs, **keys)
    missing = [word for word in words if word not in caught.value.message]
    assert not missing, caught.value.message


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        pytest.param({"features": "u"}, ["`x` (", "`image` ("], id="for which input"),
        pytest.param(
            {"features": {"x": "f0", "imag": "u"}}, ["Did you mean `image`?"], id="unknown input"
        ),
        pytest.param({"features": {"image": "u"}}, ["lacks the model input `x`"], id="left out"),
        pytest.param(
            {"features": {"x": [*SCALARS], "image": "u"}, "fill": {"f": 0}},
            ["`input.fill.f`", "Did you mean `f2`"],
            id="fill of no feature",
        ),
        pytest.param(
            {"features": {"x": [*SCALARS], "image": "u"}, "fill": {"f1": "a"}},
            ["`input.fill.f1` does not fit", "float32", "'a'"],
            id="fill of another kind",
        ),
    ],
)
def test_job_that_names_what_there_is_not_is_refused(keys: dict, words: list[str]) -> None:
    with pytest.raises(JobError) as caught:
        match({"u": PIXELS, **SCALARS}, IMAGE, THREE, **keys)
    missing = [word for word in words if word not in caught.value.message]
    assert not missing, caught.value.message


def test_columns_of_one_name_are_refused() -> None:
    schema = pa.schema([("a", pa.int8()), ("a", pa.int8())])
    with pytest.raises(InputError, match="2 columns named `a`"):
        match_features(schema, [Field("a", (1,), "float32")], Input(path="x"))


@pytest.mark.parametrize(
    ("shape", "wanted", "fits"),
    [
        ([8, 8, 1], (8, 8, 1), True),
        ([8, 8, 1], (8, 8), True),
        ([8, 8, 1], (64,), False),
        ([3, 32, 32], (32, 32, 3), False),
        ([64, 1], (64,), True),
        ([64], (8, 8, 1), True),
        ([8, 8, 1], (None, None, 1), True),
        ([8, 8, 3], (None, None, 1), False),
    ],
)
def test_declared_shape_must_be_the_inputs_shape(
    shape: list[int], wanted: tuple, *, fits: bool
) -> None:
    width = int(np.prod(shape))
    field = pa.field("x", pa.list_(pa.float32(), width), metadata={"shape": str(shape)})
    inputs = [Field("x", wanted, "float32")]
    if fits:
        assert match_features(pa.schema([field]), inputs, Input(path="x")) == {"x": ("x",)}
    else:
        with pytest.raises(InputError, match="shape"):
            match_features(pa.schema([field]), inputs, Input(path="x"))


@pytest.mark.parametrize("text", ["[7, 9]", "{", "[[]]", '["8", 8]', "64"])
def test_foreign_shape_metadata_is_ignored(text: str) -> None:
    schema = pa.schema([pa.field("x", PIXELS, metadata={"shape": text})])
    assert match_features(schema, [FLAT], Input(path="x")) == {"x": ("x",)}


def test_permuted_tensor_is_refused() -> None:
    kind = pa.fixed_shape_tensor(pa.float32(), [2, 3], permutation=[1, 0])
    with pytest.raises(InputError, match="permuted"):
        match({"x": kind}, Field("x", (3, 2), "float32"))


@pytest.mark.parametrize("registered", [True, False], ids=["registered", "not registered"])
def test_unknown_extension_type_is_warned_of(*, registered: bool) -> None:
    if registered:
        field = pa.field("x", pa.bool8())
    else:
        field = pa.field("x", pa.int8(), metadata={"ARROW:extension:name": "arrow.bool8"})
    with pytest.warns(InputWarning, match=r"`x`.*bool8"):
        match_features(pa.schema([field]), [Field("x", (1,), "float32")], Input(path="x"))


def test_transform_gets_all_columns_unless_some_are_named() -> None:
    columns = {"id": pa.int64(), **SCALARS}
    transform = {"transform": "some.module:function"}
    inputs = (IMAGE, THREE)
    everything = ("id", "f0", "f1", "f2")
    assert match(columns, *inputs, **transform) == {"image": everything, "x": everything}
    named = match(columns, *inputs, features={"a": ["f2", "f0"], "b": "f2"}, **transform)
    assert named == {"image": ("f2", "f0"), "x": ("f2", "f0")}


@pytest.mark.parametrize(
    ("inputs", "keys", "error", "message"),
    [
        pytest.param([], {}, JobError, "needs|prepares a model's inputs", id="no model"),
        pytest.param([FLAT], {"fill": {"f0": 1}}, JobError, "replaces", id="fill beside it"),
        pytest.param([FLAT], {"features": "g0"}, InputError, "no column `g0`", id="missing column"),
    ],
)
def test_transform_that_cannot_be_fed_is_refused(
    inputs: list[Field], keys: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        match(SCALARS, *inputs, transform="some.module:function", **keys)
