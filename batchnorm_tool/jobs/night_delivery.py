"""What follows a publication: the targets beside the store, and the end of old versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchnorm_tool.errors import Lines, TargetFailed
from batchnorm_tool.job import Publish
from batchnorm_tool.job.store import Keep
from batchnorm_tool.jobs.night import PUBLISHED, Night
from batchnorm_tool.jobs.night_publication import (
    discard_night,
    kept_versions,
    remove_old_versions,
)
from batchnorm_tool.publish.delivery import check_targets, deliver, lagging

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchnorm_tool.store.state import StoreFacts, StoreState


def deliver_live(
    state: StoreState, facts: StoreFacts, targets: Sequence[Publish]
) -> tuple[dict[str, Any], ...]:
    """Bring every target to the live version; one that fails does not keep others from it.

    Returns:
        What became of each, as plain data.
    """
    live = facts.live
    if live is None or not lagging(targets, state.storage, live):
        return ()
    from batchnorm_tool.store.publication import Publication

    assert facts.layout is not None  # noqa: S101  (there is a live version)
    records = {version: state.record(version) or {} for version in facts.versions}
    publication = Publication(state.path, facts.layout, facts.versions, live, records)
    return tuple(outcome.to_dict() for outcome in deliver(publication, targets, state.storage))


def deliver_again(state: StoreState, facts: StoreFacts) -> Night:
    """End what a kill broke off after the live version was published, old versions included.

    Raises:
        TargetFailed: A target is behind.
    """
    record = state.record(facts.live or 0) or {"publish": [], "keep": None}
    targets = published_to(record)
    check_targets(targets)
    discard_night(state, facts)
    outcomes = deliver_live(state, facts, targets)
    night = Night(state.path, PUBLISHED, facts.live, record, outcomes)
    return finish_night(night, state, record["keep"] and Keep.model_validate(record["keep"]))


def published_to(record: Mapping[str, Any]) -> list[Publish]:
    """The targets that the night of a record had."""
    return [Publish.model_validate(one) for one in record["publish"]]


def finish_night(night: Night, state: StoreState | None = None, keep: Keep | None = None) -> Night:
    """Remove old versions, and say of targets that failed.

    Args:
        night: What was published, or not.
        state: The store, where versions are to be removed.
        keep: Which versions stay.

    Raises:
        TargetFailed: A target is behind; all else is done.
    """
    if state is not None and keep is not None:
        facts = state.facts()
        if night.state == PUBLISHED or kept_versions(state, facts, keep) != sorted(facts.versions):
            remove_old_versions(state, facts, keep)
    failed = [target for target in night.targets if target["error"]]
    if failed:
        # Where one may come right by itself, a scheduler may try again.
        code = 1 if any(target["passing"] for target in failed) else 2
        raise TargetFailed(Lines(*(target["error"] for target in failed)), night.to_dict(), code)
    return night
