"""The last word on a run before it is published: all rows accounted for, no policy broken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchnorm_tool.chunk import INPUT_REASONS
from batchnorm_tool.errors import BadRows, Damaged, Lines
from batchnorm_tool.manifest import BadRow, PartRecord, Totals, read_refusals, total
from batchnorm_tool.policies import ACTIONS

if TYPE_CHECKING:
    from batchnorm_tool.plan import Plan
    from batchnorm_tool.storage import Storage

_NAMED_ROWS = 5
_OF_FEATURES = {reason.label for reason in INPUT_REASONS}
_OTHER_ACTIONS = [action for action in ACTIONS if action != "fail"]


def settle(storage: Storage, plan: Plan) -> Totals:
    """Add up the records of all parts, and let the policies have their say on the whole.

    Args:
        storage: The run's output, every part of it worked on.
        plan: The run's plan.

    Raises:
        BadRows: A row met the policy ``fail``, or more rows are bad than the job allows.
        WorkFailed: A record is missing or damaged.
        Damaged: The records do not count all rows.
    """
    refused = list(read_refusals(storage))
    if refused:
        raise BadRows(_broken_policy(refused, plan))
    totals = total(storage, range(plan.part_count))
    if totals.counts.rows_in != plan.rows:
        msg = (
            f"The records of finished parts count {totals.counts.rows_in:,} rows of {plan.rows:,}: "
            "they are not as this version writes them. Run it again with `--fresh`."
        )
        raise Damaged(msg)
    most = plan.job.normalize.max_bad_fraction
    if totals.counts.bad > most * max(1, plan.rows):
        raise BadRows(_too_many(totals, plan))
    return totals


def _broken_policy(refused: list[PartRecord], plan: Plan) -> str:
    rows = [row for record in refused for row in record.first_bad_rows]
    failed = sum(record.counts.failed for record in refused)
    policies = [name for name, value in plan.identity.policies.items() if value == "fail"]
    choices = "; or ".join(f"set `{name}` to {_alternatives(name)}" for name in policies)
    return Lines(
        f"{failed:,} rows of {plan.rows:,} broke a row policy, and nothing was published. "
        "The first are:",
        *_named(rows),
        f"Mend {_input(rows, plan)}, or {choices}. Parts without bad rows are kept for the next "
        "run.",
    )


def _alternatives(policy: str) -> str:
    """What a policy can be instead of ``fail``: a bad input has no prediction to keep."""
    actions = [a for a in _OTHER_ACTIONS if not (a == "keep" and policy == "input.invalid")]
    return f"{', '.join(actions[:-1])} or {actions[-1]}"


def _too_many(totals: Totals, plan: Plan) -> str:
    most = plan.job.normalize.max_bad_fraction
    counted = ", ".join(f"{count:,} {label}" for label, count in sorted(totals.reasons.items()))
    return Lines(
        f"{totals.counts.bad:,} rows of {plan.rows:,} are bad ({counted}), more than "
        f"`normalize.max_bad_fraction: {most:g}` allows, and nothing was published. "
        "The first are:",
        *_named(totals.first_bad_rows),
        f"Mend {_input(totals.first_bad_rows, plan)}, or raise the limit: the next run keeps all "
        "parts and only publishes.",
    )


def _input(rows: list[BadRow], plan: Plan) -> str:
    """Say what is to be mended: of rows with bad features, the columns that hold these."""
    names = [*dict.fromkeys(name for group in plan.resolved.features.values() for name in group)]
    if not names or not {row.reason for row in rows} & _OF_FEATURES:
        return "the input"
    more = f" and {len(names) - _NAMED_ROWS} more" if len(names) > _NAMED_ROWS else ""
    shown = ", ".join(f"`{name}`" for name in names[:_NAMED_ROWS])
    return f"the input (its features: {shown}{more})"


def _named(rows: list[BadRow]) -> list[str]:
    return [f"  {row}" for row in rows[:_NAMED_ROWS]]
