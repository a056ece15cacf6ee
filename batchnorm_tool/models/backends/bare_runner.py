"""Runs stored models as any program would: a script for a process without this package.

On standard input it takes a pickled list of calls: format, path, arrays by the names of inputs, and
rows for each call. To the file that is its argument it writes, for each, the arrays by the names of
outputs.
"""

import pickle
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np

_Arrays: TypeAlias = dict[str, Any]
_Call: TypeAlias = Callable[[_Arrays], _Arrays]


def _keras(path: str) -> _Call:
    import keras

    model = keras.saving.load_model(path, compile=False)  # in safe mode, which is the default

    def run(feeds: _Arrays) -> _Arrays:
        named = {name.replace("/", "_"): array for name, array in _tensors(feeds).items()}
        found = model.predict_on_batch(named)
        return found if isinstance(found, dict) else {"": found}

    return run


def _savedmodel(path: str) -> _Call:
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    signature = loaded.signatures["serving_default"]
    # The signature alone does not keep alive what it was loaded with.
    return lambda feeds: loaded and signature(**_identifiers(_tensors(feeds)))


def _identifiers(feeds: _Arrays) -> _Arrays:
    """Write names of inputs as a SavedModel's signature does, where they are arguments."""
    return {re.sub("[^A-Za-z0-9_]", "_", name): array for name, array in feeds.items()}


def _tensors(feeds: _Arrays) -> _Arrays:
    import tensorflow as tf

    return {name: tf.constant(array) for name, array in feeds.items()}


def _onnx(path: str) -> _Call:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def _openvino(path: str) -> _Call:
    import openvino

    # Where a processor has bfloat16, OpenVINO computes in it unless it is kept from that.
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(f"{path}/model.xml", "CPU", precision)

    def run(feeds: _Arrays) -> _Arrays:
        found = model(feeds)
        return {output.any_name: np.array(found[output]) for output in model.outputs}

    return run


def _litert(path: str) -> _Call:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=path).get_signature_runner()
    return lambda feeds: dict(runner(**_identifiers(feeds)))


_LOADERS = {
    "keras": _keras,
    "savedmodel": _savedmodel,
    "onnx": _onnx,
    "openvino": _openvino,
    "litert": _litert,
}


def _run(call: _Call, feeds: _Arrays, size: int) -> _Arrays:
    rows = len(next(iter(feeds.values())))
    found: list[_Arrays] = []
    for start in range(0, rows, size):
        batch = {name: array[start : start + size] for name, array in feeds.items()}
        found.append({name: np.asarray(array) for name, array in call(batch).items()})
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


def run(calls: Iterable[tuple[str, str, _Arrays, int]]) -> list[_Arrays]:
    """Return, for each call, the arrays by the names of outputs."""
    return [_run(_LOADERS[kind](path), feeds, size) for kind, path, feeds, size in calls]


if __name__ == "__main__":
    # Also where the package is installed: what was written must not need it.
    sys.modules["batchnorm_tool"] = None  # type: ignore[assignment]
    results = run(pickle.load(sys.stdin.buffer))  # noqa: S301  (from the process above)
    with open(sys.argv[1], "wb") as file:  # noqa: PTH123  (one function is enough)
        pickle.dump(results, file)
