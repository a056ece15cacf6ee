"""What a contract says of the model, its features and outputs, and the canary rows, as JSON."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from batchnorm_tool.norms.norm import Anything, Norm, numpy_dtype
from batchnorm_tool.norms.normalization import Normalization, Quantized
from batchnorm_tool.norms.output_spec import OutputSpec

Json: TypeAlias = Any
"""What `json.loads` returns."""

Cause: TypeAlias = Literal[
    "not_normalized",
    "other_norm",
    "other_dtype",
    "truncated",
    "other_model",
    "other_preprocessing",
    "row_order",
]


@dataclass(frozen=True)
class ContractModel:
    """The model that made the vectors: its file's name, and the hash of its content."""

    path: str
    content: str
    layer: str | None = None
    signature: str | None = None


@dataclass(frozen=True)
class ContractFeature:
    """One input of the model.

    Attributes:
        input: Its name.
        columns: The stored columns that fed it, in order.
        dtype: A NumPy dtype name, ``"bfloat16"`` or ``"string"``.
        shape: Of one row.
    """

    input: str
    columns: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]

    @property
    def array_dtype(self) -> np.dtype:
        """The dtype of its arrays; ``object`` for strings."""
        return numpy_dtype(self.dtype)

    @classmethod
    def of_json(cls, data: Json) -> ContractFeature:
        """Read what the file has."""
        lists = {name: tuple(data[name]) for name in ("columns", "shape")}
        return cls(**{**data, **lists})


def output_to_json(output: OutputSpec) -> Json:
    """Return what the file has of an output; its shape is that of predictions."""
    done = output.normalization
    return {
        "name": output.name,
        "shape": output.predicted_shape,
        "axis": output.axis,
        "norm": done.norm.name,
        "p": done.norm.p,
        "truncate": done.truncate,
        "mean": done.mean,
        "dtype": output.dtype,
        "scale": done.scale,
        "metric": output.metric,
        "vector_column": output.vector_column,
        "norm_column": output.norm_column,
    }


def output_of_json(data: Json) -> OutputSpec:
    """Read what `output_to_json` gave."""
    dtype, mean = data["dtype"], data["mean"]
    quantized = dtype if dtype in get_args(Quantized) else None
    output = OutputSpec(
        name=data["name"],
        predicted_shape=tuple(data["shape"]),
        axis=data["axis"],
        normalization=Normalization(
            Norm(data["norm"], data["p"]),
            data["truncate"],
            None if mean is None else tuple(map(float, mean)),
            quantized,
            data["scale"],
        ),
        vector_column=data["vector_column"],
        norm_column=data["norm_column"],
        float_dtype="float32" if quantized else np.dtype(dtype).name,
    )
    if output.axis not in (-1, "all") or data["metric"] != output.metric:
        raise ValueError(f"axis {output.axis!r} or metric {data['metric']!r}")
    return output


@dataclass(frozen=True, eq=False)
class Canary:
    """A row with the vectors that it got.

    Attributes:
        features: By input, an array of its shape and dtype.
        vectors: By output, what is stored: an array of its `OutputSpec.stored_shape`.
        norms: By output, float64: a number, or one for each vector of the row.
        key: The row's key, where it was asked for.
    """

    features: Mapping[str, Anything]
    vectors: Mapping[str, Anything]
    norms: Mapping[str, Anything]
    key: Mapping[str, Json] | None = None

    def to_json(self) -> Json:
        """Return it as the file has it."""
        parts = {"features": self.features, "vectors": self.vectors, "norms": self.norms}
        data: Json = {
            part: {name: _values(array) for name, array in arrays.items()}
            for part, arrays in parts.items()
        }
        return data if self.key is None else {**data, "key": dict(self.key)}

    @classmethod
    def of_json(
        cls, data: Json, features: tuple[ContractFeature, ...], outputs: tuple[OutputSpec, ...]
    ) -> Canary:
        """Read what `to_json` gave."""
        given, vectors, norms = data["features"], data["vectors"], data["norms"]
        return cls(
            {f.input: _array(given[f.input], f.array_dtype, f.shape) for f in features},
            {o.name: _array(vectors[o.name], o.stored_dtype, o.stored_shape) for o in outputs},
            {o.name: np.asarray(norms[o.name], np.float64) for o in outputs},
            data.get("key"),
        )


@dataclass(frozen=True)
class ContractReport:
    """What a check came to.

    Attributes:
        cause: What is wrong; None where nothing is.
        rows: Number of canary rows.
        agreeing: Those whose vectors are right as they are.
        largest_difference: The largest distance from a stored vector, in parts of its length; None
            where they cannot be compared.
        message: The same in words, with what to do.
        output: The output that is wrong, the first of several.
        swapped: Two features that are in each other's place.
    """

    cause: Cause | None
    rows: int
    agreeing: int
    largest_difference: float | None
    message: str
    output: str | None = None
    swapped: tuple[str, str] | None = None

    @property
    def agrees(self) -> bool:
        """Whether every canary row got its vector, within the contract's tolerance."""
        return self.cause is None

    def to_dict(self) -> Json:
        """Return it as plain data."""
        return {"agrees": self.agrees, **asdict(self)}


def _values(values: Any) -> Json:
    """Return nested lists of numbers that read back, as short as they can be, and of texts."""
    # Not as an array of bytes, which would drop zeros at their end.
    array = np.asarray(values, object if isinstance(values, str | bytes) else None)
    if array.dtype == object:
        return np.asarray(np.frompyfunc(_text, 1, 1)(array), object).tolist()
    if array.dtype.name in ("float16", "float32"):
        return array.astype(str).astype(np.float64).tolist()
    return array.astype(np.float64).tolist() if array.dtype.name == "bfloat16" else array.tolist()


def _text(value: str | bytes) -> Json:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _array(values: Json, dtype: np.dtype, shape: tuple[int, ...]) -> Anything:
    array = np.asarray(values, object if dtype.hasobject else None)
    if array.shape != shape:
        raise ValueError(f"an array of {array.shape} in place of {shape}")
    return _texts(array) if dtype.hasobject else array.astype(dtype)


def _texts(array: Anything) -> Anything:
    texts = np.empty(array.shape, object)
    for place, value in np.ndenumerate(array):
        texts[place] = base64.b64decode(value["base64"]) if isinstance(value, dict) else value
    return texts
