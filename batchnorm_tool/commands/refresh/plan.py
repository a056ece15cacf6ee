"""A refresh before it begins: input and model looked at, every open choice made, what is asked."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field, GetPydanticSchema
from pydantic_core import core_schema

from batchnorm_tool.chunk import INPUT_REASONS, Reason
from batchnorm_tool.commands.progress import Progress, SilentProgress
from batchnorm_tool.commands.refresh.changes.source import RefreshSource
from batchnorm_tool.commands.run.contracts import contract_of
from batchnorm_tool.commands.run.fit import is_fitted
from batchnorm_tool.commands.run.prepare import Preparation
from batchnorm_tool.errors import InputError, JobError
from batchnorm_tool.features import FeatureReader
from batchnorm_tool.features.matching import names_in
from batchnorm_tool.inputs.row_hash import HASH_VERSION
from batchnorm_tool.job import Job, Store
from batchnorm_tool.job.types import is_uri
from batchnorm_tool.models.batching import IdentityPredictor, Predictor
from batchnorm_tool.pipeline import output_schema
from batchnorm_tool.pipeline.differences import differences
from batchnorm_tool.pipeline.plan import (
    Identity,
    ResolvedOptions,
    chosen_model,
    identify,
    with_planned_backend,
)
from batchnorm_tool.pipeline.scored_chunk import POLICIES, policy_for
from batchnorm_tool.pipeline.worker import load_model
from batchnorm_tool.publish import check_layout, find_unfit, prepare
from batchnorm_tool.storage import checked_json
from batchnorm_tool.storage.checked_json import Record, stored_as
from batchnorm_tool.store.columns import store_layout
from batchnorm_tool.store.index import JudgedAgain
from batchnorm_tool.store.state import QUARANTINED, STALE, StorePointer, StoreSchema

# A store holds one finite vector for each row, so that some policies for a bad row make no sense
# there. What a store needs of these keys: no row without a vector.
ALLOWED = {
    ("input", "invalid"): ("fail", "quarantine"),
    ("normalize", "nonfinite"): ("quarantine", "fail"),
    ("normalize", "zero"): ("keep", "quarantine", "fail"),
    ("output", "format"): ("parquet",),
}
# Of the input, what decides how features are read, and not which rows there are.
_READING = ("features", "fill", "decode", "transform", "dtype")
# A store begins small, and its batch size stays.
_LEAST_ROWS = 4096
_NORMS = ("norm", "p", "outputs", "axis")
# What another library or device may not find of a row.
_OF_PREDICTIONS = {*POLICIES} - INPUT_REASONS | {Reason.MODEL_FAILURE}


@dataclass(frozen=True)
class RefreshPlan(Record):
    """What a refresh is asked to do, and with what.

    Attributes:
        resolved: Every open choice, made; kept from one refresh to the next.
        options_fingerprint: Hash of what the choices were made from.
        new_space: Whether the live version's vectors mean something else.
        recompute: Whether every row meets the model, changed or not.
        retried: Why rows that are bad by their prediction are predicted again; empty: they are not.
        preparation: Input and model, looked at; ``None`` where what is needed is staged already.
    """

    job: Job
    resolved: ResolvedOptions
    identity: Identity
    layout: StoreSchema
    options_fingerprint: Annotated[str, stored_as("request")]
    new_space: bool = False
    recompute: bool = False
    retried: str = ""
    notes: tuple[str, ...] = ()
    preparation: Annotated[
        Preparation | None,
        GetPydanticSchema(lambda _, __: core_schema.any_schema()),
        Field(exclude=True),
    ] = field(default=None, repr=False)

    @property
    def store(self) -> Store:
        """The job's store, which there is."""
        return store_of(self.job)

    @property
    def source(self) -> RefreshSource:
        """The input as the difference takes it."""
        # A plan without input is one of a refresh that is staged.
        assert self.preparation is not None  # noqa: S101
        job, store, resolved, layout = self.job, self.store, self.resolved, self.layout
        return RefreshSource(
            table=self.preparation.table,
            reader=FeatureReader(
                resolved.features, resolved.inputs, job.input, job.model is not None
            ),
            feature_columns=names_in(resolved.features),
            inputs=resolved.inputs,
            keys=layout.keys,
            carried=layout.carried,
            mode=store.mode,
            delete_column=store.delete_column,
            invalid=job.input.invalid,
            find_unfit=functools.partial(find_unfit, job.publish, layout.keys),
        )

    @property
    def judged_again(self) -> JudgedAgain:
        """Which rows another policy, or another library, may make something else of."""
        # By what the live version remembers, not by its policies: a delta need not have all rows,
        # and those that it lacks are judged when they come.
        statuses, zeros = {}, None
        if self.store.bad_rows == "remove":
            why = "`store.bad_rows` was keep and is remove"
            statuses = {STALE + reason.label: why for reason in POLICIES}
        for reason, names in POLICIES.items():
            policy = policy_for(self.job, reason)
            why = self.retried if reason in _OF_PREDICTIONS else ""
            if policy != "quarantine":
                why = f"`{'.'.join(names)}` was quarantine and is {policy}"
            if why:
                statuses |= {start + reason.label: why for start in (STALE, QUARANTINED)}
        if self.job.normalize.zero != "keep":
            zeros = f"`normalize.zero` was keep and is {self.job.normalize.zero}"
        return JudgedAgain(statuses, zeros)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know of model and features, found on the first rows."""
        return () if self.preparation is None else self.preparation.warnings(self.resolved)

    def open_model(self) -> Predictor:
        """Return the model, loaded once."""
        if self.preparation is not None:
            return self.preparation.predictor()
        if self.job.model is None:
            return IdentityPredictor(self.resolved.inputs)
        model = with_planned_backend(self.job.model, self.resolved)
        return load_model(model, self.resolved.model_content, self.job.engine)

    @property
    def content_scope(self) -> str | None:
        """Hash of how the input is read and kept; ``None`` where it need not have every row."""
        store = self.store
        if store.mode != "full" or store.delete_column is not None:
            return None
        plain = replace(self, recompute=False, retried="")
        targets = [target.model_dump() for target in self.job.publish]
        return checked_json.sha256([plain.staging_fingerprint(StorePointer()), targets])

    def staging_fingerprint(self, pointer: StorePointer) -> str:
        """Hash all that the staged result depends on, limits of the gate excepted."""
        store = self.store
        return checked_json.sha256(
            {
                "identity": self.identity.to_dict(),
                "live": pointer.live,
                "hash": HASH_VERSION,
                "recompute": self.recompute,
                "retried": self.retried,
                "store": [store.mode, store.delete_column, store.bad_rows],
                "layout": self.layout.to_dict(),
            }
        )


def make_plan(  # noqa: PLR0913  (two of them are flags of the command)
    job: Job,
    pointer: StorePointer,
    staged: RefreshPlan | None = None,
    *,
    retry: bool = False,
    fits: bool = True,
    progress: Progress | None = None,
) -> RefreshPlan:
    """Look at input and model; TensorFlow is imported only where a choice is still to be made.

    Unless it ``fits``, what would be fitted over all rows is left open.
    """
    _check_job(job)
    preparation = Preparation(job, least_rows=_LEAST_ROWS, progress=progress or SilentProgress())
    resolved, request, notes = _choices(preparation, pointer, staged, fits=fits)
    identity = identify(preparation.job, resolved, preparation.table.files, None)
    rows = store_layout(preparation.job, store_of(job), resolved, pointer.layout)
    new_space, recompute, more = _compared(job, identity, rows, pointer)
    notes = (*notes, *more)
    if recompute and store_of(job).mode == "delta":
        raise InputError(
            "`store.mode: delta` cannot be used for this "
            f"refresh: {' '.join(notes) or 'all rows must be hashed again.'} Expected an input "
            "with every row. Received: an input with changes only. Provide all rows once, with "
            "`--set store.mode=full --set store.delete_column=null`."
        )
    return RefreshPlan(
        job=preparation.job,
        resolved=resolved,
        identity=identity,
        layout=rows,
        options_fingerprint=request,
        new_space=new_space,
        recompute=recompute,
        retried=_why_retried(identity, pointer.identity, asked=retry),
        notes=notes,
        preparation=preparation,
    )


def prepare_targets(plan: RefreshPlan) -> list[str]:
    """Let targets refuse what they cannot take; see `publish.prepare`."""
    job = plan.job
    check_layout(job.publish, plan.layout)
    return prepare(job.publish, contract_of(job, plan.resolved, plan.identity), job.engine)


def _other_columns(before: StoreSchema, rows: StoreSchema) -> Iterator[str]:
    """Say which passed-through columns come, go or change their type."""
    old, new = (
        {name: each.schema.field(name).type for name in each.passthrough} for each in (before, rows)
    )
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            yield f"The passed-through column `{name}` is removed from the store."
        elif name not in old:
            yield f"The passed-through column `{name}` is added to the store."
        elif old[name] != new[name]:
            yield f"The passed-through column `{name}` was {old[name]} and is {new[name]} now."


def store_of(job: Job) -> Store:
    """Return the job's store."""
    if job.store is None:
        raise JobError(
            "`store` is missing: a refresh needs a store for its vectors. Add `store: {path: "
            "../stores/items.lance}` to the job, or use `batchnorm-tool run`."
        )
    if is_uri(job.store.path):
        raise JobError(
            "`store.path` must be a local directory in this version. "
            f"Received: `{job.store.path}`. Keep the store on a local disk, and copy it from there."
        )
    return job.store


def _check_job(job: Job) -> None:
    store_of(job)
    if job.input.key is None and job.input.keys is None:
        raise JobError(
            "`input.key` is missing: a refresh identifies rows by their key. Expected a column "
            "name, or a list of them. Set `input.key`."
        )
    if job.model is not None and job.model.batch_dependent == "accept":
        raise JobError(
            "`model.batch_dependent: accept` cannot be used with a store: only changed rows are "
            "predicted, in different batches each time. Score all rows with `batchnorm-tool run`."
        )
    for (section, key), allowed in ALLOWED.items():
        value = getattr(getattr(job, section), key)
        if value not in allowed:
            choices = ", ".join(f"`{choice}`" for choice in allowed)
            raise JobError(
                f"`{section}.{key}` cannot be `{value}` in a store, where every row has a finite "
                f"vector. Expected {choices}. `store.bad_rows` decides what happens to a bad row "
                "that had a good vector."
            )


def _choices(
    preparation: Preparation, pointer: StorePointer, staged: RefreshPlan | None, *, fits: bool
) -> tuple[ResolvedOptions, str, tuple[str, ...]]:
    """Return the choices of the live or the staged version where they still fit; or new ones."""
    earlier: list[tuple[ResolvedOptions, str | None, tuple[str, ...]]] = []
    if pointer.resolved is not None:
        earlier.append((pointer.resolved, pointer.options_fingerprint, ()))
    if staged is not None:
        earlier.append((staged.resolved, staged.options_fingerprint, staged.notes))
    # Earlier choices stay while they can: another batch size would change low-order bits.
    for kept, request, notes in earlier:
        if _options_fingerprint(preparation, kept) != request:
            continue
        choices = preparation.keep_backend(kept)
        if choices is not None:
            carried = output_schema.carried_schema(preparation.job.input, preparation.table.schema)
            noted = {_place_matters(kept.batch_size)} & {*notes}
            return replace(choices, carried=carried), request, tuple(noted)
    resolved = preparation.plan(fits=False).resolved
    # A refresh predicts other rows than the one before: each has another place in its batch.
    batch_size = preparation.independent_batch_size(resolved)
    notes = () if batch_size is not None else (_place_matters(resolved.batch_size),)
    resolved = replace(resolved, batch_size=batch_size or resolved.batch_size)
    known = _with_fitted_values(preparation, resolved, pointer)
    if known is None and fits:
        known = preparation.fitted(resolved)
    elif known is None and is_fitted(preparation.job.normalize):
        notes = (*notes, "The refresh first reads all rows, to fit what `normalize` asks for.")
    return known or resolved, _options_fingerprint(preparation, resolved), notes


def _with_fitted_values(
    preparation: Preparation, resolved: ResolvedOptions, pointer: StorePointer
) -> ResolvedOptions | None:
    """Return choices with what was fitted for the live version; ``None`` in another space."""
    live, before = pointer.identity, pointer.resolved and pointer.resolved.fitted
    if live is None or not before:
        return None
    # A direction that the job names a file of is that of the file, as it is now.
    fitted = {
        name: replace(each, mean=resolved.fitted_for(name).mean or each.mean)
        for name, each in before.items()
    }
    kept = replace(resolved, fitted=fitted)
    files = preparation.table.files
    return kept if identify(preparation.job, kept, files, None).space == live.space else None


def _place_matters(batch_size: int) -> str:
    return (
        f"With a batch size of {batch_size:,} the low-order bits of a prediction depend on the "
        "row's position in its batch: a row that is predicted again may differ in the last "
        "digits. A `model.batch_size` that is a multiple of 48 usually avoids this."
    )


def _options_fingerprint(preparation: Preparation, resolved: ResolvedOptions) -> str:
    """Return the hash of what the choices are made from, whichever rows there are."""
    job, schema = preparation.job.to_dict(), preparation.table.schema
    chosen = chosen_model(preparation.job) or {}
    model = {key: value for key, value in chosen.items() if key != "path"}
    return checked_json.sha256(
        {
            "input": {name: job["input"][name] for name in _READING},
            "columns": {name: _kind(schema, name) for name in names_in(resolved.features)},
            "model": {**model, "content": resolved.model_content and preparation.content},
            "transform": preparation.transform_sha256,
            "normalize": {name: job["normalize"][name] for name in _NORMS},
            **preparation.further_options,
            "output": [job["output"]["dtype"], job["output"]["columns"]],
            "engine": [preparation.job.engine.device, preparation.job.engine.threads],
        }
    )


def _kind(schema: pa.Schema, name: str) -> str | None:
    field = schema.field(name) if name in schema.names else None
    return field and f"{field.type} {sorted((field.metadata or {}).items())}"


def _compared(
    job: Job, identity: Identity, rows: StoreSchema, pointer: StorePointer
) -> tuple[bool, bool, tuple[str, ...]]:
    """Tell whether the space is new, whether all rows are recomputed, and what to say of it."""
    live, before, notes = pointer.identity, pointer.layout, []
    is_new = recompute = False
    if live is not None and pointer.live is not None:
        is_new = recompute = live.space_id != identity.space_id
        if is_new:
            found = _of_group(live, identity, "space") or "the way features are read"
            notes.append(f"A new vector space ({found}): every row is recomputed.")
        elif live.bits != identity.bits:
            recompute = store_of(job).on_new_bits == "recompute"
            rows_are = "every row is" if recompute else "only changed rows are"
            notes.append(
                "Low-order bits may differ from the live version's "
                f"({_of_group(live, identity, 'bits')}): {rows_are} recomputed."
            )
    if before is not None and before.dtype != rows.dtype:  # rounded twice, they would not be equal
        recompute = True
        notes.append(
            f"The vector type changes from {before.dtype} to {rows.dtype}: every row is recomputed."
        )
    return is_new, recompute, (*notes, *_other_columns(before or rows, rows))


def _why_retried(current: Identity, live: Identity | None, *, asked: bool) -> str:
    if asked:
        return "asked for by `--retry-quarantined`"
    names = ("device", "versions", "backend")
    if live is None or all(live.bits.get(name) == current.bits.get(name) for name in names):
        return ""
    return "the device or a library is another"


def _of_group(live: Identity, current: Identity, group: str) -> str:
    """Return what differs in one group of two identities, in words."""
    others: dict[str, Any] = {group: getattr(current, group)}
    return ", ".join(differences(live, replace(live, **others)))
