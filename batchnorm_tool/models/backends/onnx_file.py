"""``.onnx`` files that are models in their own right: onnxruntime alone can run them."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import JobError, ModelError
from batchnorm_tool.job import Engine, Model
from batchnorm_tool.models import backends, security
from batchnorm_tool.models.backends.onnx_graph import OnnxModel, open_session
from batchnorm_tool.models.batching import BackendRecord, OutputChoice
from batchnorm_tool.models.signature import check_onnx_choice

# Where NumPy's name is another than ONNX's.
_DTYPES = {"float": "float32", "double": "float64"}


def check_onnx_job(model: Model, engine: Engine) -> None:
    """Refuse what a job asks of an ONNX model and cannot be had, and a missing extra."""
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


def load_onnx_file(model: Model, path: str, threads: int, choose: OutputChoice) -> OnnxModel:
    """Load an ``.onnx`` file that the gate admitted."""
    content = Path(path).read_bytes()
    try:
        session = open_session(content, threads)
    except Exception as error:  # its classes have no base of their own
        raise ModelError(
            f"{model.path}: does not load. Check that this onnxruntime knows its operations, or "
            f"export it for an older version of them. onnxruntime says: " + backends.quoted(error)
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
    return backends.field_of(
        end.name, SimpleNamespace(shape=shape, dtype=_DTYPES.get(name, name), type=end.type)
    )


def _is_fixed(size: object) -> bool:
    return isinstance(size, int) and size > 0
