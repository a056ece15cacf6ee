"""What a refresh adds to a job: the ``store``, ``gate`` and ``publish`` sections."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SerializeAsAny, model_validator

from batchnorm_tool.job import types
from batchnorm_tool.job.messages import Expects
from batchnorm_tool.job.sections import Section, TaggedSection
from batchnorm_tool.job.types import Count, Fraction, LocalOrUri, Name, wrong
from batchnorm_tool.registry import TARGETS

_LIMIT = Expects("a number of 0 or more, or null for no limit")
Limit = Annotated[types.NotNegative | None, _LIMIT]
MIN_ROWS = 200
"""Fewest rows of which moments and distributions are judged."""


class Keep(Section):
    """Which versions stay: both limits hold, and the live version always stays."""

    count: types.CountOrNone = Field(
        default=14, description="Most versions to keep; null: no limit."
    )
    days: types.CountOrNone = Field(default=30, description="Greatest age in days; null: no limit.")


class StoreColumns(Section):
    """What a store calls the columns of its own beside vector and norm."""

    feature_hash: Name = Field(default="feature_hash", description="Hash of the features.")
    passthrough_hash: Name = Field(
        default="passthrough_hash", description="Hash of the passed-through values."
    )
    status: Name = Field(default="status", description="good, or stale with the reason.")
    version: Name = Field(default="version", description="The version that wrote the row.")


class Store(Section):
    """Where embeddings are kept from one refresh to the next: the ``store`` section."""

    path: LocalOrUri = Field(
        description="The Lance dataset; its state is kept next to it, in PATH.state."
    )
    mode: Literal["full", "delta"] = Field(
        default="full", description="full: the input has every row; delta: only changed rows."
    )
    delete_column: Annotated[Name | None, Expects("a column name")] = Field(
        default=None, description="In delta mode: rows with true in this column are deleted."
    )
    columns: StoreColumns = Field(
        default_factory=StoreColumns, description="Names of the store's own columns."
    )
    keep: Keep = Field(default_factory=Keep, description="Which versions to keep.")
    on_new_space: Literal["hold", "publish"] = Field(
        default="hold", description="Another model, norm or features: wait for accept, or publish."
    )
    on_new_bits: Literal["keep", "recompute"] = Field(
        default="keep", description="Another TensorFlow, CPU or batch size: keep, or recompute."
    )
    bad_rows: Literal["keep", "remove"] = Field(
        default="keep", description="keep: a row that turns bad keeps its last good vector."
    )

    @model_validator(mode="after")
    def _check_delete_column(self) -> Self:
        if self.delete_column is not None and self.mode == "full":
            text = "is for `mode: delta`: with a full input, missing rows are deleted."
            raise wrong(text, "delete_column")
        return self


class InputGate(Section):
    """Limits that are checked before the model runs; null for no limit."""

    new: Limit = Field(default=None, description="Share of new rows.")
    changed: Limit = Field(default=0.2, description="Share of changed rows.")
    vanished: Limit = Field(default=0.02, description="Share of vanished rows.")
    null_shift: Limit = Field(default=0.01, description="Change of a column's share of nulls.")
    constant_feature: Literal["fail", "ignore"] = Field(
        default="fail", description="A feature that varied and is now constant."
    )
    mean_shift: Limit = Field(
        default=1.0, description="Shift of a feature's mean, in standard deviations."
    )
    deviation_ratio: Limit = Field(
        default=4.0, description="Factor by which a feature's standard deviation grew or shrank."
    )
    min_rows: Count = Field(default=MIN_ROWS, description="Fewest rows for a check of moments.")


class OutputGate(Section):
    """Limits on what the model made of the rows; null for no limit."""

    # The defaults leave room for what a refresh of ordinary changes does, and stop what a broken
    # model or feature does; `tests/gate/test_output_limits.py` shows which shifts each stops.
    bad: Annotated[Fraction | None, _LIMIT] = Field(default=0.001, description="Share of bad rows.")
    # Below 0.1 is taken for stable, above 0.25 for a shift: Siddiqi, "Credit Risk Scorecards"
    # (2006).
    norm_psi: Limit = Field(default=0.2, description="Population stability index of the norms.")
    norm_quantiles: Limit = Field(default=0.2, description="Relative shift of a quantile of norms.")
    centroid_shift: Limit = Field(
        default=0.3, description="Shift of the centroid, over the spread."
    )
    dimension_shift: Limit = Field(
        default=1.5, description="Shift of a dimension's mean, in standard deviations."
    )
    # So measured, a centroid shift of `s` alone gives `s**2`, and a spread that grows by a factor
    # `f` gives `(f - 1)**2`, whatever the width and the scale: 0.3 is a shift by 0.55 of the
    # spread, or a spread half as large again.
    frechet: Limit = Field(default=0.3, description="Fréchet distance over the total variance.")
    min_rows: Count = Field(
        default=MIN_ROWS, description="Fewest changed rows for a check of their own."
    )


class Gate(Section):
    """What may not be published without a person: the ``gate`` section."""

    action: Literal["hold", "warn"] = Field(
        default="hold", description="hold: a broken limit publishes nothing; warn: it is reported."
    )
    input: InputGate = Field(default_factory=InputGate, description="Limits before the model runs.")
    output: OutputGate = Field(default_factory=OutputGate, description="Limits on vectors.")

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthand(cls, data: Any) -> Any:
        """Take ``gate: warn`` for ``gate: {action: warn}``."""
        return {"action": data} if isinstance(data, str) else data


class Publish(TaggedSection):
    """One target beside the store that gets each published version: an item of ``publish``.

    A target's own keys are those of a class derived from this one, its ``section``; what it writes
    is at ``path``, if it has such a key.
    """

    tag = "to"
    registry = TARGETS

    to: types.TargetName = Field(description="Kind of target.")
    name: Annotated[Name | None, Expects("a name")] = Field(
        default=None, description="Name in reports; default: the kind."
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, data: Any) -> Any:
        """Leave out empty keys, and where no target is named all that belong to one."""
        if not isinstance(data, Mapping):
            return data
        known = Publish.model_fields if cls is Publish else data
        return {key: value for key, value in data.items() if value is not None and key in known}

    @property
    def label(self) -> str:
        """How reports call it."""
        return self.name or self.to


def check_labels(targets: list[Publish]) -> list[Publish]:
    """Refuse two targets of one name: each keeps a note of what it holds under its name."""
    labels = [target.label for target in targets]
    for label in labels:
        if labels.count(label) > 1:
            raise wrong(f"has two targets named `{label}`. Give each its own `name`.")
        if not label.replace("-", "").replace("_", "").isalnum():
            raise wrong(f"names a target `{label}`. Expected only letters, digits, `-` and `_`.")
    return targets


Publishes = Annotated[
    list[SerializeAsAny[Publish]],
    AfterValidator(check_labels),
    Expects("a list of targets, each with `to`"),
]
