"""Whether a model makes the vectors of a run or a store, on the canary rows of its contract."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from batchnorm_tool import models
from batchnorm_tool.chunk import Field
from batchnorm_tool.commands.progress import Progress, SilentProgress, loading_model
from batchnorm_tool.commands.run.score import BackendName, load_admitted
from batchnorm_tool.contract import Contract, ContractFeature, ContractReport
from batchnorm_tool.errors import JobError, ModelError
from batchnorm_tool.features.values import array_dtype, fits
from batchnorm_tool.job import Model
from batchnorm_tool.models import security
from batchnorm_tool.models.batching import Predictor


def check(  # noqa: PLR0913  (each is a flag of the command)
    model: Any,
    against: str | os.PathLike[str] | Contract,
    *,
    layer: str | None = None,
    outputs: Sequence[str] | None = None,
    backend: BackendName = "tensorflow",
    progress: Progress | None = None,
) -> ContractReport:
    """Check that a model makes the vectors of a result, as the canary rows of its contract show.

    Args:
        model: A ``keras.Model``, or the path of one (which passes the safety gate first). Its
            output is taken as it is: a model without the norm in it is ``not_normalized``.
        against: A run, a store, a ``contract.json``, or a `Contract`.
        layer: Take this inner layer's output; default: the result's, of the same model.
        outputs: Names of the outputs to take; default: the result's, of the same model, else the
            only one.
        backend: What computes the model, as ``model.backend`` of a job file does.
        progress: Hears that a model is loaded; default: nothing does.

    Returns:
        Whether it agrees; if not, what is wrong, in words too.

    Raises:
        InputError: There is no contract, or it has no canary rows.
        ModelError: The model was refused, does not load, or takes other inputs.
        Damaged: The contract is damaged.

    Example:
        >>> check("query_tower.keras", "stores/items.lance").cause  # doctest: +SKIP
        'not_normalized'
    """
    contract = against if isinstance(against, Contract) else Contract.load(against)
    if isinstance(model, str | os.PathLike):
        names = [outputs] if isinstance(outputs, str) else [*(outputs or [])] or None
        wanted = Model(path=os.fspath(model), layer=layer, outputs=names, backend=backend)
        loaded = _loaded(wanted, contract, progress or SilentProgress())
    elif layer is not None or backend == "onnxruntime":
        raise JobError(
            "`layer` and `backend` are for the path of a model. Received: a "
            f"{type(model).__name__}. Save it, or leave them out."
        )
    else:
        loaded = models.wrap_model(model, outputs)
    _check_inputs(loaded.inputs, contract.features)
    sized = loaded.with_batch_size(loaded.batch_size or max(1, len(contract.canaries)))

    def encode(given: Any) -> dict[str, np.ndarray]:
        arrays = given if isinstance(given, Mapping) else {loaded.inputs[0].name: given}
        return sized.predict(arrays)

    return contract.check(encode)


def _canary_rows(contract: Contract, inputs: Sequence[Field]) -> dict[str, np.ndarray]:
    """Return the features of the canary rows for a model; a lone input goes by any name."""
    _check_inputs(inputs, contract.features)
    given = contract.canary_features()
    return given if len(given) > 1 else {inputs[0].name: next(iter(given.values()))}


def _loaded(wanted: Model, contract: Contract, progress: Progress) -> Predictor:
    with security.admit(wanted) as admitted:
        made = contract.model
        if made is not None and made.content == admitted.report.content:
            names = [output.name for output in contract.outputs]
            own = {"layer": made.layer, "signature": made.signature, "outputs": names}
            given = {"layer": wanted.layer, "outputs": wanted.outputs}
            chosen = {name: value for name, value in given.items() if value is not None}
            wanted = wanted.model_copy(update=chosen or own)
        by_tensorflow = admitted.report.kind != "onnx" and wanted.backend == "tensorflow"
        with loading_model(progress, tensorflow=by_tensorflow):
            rows = partial(_canary_rows, contract)  # for another process, too
            return load_admitted(wanted, admitted, rows, len(contract.canaries))


def _check_inputs(inputs: Sequence[Field], features: Sequence[ContractFeature]) -> None:
    """Refuse a model that takes something else than the contract has."""
    by_name = {feature.input: feature for feature in features}
    if len(inputs) == len(features) == 1:
        by_name = {inputs[0].name: features[0]}
    same = len(inputs) == len(features) and all(
        field.name in by_name and _takes(field, by_name[field.name]) for field in inputs
    )
    if not same:
        wanted = ", ".join(f"`{f.input}` {f.dtype}{f.shape}" for f in features)
        takes = ", ".join(f"`{f.name}` {f.dtype}{f.shape}" for f in inputs)
        raise ModelError(
            f"The model takes other inputs than the contract's features. Expected: {wanted}. "
            f"Received: {takes}. Give a model of these inputs (where predictions were stored "
            "already, they are the features), or hold your own encoder to it: `Contract.check`."
        )


def _takes(field: Field, feature: ContractFeature) -> bool:
    kinds = {array_dtype(field).kind, feature.array_dtype.kind}
    return fits(feature.shape, field.shape) and (len(kinds) == 1 or kinds <= {"f", "V"})
