"""What a refresh adds to a job: the ``store``, ``gate`` and ``publish`` sections."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SerializeAsAny, model_validator

from batchnorm_tool.job import types
from batchnorm_tool.job.messages import Expects
from batchnorm_tool.job.sections import Section, TaggedSection
from batchnorm_tool.job.types import Count, Fraction, LocalOrUri, Name, option, wrong
from batchnorm_tool.registry import TARGETS

_LIMIT = Expects("a number of 0 or more, or null for no limit")
Limit = Annotated[types.NotNegative | None, _LIMIT]
MIN_ROWS = 200
"""Fewest rows of which moments and distributions are judged."""


class Keep(Section):
    """Which versions stay: both limits hold, and the live version always stays."""

    count: types.CountOrNone = option(14, "Most versions to keep; null: no limit.")
    days: types.CountOrNone = option(30, "Greatest age in days; null: no limit.")


class StoreColumns(Section):
    """What a store calls the columns of its own beside vector and norm."""

    feature_hash: Name = option("feature_hash", "Hash of the features.")
    passthrough_hash: Name = option("passthrough_hash", "Hash of the passed-through values.")
    status: Name = option("status", "good, or stale with the reason.")
    version: Name = option("version", "The version that wrote the row.")


class Store(Section):
    """Where embeddings are kept from one refresh to the next: the ``store`` section."""

    path: LocalOrUri = Field(
        description="The Lance dataset; its state is kept next to it, in PATH.state."
    )
    mode: Literal["full", "delta"] = option(
        "full", "full: the input has every row; delta: only changed rows."
    )
    delete_column: Annotated[Name | None, Expects("a column name")] = option(
        None, "In delta mode: rows with true in this column are deleted."
    )
    columns: StoreColumns = option(StoreColumns, "Names of the store's own columns.")
    keep: Keep = option(Keep, "Which versions to keep.")
    on_new_space: Literal["hold", "publish"] = option(
        "hold", "Another model, norm or features: wait for accept, or publish."
    )
    on_new_bits: Literal["keep", "recompute"] = option(
        "keep", "Another TensorFlow, CPU or batch size: keep, or recompute."
    )
    bad_rows: Literal["keep", "remove"] = option(
        "keep", "keep: a row that turns bad keeps its last good vector."
    )

    @model_validator(mode="after")
    def _check_delete_column(self) -> Self:
        if self.delete_column is not None and self.mode == "full":
            text = "is for `mode: delta`: with a full input, missing rows are deleted."
            raise wrong(text, "delete_column")
        return self


class InputGate(Section):
    """Limits that are checked before the model runs; null for no limit."""

    new: Limit = option(None, "Share of new rows.")
    changed: Limit = option(0.2, "Share of changed rows.")
    vanished: Limit = option(0.02, "Share of vanished rows.")
    null_shift: Limit = option(0.01, "Change of a column's share of nulls.")
    constant_feature: Literal["fail", "ignore"] = option(
        "fail", "A feature that varied and is now constant."
    )
    mean_shift: Limit = option(1.0, "Shift of a feature's mean, in standard deviations.")
    deviation_ratio: Limit = option(
        4.0, "Factor by which a feature's standard deviation grew or shrank."
    )
    min_rows: Count = option(MIN_ROWS, "Fewest rows for a check of moments.")


class OutputGate(Section):
    """Limits on what the model made of the rows; null for no limit."""

    # The defaults leave room for what a refresh of ordinary changes does, and stop what a broken
    # model or feature does; `tests/gate/test_output_limits.py` shows which shifts each stops.
    bad: Annotated[Fraction | None, _LIMIT] = option(0.001, "Share of bad rows.")
    # Below 0.1 is taken for stable, above 0.25 for a shift: Siddiqi, "Credit Risk Scorecards"
    # (2006).
    norm_psi: Limit = option(0.2, "Population stability index of the norms.")
    norm_quantiles: Limit = option(0.2, "Relative shift of a quantile of norms.")
    centroid_shift: Limit = option(0.3, "Shift of the centroid, over the spread.")
    dimension_shift: Limit = option(1.5, "Shift of a dimension's mean, in standard deviations.")
    # So measured, a centroid shift of `s` alone gives `s**2`, and a spread that grows by a factor
    # `f` gives `(f - 1)**2`, whatever the width and the scale: 0.3 is a shift by 0.55 of the
    # spread, or a spread half as large again.
    frechet: Limit = option(0.3, "Fréchet distance over the total variance.")
    min_rows: Count = option(MIN_ROWS, "Fewest changed rows for a check of their own.")


class Gate(Section):
    """What may not be published without a person: the ``gate`` section."""

    action: Literal["hold", "warn"] = option(
        "hold", "hold: a broken limit publishes nothing; warn: it is reported."
    )
    input: InputGate = option(InputGate, "Limits before the model runs.")
    output: OutputGate = option(OutputGate, "Limits on vectors.")

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
    name: Annotated[Name | None, Expects("a name")] = option(
        None, "Name in reports; default: the kind."
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
