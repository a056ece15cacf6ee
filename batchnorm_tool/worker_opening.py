"""From a plan to a worker: the model is admitted, loaded on its device, and checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchnorm_tool import model_gate, predictor
from batchnorm_tool.errors import ModelError, OutputError, WorkFailed
from batchnorm_tool.pipeline import Worker
from batchnorm_tool.plan import PLAN_PATH, Plan

if TYPE_CHECKING:
    from batchnorm_tool.job import Engine, Model
    from batchnorm_tool.predictor import Predictor
    from batchnorm_tool.predictor.tensorflow_setup import DeviceName
    from batchnorm_tool.storage import Storage


def load_model(model: Model, content: str | None, engine: Engine) -> Predictor:
    """Load a job's model as it was when it was examined for the plan.

    Args:
        model: The job's model.
        content: Hash of its architecture and weights, as they were examined.
        engine: ``devices`` and ``threads``.

    Raises:
        ModelError: The gate refuses it, it does not load, or its content is another now.
        JobError: A GPU is asked for, and there is none.
    """
    with model_gate.admit(model) as admitted:
        if admitted.report.content != content:
            msg = (
                f"{model.path}: the model file changed since the run was planned. "
                "Run it again when nothing writes to it any more."
            )
            raise ModelError(msg)
        return predictor.load_predictor(model, admitted.path, engine)


def open_worker(storage: Storage, device: DeviceName) -> Worker:
    """A worker of the run whose plan lies in an output, its model loaded.

    Args:
        storage: The output.
        device: Where it computes, whatever the job says: the number of a GPU, or the CPU.

    Raises:
        WorkFailed: There is no plan.
        Refused: The model cannot be loaded on this device, or gives other low bits there.
    """
    text = storage.get(PLAN_PATH)
    plan = None if text is None else Plan.from_json(text)
    if plan is None:
        msg = "The plan of this run is gone from its output. Run it again: it resumes."
        raise WorkFailed(msg)
    return make_worker(storage, plan, _load(plan, device))


def make_worker(storage: Storage, plan: Plan, model: Predictor) -> Worker:
    """A worker that computes with a loaded model; its batch size becomes the plan's.

    Raises:
        OutputError: A plan names the device and the threads whose bits its parts have, and the
            model runs on others here.
    """
    planned = (plan.resolved.device, plan.resolved.threads)
    if (model.device, model.threads) != planned:
        msg = (
            f"The run in `{plan.job.output.path}` was planned on the {planned[0]} with "
            f"{planned[1]} thread(s) in an operation, and here the model runs on the "
            f"{model.device} with {model.threads}, which gives other low bits. Go on where "
            "it was begun, begin anew with `--fresh`, or accept both with `--mixed-bits`."
        )
        raise OutputError(msg)
    return Worker(plan, storage, model.with_batch_size(plan.resolved.batch_size))


def _load(plan: Plan, device: DeviceName) -> Predictor:
    if plan.job.model is None:
        return predictor.IdentityPredictor(plan.resolved.inputs)
    engine = plan.job.engine.model_copy(update={"devices": [device]})
    return load_model(plan.job.model, plan.resolved.model_content, engine)
