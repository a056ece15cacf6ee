"""The contract of a result: what whoever asks must do alike, with canary rows to prove it.

It needs NumPy and the standard library alone, so that a service can hold its own encoder to the
contract of the vectors that it searches.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from batchnorm_tool._version import __version__
from batchnorm_tool.errors import ContractBroken, Damaged, InputError, JobError
from batchnorm_tool.norms.norm import Anything, Norm, numpy_dtype
from batchnorm_tool.norms.normalization import Normalization, Quantized
from batchnorm_tool.norms.output_spec import OutputSpec

CONTRACT = "contract.json"
"""The file's name, in a run's directory and in that of a store's state."""
TOLERANCE = 1e-5
"""Of a row's length. Measured: 1e-6 between machines and versions, 6.5e-7 between back ends, with
room for deeper models."""

Encode: TypeAlias = Callable[[Any], Any]
"""From features to vectors; see `Contract.check`."""

_FORMAT = 1
_TOOL = "batchnorm_tool"

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


@dataclass(frozen=True)
class Contract:
    """What made the vectors of a run or a store, and canary rows with the vectors that they got.

    Attributes:
        space: Id of the vector space.
        features: The model's inputs, in its order.
        outputs: What is stored.
        canaries: Rows to check an encoder on; none where the job said so.
        model: What predicted; None where predictions were stored already.
        transform: SHA-256 of the source of ``input.transform``; None without one.
        tolerance: How far a vector may be from a canary's, in parts of its L2 length, beside the
            rounding of its dtype.
        version: The version of this package that wrote it.

    Example:
        >>> from batchnorm_tool.norms.norm import L2
        >>> from batchnorm_tool.norms.normalization import Normalization
        >>> output = OutputSpec("y", (2,), -1, Normalization(L2))
        >>> contract = Contract("space", (), (output,))
        >>> contract.apply(np.array([[3.0, 4.0]]))
        array([[0.6, 0.8]], dtype=float32)
        >>> Contract.from_bytes(contract.to_bytes()).outputs[0].metric
        'cosine'
    """

    space: str
    features: tuple[ContractFeature, ...]
    outputs: tuple[OutputSpec, ...]
    canaries: tuple[Canary, ...] = ()
    model: ContractModel | None = None
    transform: str | None = None
    tolerance: float = TOLERANCE
    version: str = __version__

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Contract:
        """Read the contract of a result.

        Args:
            path: A run's directory, a store's dataset, or the file itself.

        Raises:
            InputError: There is no contract, or a newer version of this package wrote it.
            Damaged: The file is not what was written.
        """
        try:
            place = _place(Path(path))
            content = place.read_bytes()
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or error
            raise InputError(
                f"`{path}` cannot be read: {said}. Expected a run, a store or a `{CONTRACT}`. Use "
                "another path."
            ) from error
        return cls.from_bytes(content, str(place))

    @classmethod
    def from_bytes(cls, content: bytes, path: str = CONTRACT) -> Contract:
        """Read what `to_bytes` gave."""
        data = _checked(content, path)
        try:
            return cls._of_json(data)
        except (AttributeError, KeyError, TypeError, ValueError, ImportError, JobError) as error:
            raise Damaged(
                f"`{path}` is not as this version writes it: {type(error).__name__}: {error}. Read "
                "it with the version that wrote it, or recreate the result."
            ) from error

    def to_bytes(self) -> bytes:
        """Return the file's content: the same bytes for the same contract."""
        data = {
            "format": _FORMAT,
            "tool": _TOOL,
            "version": self.version,
            "space": self.space,
            "model": self.model and vars(self.model),
            "transform": self.transform,
            "features": [*map(vars, self.features)],
            "outputs": [*map(output_to_json, self.outputs)],
            "tolerance": self.tolerance,
            "canaries": [canary.to_json() for canary in self.canaries],
        }
        return _canonical({**data, "checksum": _sha256(data)}) + b"\n"

    def apply(self, raw: Any) -> Any:
        """Do to raw predictions what was done to those of the result.

        Args:
            raw: The model's output ``[n, *shape]``, of any float dtype; for several outputs a
                mapping of them by name.

        Returns:
            Vectors as they are stored: ``dtype[n, *shape]``, with ``truncate`` fewer components;
            int8 codes; or uint8 of packed bits. A row of zeros stays zeros, and NaN stays NaN. For
            a mapping, a dictionary.

        Raises:
            InputError: An output is missing, or has another shape.
        """
        if not isinstance(raw, Mapping) and len(self.outputs) == 1:
            return self.outputs[0].apply(raw)
        given = self.by_output(raw)
        return {output.name: output.apply(given[output.name]) for output in self.outputs}

    def canary_features(self) -> dict[str, Anything]:
        """Return what the canary rows feed each input: an array ``[rows, *shape]`` by its name."""
        return {
            one.input: np.stack(
                [np.asarray(row.features[one.input], one.array_dtype) for row in self.canaries]
            )
            for one in self.features
        }

    def by_output(self, given: Any) -> dict[str, Anything]:
        """Return an array of each output by name; a lone one may have any, or none."""
        if len(self.outputs) == 1 and (not isinstance(given, Mapping) or len(given) == 1):
            lone = next(iter(given.values())) if isinstance(given, Mapping) else given
            return {self.outputs[0].name: np.asarray(lone)}
        names = [output.name for output in self.outputs]
        have = list(given) if isinstance(given, Mapping) else type(given).__name__
        if not isinstance(given, Mapping) or not set(names) <= set(given):
            raise InputError(f"Expected a mapping with the outputs {names}. Received: {have}.")
        return {name: np.asarray(given[name]) for name in names}

    def check(self, encode: Encode) -> ContractReport:
        """Compare what an encoder makes of the canary rows with the vectors that they got.

        Args:
            encode: Takes the model's inputs, an array ``[rows, *shape]`` in the contract's dtype or
                a dictionary of several by name, and returns vectors as they are stored: an array,
                or a mapping for several outputs. To name swapped features, it is called again.

        Returns:
            Whether all agree; if not, what is wrong, in words too. Vectors of a wider float dtype
            agree where their values do.

        Raises:
            InputError: There are no canary rows, or the encoder fails on them, or returns another
                number of rows.
        """
        from batchnorm_tool.contract.checking import check_contract

        return check_contract(self, encode)

    def require(self, encode: Encode) -> ContractReport:
        """Do what `check` does, and raise unless all agree.

        Raises:
            ContractBroken: The encoder does something else, as the message says.
        """
        report = self.check(encode)
        if not report.agrees:
            raise ContractBroken(report.message)
        return report

    @classmethod
    def _of_json(cls, data: Json) -> Contract:
        features = tuple(map(ContractFeature.of_json, data["features"]))
        outputs = tuple(map(output_of_json, data["outputs"]))
        return cls(
            space=data["space"],
            features=features,
            outputs=outputs,
            canaries=tuple(Canary.of_json(each, features, outputs) for each in data["canaries"]),
            model=data["model"] and ContractModel(**data["model"]),
            transform=data["transform"],
            tolerance=float(data["tolerance"]),
            version=data["version"],
        )


def _place(path: Path) -> Path:
    """Return where the contract of a run, a store or a file is."""
    if path.is_file():
        return path
    found = (path / CONTRACT, Path(f"{path.absolute()}.state", CONTRACT))
    for place in found:
        if place.is_file():
            return place
    raise InputError(
        f"`{path}` has no contract. Expected a run, a store or a `{CONTRACT}`: looked for "
        f"`{found[0]}` and `{found[1]}`. A result of an earlier version has none: recreate it."
    )


def _checked(content: bytes, path: str) -> Json:
    """Return the data of a file whose checksum is right."""
    try:
        data = json.loads(content)
        newer = data["format"] != _FORMAT
        checksum = data.pop("checksum")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"`{path}` is no contract: it lacks a format and a checksum. Expected the "
            f"`{CONTRACT}` of a run or a store. Use another path."
        ) from error
    if newer:
        raise InputError(
            f"`{path}` has the format {data['format']} of a contract. Expected {_FORMAT}. Use the "
            f"version that wrote it: {data.get('version')}. Received by: {__version__}."
        )
    if checksum != _sha256(data):
        raise Damaged(
            f"`{path}` is damaged: its checksum does not match. Restore it from a backup, or "
            "recreate the result."
        )
    return data


def _canonical(data: Json) -> bytes:
    """Return JSON as `storage.checked_json` does, whose import takes longer than all the rest."""
    text = json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode(errors="surrogatepass")


def _sha256(data: Json) -> str:
    return hashlib.sha256(_canonical(data)).hexdigest()


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
