"""Between NumPy arrays and TensorFlow tensors: shapes, dtypes, and one call of a graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import ModelError, ModelFailed, WorkFailed

if TYPE_CHECKING:
    from batchnorm_tool.predictor.batches import Step


def field_of(name: str, tensor: Any) -> Field:
    """The field of something with a shape (its first axis the rows) and a dtype.

    Raises:
        ModelError: It has no rows, an unknown number of axes, or is sparse or ragged.
    """
    shape = None if hasattr(tensor, "indices") else _plain_shape(getattr(tensor, "shape", None))
    if shape is None or not shape or hasattr(tensor, "row_splits"):
        raise ModelError(
            f"The model's `{name}` is not a dense tensor with one entry for each row. Received: "
            f"{tensor!r}. Choose others with `model.outputs`, or change the model."
        )
    dtype = getattr(tensor.dtype, "name", None) or str(tensor.dtype)
    return Field(name, shape[1:], "string" if dtype in ("object", "string") else dtype)


def check_output(name: str, shape: Any, rows: int) -> None:
    """Refuse an output of which the rows are not the input's.

    Raises:
        ModelError: The model changes the number of rows, or returns one value for all of them.
    """
    plain = _plain_shape(shape)
    if plain is not None and (not plain or plain[0] not in (None, rows)):
        received = f"{plain[0]} rows" if plain else "one value for all rows"
        raise ModelError(
            f"The model changes the number of rows: for {rows} rows of input, its output `{name}` "
            f"has {received}. Expected one entry for each row. Choose another output with "
            "`model.outputs` or another layer with `model.layer`."
        )


def graph_step(concrete: Any, inputs: Sequence[Field], outputs: Sequence[Field]) -> Step:
    """A step that runs a traced graph: tensors by position in, a list of tensors out."""
    import tensorflow as tf

    dtypes = [tf.as_dtype(field.dtype) for field in inputs]

    def step(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with run_errors():
            tensors = [
                tf.constant(array, dtype) for array, dtype in zip(arrays, dtypes, strict=True)
            ]
            results = [tensor.numpy() for tensor in concrete(*tensors)]
        for field, result in zip(outputs, results, strict=True):
            check_output(field.name, result.shape, len(arrays[0]))
        return results

    return step


@contextlib.contextmanager
def run_errors() -> Iterator[None]:
    """Map what TensorFlow raises while a model runs to errors of ours, or to MemoryError.

    Raises:
        ModelFailed: The same rows will fail again.
        WorkFailed: The device or the system failed, which another try may heal.
    """
    import tensorflow as tf

    lasting = (
        *(tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError, tf.errors.NotFoundError),
        *(tf.errors.FailedPreconditionError, tf.errors.UnimplementedError),
    )
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise MemoryError(str(error)) from error
    except lasting as error:
        raise ModelFailed(_cause(error.message)) from error
    except tf.errors.OpError as error:
        raise WorkFailed(
            f"The model failed on a batch ({type(error).__name__}: {_cause(error.message)}). Run "
            "it again: it resumes. If it fails again, try `engine.devices: cpu`."
        ) from error


def _cause(message: str) -> str:
    """The line that says what is wrong, of a message that shows where in the graph it was.

    Example:
        >>> _cause(chr(10).join(["Graph execution error:", "indices[0] = 9", "[[{{node x}}]]"]))
        'indices[0] = 9'
    """
    lines = [line.strip() for line in message.splitlines()]
    telling = [line for line in lines if line and not line.startswith(("[[", "File ", "Detected"))]
    return telling[-1] if telling else message


def _plain_shape(shape: Any) -> tuple[int | None, ...] | None:
    """A shape as a tuple, or ``None`` where even the number of axes is unknown."""
    if shape is None or getattr(shape, "rank", 0) is None:
        return None
    return tuple(None if length is None else int(length) for length in shape)
