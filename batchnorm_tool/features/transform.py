"""The user's own function from stored columns to model inputs: found, called and checked."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Field, Reason
from batchnorm_tool.errors import BatchnormToolError, JobError
from batchnorm_tool.features.values import STRING, array_dtype, is_float, nonfinite_rows


@dataclass(frozen=True)
class Transform:
    """A function that makes a model's inputs from a table.

    Attributes:
        name: ``"module:function"``.
        function: Called with a `pyarrow.Table` of ``n`` rows, from several threads at once; gives
            an array ``[n, *shape]`` for each model input by name. It must treat rows one by one:
            which rows share a table is not promised.
        source_sha256: Hash of its module's file. Not promised: that other modules which it calls
            are the same.
    """

    name: str
    function: Callable[[pa.Table], Mapping[str, Any]]
    source_sha256: str

    def apply(
        self, table: pa.Table, inputs: Sequence[Field]
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Call the function, and check what it gives.

        Args:
            table: ``n`` rows.
            inputs: The model's inputs.

        Returns:
            Arrays ``[n, *shape]`` in the inputs' dtypes, C-ordered, with zeros in bad rows; and
            ``uint8[n]``: ``NONFINITE_FEATURE`` for rows with a NaN or infinity in any.

        Raises:
            JobError: The function raised, or what it gave does not fit the inputs.
        """
        given = self._call(table)
        names = [field.name for field in inputs]
        if sorted(given, key=str) != sorted(names):
            raise self._refusal("has the wrong names", _listed(names), _listed(given))
        arrays = {field.name: self._checked(given[field.name], table, field) for field in inputs}
        faults = np.zeros(table.num_rows, np.uint8)
        for name, array in arrays.items():
            flat = array.reshape(len(array), -1) if array.size else array.reshape(len(array), 0)
            bad = None if array.dtype == object else nonfinite_rows(flat)
            if bad is not None:
                faults[bad] = Reason.NONFINITE_FEATURE
                arrays[name] = np.where(bad.reshape(-1, *[1] * (array.ndim - 1)), 0, array)
                arrays[name] = arrays[name].astype(array.dtype, copy=False)
        return arrays, faults

    def _call(self, table: pa.Table) -> Mapping[str, Any]:
        try:
            given = self.function(table)
        except BatchnormToolError:
            raise
        except Exception as error:
            raise JobError(
                f"`input.transform` ({self.name}) failed on a table of {table.num_rows} rows with "
                f"the columns {_listed(table.column_names)}. Expected an array for each model "
                f"input. Received: {type(error).__name__}: {error}. Mend the function."
            ) from error
        if not isinstance(given, Mapping):
            raise self._refusal("is of the wrong kind", "a dict of arrays", type(given).__name__)
        return given

    def _checked(self, value: Any, table: pa.Table, field: Field) -> np.ndarray:
        array = np.asarray(value)
        what = f"for `{field.name}` "
        expected = (table.num_rows, *field.shape)
        fits = array.ndim == len(expected) and all(
            want in (None, have) for have, want in zip(array.shape, expected, strict=True)
        )
        if not fits:
            raise self._refusal(f"{what}has the wrong shape", str(expected), str(array.shape))
        dtype = array_dtype(field)
        if field.dtype == STRING:
            return self._checked_texts(array, what)
        if not (array.dtype == dtype or _is_safe(array.dtype, dtype)):
            raise self._refusal(f"{what}has the wrong dtype", field.dtype, str(array.dtype))
        with np.errstate(over="ignore", invalid="ignore"):
            return np.ascontiguousarray(array, dtype).reshape(array.shape)

    def _checked_texts(self, array: np.ndarray, what: str) -> np.ndarray:
        texts = array.astype(object)
        wrong = [text for text in texts.flat if not isinstance(text, str)]
        if wrong:
            raise self._refusal(f"{what}holds more than strings", "str", repr(wrong[0]))
        return texts

    def _refusal(self, what: str, expected: str, received: str) -> JobError:
        return JobError(
            f"What `input.transform` ({self.name}) gives {what}. Expected {expected}. "
            f"Received: {received}. Mend the function."
        )


def load_transform(name: str) -> Transform:
    """Find a function by name.

    Args:
        name: ``"module:function"``, importable.

    Returns:
        The function, with the hash of its source.

    Raises:
        JobError: There is no such module or function, or its source cannot be read.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise JobError(
            f"`input.transform` names `{name}`, whose module does not import. Expected an installed"
            f" module, or one on PYTHONPATH. Received: {type(error).__name__}: {error}."
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise JobError(
            f"`input.transform` names `{name}`, but the module has no such function. Expected a "
            f"function of {module_name}. Received: `{attribute}`. Its name goes after the colon."
        )
    return Transform(name, function, _source_hash(name, function, module_name))


def _source_hash(name: str, function: Any, module_name: str) -> str:
    """Hash of the file that defines the function: its own module may only have imported it."""
    home = sys.modules.get(getattr(function, "__module__", None) or module_name)
    path = getattr(home, "__file__", None) or ""
    try:
        if not path.endswith(".py"):
            raise FileNotFoundError(path)
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise JobError(
            f"The source of `input.transform` ({name}) cannot be read, so that a change of it would"
            f" go unseen. Expected a function in a Python file. Received: {path or home}. Put a "
            "function of your own around it."
        ) from error


def _is_safe(have: np.dtype, want: np.dtype) -> bool:
    """Whether only rounding to a narrower float can change a value."""
    if is_float(want):
        return is_float(have) or have.kind in "iub"
    return np.can_cast(have, want, "safe")


def _listed(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names) or "nothing"
