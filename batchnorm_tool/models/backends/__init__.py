"""What runs a model: the only files that import TensorFlow and Keras.

Here TensorFlow is started, quietly, on the right device, with a fixed number of threads, and its
tensors and errors are told in our terms.
"""

import contextlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from batchnorm_tool.chunk import Field
from batchnorm_tool.display import plural
from batchnorm_tool.errors import JobError, ModelError, ModelFailed, WorkFailed
from batchnorm_tool.models.batching import Device, Step

# The number of a GPU, or the CPU.
DeviceName = int | Literal["cpu"]
Devices = Literal["auto", "cpu", "gpu"] | Sequence[DeviceName]
# What Keras and TensorFlow raise for models that do not run; there is no common base.
TRACE_FAILURES = (
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
# And for those that do not load.
LOAD_FAILURES = (*TRACE_FAILURES, ArithmeticError, EOFError, ImportError, OSError)
_LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_CHATTER = re.compile(
    rb"^(WARNING: All log messages before|[IWE]\d{4} |\d{4}-\d\d-\d\d .*: [IWE] )"
)


class TensorFlowSetup(NamedTuple):
    """Where TensorFlow computes in this process, and with how many threads in one operation."""

    device: Device
    threads: int


def start_tensorflow(devices: Devices, threads: int) -> TensorFlowSetup:
    """Import TensorFlow and set it up, as far as it is not running already."""
    tf = import_tensorflow()
    # The others are for other processes; one that is visible would have memory taken on it.
    gpus = _gpus(tf, devices)[:1]
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        # Operations side by side change no bits; threads within one do, and are part of the bits.
        tf.config.threading.set_inter_op_parallelism_threads(os.cpu_count() or 1)
        tf.config.set_visible_devices(gpus, "GPU")
        for gpu in gpus:
            # Otherwise TensorFlow takes the whole GPU, and a second process finds none.
            tf.config.experimental.set_memory_growth(gpu, enable=True)
        if gpus:
            # On a GPU, sums are added up in any order unless set otherwise.
            tf.config.experimental.enable_op_determinism()
    except RuntimeError:
        # Settings are fixed with the first operation: in a notebook that may have been anybody's.
        setup = running_tensorflow()
        warnings.warn(
            "TensorFlow was already initialized, so that `engine.devices` and `engine.threads` "
            f"have no effect: it computes on the {setup.device} "
            f"with {plural(setup.threads, 'thread')} per operation. Start the run first, or in a "
            "separate process.",
            stacklevel=2,
        )
        return setup
    return TensorFlowSetup("gpu" if gpus else "cpu", threads)


def every_device(devices: Devices) -> list[DeviceName]:
    """Return the devices that ``engine.devices`` stands for, one for each process.

    ``"gpu"`` and ``"auto"`` are every GPU that TensorFlow, imported for this alone, sees here.
    """
    if devices == "cpu":
        return ["cpu"]
    if not isinstance(devices, str):
        return list(devices)
    return [*range(len(import_tensorflow().config.list_physical_devices("GPU")))] or ["cpu"]


def running_tensorflow() -> TensorFlowSetup:
    """Return TensorFlow as it is set up at the moment."""
    tf = import_tensorflow()
    gpus = tf.config.get_visible_devices("GPU")
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    return TensorFlowSetup("gpu" if gpus else "cpu", threads or os.cpu_count() or 1)


def import_tensorflow() -> Any:
    """Import ``tensorflow`` without its log lines, unless they were asked for."""
    wanted = os.environ.setdefault(_LOG_LEVEL, "3")
    if "tensorflow" not in sys.modules and wanted not in ("0", "1"):
        with _without_chatter():
            import tensorflow as tf
    import tensorflow as tf

    return tf


def _gpus(tf: Any, devices: Devices) -> list[Any]:
    """Return all GPUs that are asked for."""
    found = list(tf.config.list_physical_devices("GPU"))
    if isinstance(devices, str):
        wanted = [] if devices == "cpu" else list(range(len(found)))
    else:
        wanted = [device for device in devices if device != "cpu"]
    if devices == "gpu" and not found:
        raise JobError(
            "`engine.devices` is gpu, but TensorFlow sees no GPU on this machine. Install "
            "tensorflow[and-cuda] and check `nvidia-smi`, or set `engine.devices` to auto or cpu."
        )
    missing = [number for number in wanted if number >= len(found)]
    if missing:
        raise JobError(
            f"`engine.devices` lists GPU {missing[0]}, but TensorFlow "
            f"sees {plural(len(found), 'GPU')} on this machine, counted from 0. Choose others, or "
            "set it to auto."
        )
    return [found[number] for number in wanted]


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Hold standard error back while TensorFlow's C++ side starts, then pass on what matters."""
    # Before its log is set up it heeds no variable; Python's `sys.stderr` is of no help there.
    try:
        sys.stderr.flush()
        saved = os.dup(2)
    except (AttributeError, OSError):
        yield  # no standard error to keep quiet
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            for line in held:
                if not _CHATTER.match(line):
                    os.write(2, line)


def field_of(name: str, tensor: Any) -> Field:
    """Return the field of something with a shape (its first axis the rows) and a dtype."""
    shape = None if hasattr(tensor, "indices") else _plain_shape(getattr(tensor, "shape", None))
    if shape is None or not shape or hasattr(tensor, "row_splits"):
        raise ModelError(
            f"The model's `{name}` is not a dense tensor with one entry for each row. Received: "
            f"{tensor!r}. Choose others with `model.outputs`, or change the model."
        )
    dtype = getattr(tensor.dtype, "name", None) or str(tensor.dtype)
    return Field(name, shape[1:], "string" if dtype in ("object", "string") else dtype)


def quoted(error: Exception, most: int = 400) -> str:
    """Return what a library says, in one line and not too long."""
    return " ".join(str(error).split())[:most]


def place_name(side: str, place: int) -> str:
    """Name an input or output by its place, so that names in order are places in order.

    Example:
        >>> place_name("input", 2)
        'input_0002'
    """
    return f"{side}_{place:04d}"


def check_output(name: str, shape: Any, rows: int) -> None:
    """Refuse an output of which the rows are not the input's."""
    plain = _plain_shape(shape)
    if plain is not None and (not plain or plain[0] not in (None, rows)):
        received = f"{plain[0]} rows" if plain else "one value for all rows"
        raise ModelError(
            f"The model changes the number of rows: for {plural(rows, 'row')} of input, its "
            f"output `{name}` has {received}. Expected one entry for each row. Choose another "
            "output with `model.outputs` or another layer with `model.layer`."
        )


def graph_step(concrete: Any, inputs: Sequence[Field], outputs: Sequence[Field]) -> Step:
    """Make a step that runs a traced graph: tensors by position in, a list of tensors out."""
    import tensorflow as tf

    dtypes = [tf.as_dtype(field.dtype) for field in inputs]

    def step(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with run_errors():
            tensors = [tf.constant(*pair) for pair in zip(arrays, dtypes, strict=True)]
            results = [tensor.numpy() for tensor in concrete(*tensors)]
        for field, result in zip(outputs, results, strict=True):
            check_output(field.name, result.shape, len(arrays[0]))
        return results

    return step


@contextlib.contextmanager
def run_errors() -> Iterator[None]:
    """Map what TensorFlow raises while a model runs to errors of ours, or to MemoryError."""
    import tensorflow as tf

    lasting = (
        tf.errors.FailedPreconditionError,
        tf.errors.InvalidArgumentError,
        tf.errors.NotFoundError,
        tf.errors.OutOfRangeError,
        tf.errors.UnimplementedError,
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
            "again to resume. If it fails again, try `engine.devices: cpu`."
        ) from error


def _cause(message: str) -> str:
    """Return what is wrong, of a message that also shows where in the graph it was."""
    lines = [line.strip() for line in message.splitlines()]
    wrapper = [line for line in lines if line and not line.startswith(("[[", "File ", "Detected"))]
    return wrapper[-1] if wrapper else message


def _plain_shape(shape: Any) -> tuple[int | None, ...] | None:
    """Return a shape as a tuple, or ``None`` where even the number of axes is unknown."""
    if shape is None or getattr(shape, "rank", 0) is None:
        return None
    return tuple(None if length is None else int(length) for length in shape)
