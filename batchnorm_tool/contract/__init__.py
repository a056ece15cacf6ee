"""The contract of a result: what whoever asks must do alike, with canary rows to prove it.

It needs NumPy and the standard library alone, so that a service can hold its own encoder to the
contract of the vectors that it searches.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from batchnorm_tool._version import __version__
from batchnorm_tool.contract.records import (
    Canary,
    ContractFeature,
    ContractModel,
    ContractReport,
    Json,
    output_of_json,
    output_to_json,
)
from batchnorm_tool.errors import ContractBroken, Damaged, InputError, JobError
from batchnorm_tool.norms.norm import Anything
from batchnorm_tool.norms.output_spec import OutputSpec

__all__ = ["CONTRACT", "Canary", "Contract", "ContractFeature", "ContractModel", "ContractReport"]

CONTRACT = "contract.json"
"""The file's name, in a run's directory and in that of a store's state."""
TOLERANCE = 1e-5
"""Of a row's length. Measured: 1e-6 between machines and versions, 6.5e-7 between back ends, with
room for deeper models."""

Encode: TypeAlias = Callable[[Any], Any]
"""From features to vectors; see `Contract.check`."""

_FORMAT = 1
_TOOL = "batchnorm_tool"


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
    found = (path / CONTRACT, path.with_name(f"{path.name}.state") / CONTRACT)
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
    except (ValueError, KeyError, TypeError) as error:
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
