"""ONNX graphs as predictors, run by onnxruntime: without TensorFlow, which is not imported."""

import contextlib
import ctypes
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import JobError, ModelError, ModelFailed
from batchnorm_tool.job import Engine, Model
from batchnorm_tool.models import security
from batchnorm_tool.models.backends import check_output, field_of, place_name, quoted
from batchnorm_tool.models.batching import (
    BackendRecord,
    LoadedModel,
    ModelFacts,
    ModelPredictor,
    OutputChoice,
    Step,
)
from batchnorm_tool.models.signature import check_onnx_choice

GRAPH = "model.onnx"
# Where NumPy's name is another than ONNX's.
_DTYPES = {"float": "float32", "double": "float64"}
# One row alone is multiplied as a vector, by other kernels, which round otherwise.
_LEAST_ROWS = 2
# What it says of an error, the error says.
_FATAL_ONLY = 4
_ALLOCATION = "Failed to allocate memory"
# `fenv_t` of glibc on x86-64: 32-bit words; in the last one bits take tiny numbers as zeros.
_WORDS, _FLUSH_TO_ZERO, _DENORMALS_ARE_ZERO = 8, 1 << 15, 1 << 6


@dataclass(frozen=True)
class OnnxModel(LoadedModel):
    """A graph in memory; ``feeds`` and ``fetches`` are its names of ``inputs`` and ``outputs``."""

    session: Any
    feeds: tuple[str, ...]
    fetches: tuple[str, ...]

    def compile(self, batch_size: int) -> Step:  # noqa: ARG002
        """Return a step over any number of rows, or as many as are built into the graph."""
        run: Callable[[Sequence[str], Mapping[str, np.ndarray]], list[np.ndarray]]
        run = self.session.run
        least = 1 if self.own_batch_size else _LEAST_ROWS

        def step(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            rows = len(arrays[0])
            if rows < least:
                arrays = [np.repeat(array, least, axis=0) for array in arrays]
            with run_errors(), _denormals_as_zeros():
                found = run(self.fetches, dict(zip(self.feeds, arrays, strict=True)))
            for field, result in zip(self.outputs, found, strict=True):
                check_output(field.name, result.shape, len(arrays[0]))
            return [result[:rows] for result in found]

        return step


def _open_session(content: bytes, threads: int) -> Any:
    """Load a graph on the CPU, with so many threads in one operation."""
    # What it tells its makers of each use; this is read at the import, where it writes files.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = _FATAL_ONLY
    # Threads that wait without sleeping would take the cores from reading and writing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if _float_environment() is not None:
        # It holds for threads of the session, and not for the one that calls it.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
    with _denormals_as_zeros():
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@cache
def _float_environment() -> ctypes.CDLL | None:
    """Return the library that sets a thread's, where it is laid out as `_WORDS` says."""
    known = platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc"
    return ctypes.CDLL("libm.so.6") if known else None


@contextlib.contextmanager
def _denormals_as_zeros() -> Iterator[None]:
    """Compute in this thread as TensorFlow does, whose kernels know no numbers below 1.2e-38."""
    library = _float_environment()
    if library is None:
        yield
        return
    before, within = ((ctypes.c_uint32 * _WORDS)() for _ in range(2))
    library.fegetenv(before)
    library.fegetenv(within)
    within[-1] |= _FLUSH_TO_ZERO | _DENORMALS_ARE_ZERO
    library.fesetenv(within)
    try:
        yield
    finally:
        library.fesetenv(before)


def load_onnx_file(model: Model, path: str, engine: Engine, choose: OutputChoice) -> ModelPredictor:
    """Load an ``.onnx`` file that the gate admitted.

    Raises:
        JobError: The extra is missing, or what the job asks cannot be had of an ONNX model.
        ModelError: It does not load.
    """
    if find_spec("onnxruntime") is None:
        raise JobError(
            f"{model.path}: an ONNX model, which onnxruntime runs. Install it with `pip install "
            "'batchnorm-tool[onnxruntime]'`."
        )
    check_onnx_choice(model)
    if engine.device == "gpu":
        raise JobError(
            f"{model.path}: `engine.devices` asks for a GPU, and onnxruntime computes on the CPU "
            "here. Set it to auto or cpu."
        )
    return _predictor(_loaded(model, path, engine.threads, choose), engine.threads)


def _loaded(model: Model, path: str, threads: int, choose: OutputChoice) -> OnnxModel:
    content = Path(path).read_bytes()
    try:
        session = _open_session(content, threads)
    except Exception as error:  # its classes have no base of their own
        raise ModelError(
            f"{model.path}: does not load. Check that this onnxruntime knows its operations, or "
            f"export it for an older version of them. onnxruntime says: " + quoted(error)
        ) from error
    inputs = session.get_inputs()
    outputs = [each for each in session.get_outputs() if each.type.startswith("tensor(")]
    if not outputs:
        raise ModelError(
            f"{model.path}: none of its outputs is a tensor. Received: "
            f"{', '.join(f'{each.name} ({each.type})' for each in session.get_outputs())}. Export "
            "the model with an array as its output."
        )
    chosen = [outputs[place] for place in choose([each.name for each in outputs])]
    fields = tuple(map(_field, inputs))
    sizes = {each.shape[0] for each in inputs if _is_fixed(each.shape[0])}
    return OnnxModel(
        inputs=fields,
        outputs=tuple(map(_field, chosen)),
        embedding_sizes=dict.fromkeys(
            field.name for field in fields if field.dtype.startswith("int")
        ),
        own_batch_size=min(sizes, default=None),
        session=session,
        feeds=tuple(each.name for each in inputs),
        fetches=tuple(each.name for each in chosen),
        backend=BackendRecord(
            name="onnxruntime",
            graph_sha256=security.report_of(Path(path), model.path).content,
            largest_difference=None,
            independent=False,
            batch_size=None,
        ),
    )


def _field(end: Any) -> Field:
    """Return the field of an input or output of a session."""
    name = end.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if _is_fixed(size) else None for size in end.shape)
    return field_of(
        end.name, SimpleNamespace(shape=shape, dtype=_DTYPES.get(name, name), type=end.type)
    )


def _is_fixed(size: object) -> bool:
    return isinstance(size, int) and size > 0


def converted_predictor(content: bytes, facts: ModelFacts, threads: int) -> ModelPredictor:
    """Load a graph that was converted; its inputs and outputs are named by their places."""
    feeds = tuple(place_name("input", place) for place in range(len(facts.inputs)))
    fetches = tuple(place_name("output", place) for place in range(len(facts.outputs)))
    session = _open_session(content, threads)
    model = OnnxModel(*facts.ends, session, feeds, fetches, backend=facts.backend)
    return _predictor(model, threads)


def _predictor(model: OnnxModel, threads: int) -> ModelPredictor:
    """Return a graph as a predictor; where the batch size changes no bits, nothing is padded."""
    independent = model.backend is not None and model.backend.independent
    pads = model.own_batch_size is not None or not independent
    return ModelPredictor(model, "cpu", threads, pads=pads)


@contextlib.contextmanager
def run_errors() -> Iterator[None]:
    """Map what onnxruntime raises while a graph runs to errors of ours, or to MemoryError."""
    from onnxruntime.capi import onnxruntime_pybind11_state as raised

    try:
        yield
    except raised.NotImplemented as error:
        raise ModelError(f"onnxruntime cannot run this model: {_cause(error)}") from error
    except (raised.Fail, raised.InvalidArgument, raised.RuntimeException) as error:
        if is_out_of_memory(error):
            raise MemoryError(_cause(error)) from error
        raise ModelFailed(_cause(error)) from error


def _cause(error: Exception) -> str:
    """Return what is wrong, without the code in front, and where in the graph it was."""
    said = " ".join(str(error).split())
    said = said.rpartition("Status Message: ")[2] or said
    return said[max(0, said.find(_ALLOCATION)) :]  # without the place in its source before that


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether onnxruntime or TensorFlow ran out of memory; another time they may not."""
    words = ("bad_alloc", "allocate memory", "bad allocation")
    lacking = type(error).__name__ == "ResourceExhaustedError"
    return lacking or any(word in str(error) for word in words)
