from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.chunk import INPUT_REASONS, Chunk, Reason
from batchnorm_tool.inputs.reading import Part, Slice
from batchnorm_tool.job import Job
from batchnorm_tool.pipeline.part_output import PartHashes, PartSummary
from batchnorm_tool.pipeline.scored_chunk import (
    ACTIONS,
    DROP,
    FAIL,
    KEEP,
    NULLIFY,
    QUARANTINE,
    Policies,
    Scored,
)

OUTPUT_REASONS = (Reason.NONFINITE_PREDICTION, Reason.NORM_OVERFLOW)


def policies_of(**policies: Any) -> Policies:
    invalid = {"invalid": policies.pop("invalid")} if "invalid" in policies else {}
    data = {"input": {"path": "/in", **invalid}, "normalize": policies, "output": {"path": "/out"}}
    return Policies.of(Job.from_dict(data))


def test_what_a_job_says_nothing_about() -> None:
    policies = policies_of()
    fates = {reason: ACTIONS[policies.actions[reason]] for reason in Reason}
    assert fates == {
        Reason.GOOD: "keep",
        **dict.fromkeys(INPUT_REASONS, "fail"),
        **dict.fromkeys(OUTPUT_REASONS, "quarantine"),
        Reason.ZERO_VECTOR: "keep",
    }


@pytest.mark.parametrize(
    ("key", "reasons"),
    [("invalid", INPUT_REASONS), ("nonfinite", OUTPUT_REASONS), ("zero", [Reason.ZERO_VECTOR])],
)
@pytest.mark.parametrize("action", ["nullify", "drop", "quarantine", "fail"])
def test_each_key_rules_its_reasons(key: str, reasons: list[Reason], action: str) -> None:
    changed = policies_of(**{key: action}).actions
    assert {ACTIONS[changed[reason]] for reason in reasons} == {action}
    others = [reason for reason in Reason if reason not in reasons]
    assert all(changed[reason] == policies_of().actions[reason] for reason in others)


def test_rows_are_judged_by_their_reason() -> None:
    faults = np.array([0, 1, 5, 7, 0, 6], np.uint8)
    actions = policies_of(invalid="drop", nonfinite="nullify", zero="fail").actions[faults]
    assert actions.tolist() == [KEEP, DROP, NULLIFY, FAIL, KEEP, NULLIFY]


def test_only_a_good_row_and_a_kept_zero_are_not_bad() -> None:
    assert not policies_of().bad[Reason.GOOD]
    assert not policies_of(zero="keep").bad[Reason.ZERO_VECTOR]
    assert policies_of(zero="nullify").bad[Reason.ZERO_VECTOR]
    assert policies_of(nonfinite="keep").bad[Reason.NONFINITE_PREDICTION]
    assert policies_of().bad.sum() == len(Reason) - 2


# ---- counting


@dataclass
class File:
    path: str


def tally_of(policies: Policies) -> PartSummary:
    part = Part(2, 100, (Slice(0, 50, 53), Slice(1, 0, 40)))
    return PartSummary(part, [File("a"), File("b")], policies, keys=1)  # type: ignore[list-item]


def scored_of(first_row: int, faults: list[int]) -> Any:
    carried = pa.table({"id": [f"key {first_row + row}" for row in range(len(faults))]})
    reasons = np.array(faults, np.uint8)
    return Scored(Chunk(first_row, carried, {}, reasons), {}, {}, reasons, {})


def count(tally: PartSummary, first_row: int, faults: list[int]) -> None:
    scored = scored_of(first_row, faults)
    tally.add(scored, tally.policies.actions[scored.faults])


def test_rows_are_counted_by_what_became_of_them() -> None:
    tally = tally_of(policies_of(invalid="drop", nonfinite="quarantine", zero="nullify"))
    count(tally, 100, [0, 1, 1, 3])
    count(tally, 104, [5, 7, 0, 6])
    count(tally, 108, [0, 0])
    assert tally.counts.to_dict() == {
        "in": 10, "out": 5, "bad": 7 - 1, "zero": 1, "nullified": 1, "dropped": 3,
        "quarantined": 2, "failed": 0,
    }  # fmt: skip
    assert tally.reasons == {
        "null_feature": 2, "nonfinite_feature": 1, "nonfinite_prediction": 1, "norm_overflow": 1,
        "zero_vector": 1,
    }  # fmt: skip


def test_kept_zeros_are_counted_but_not_bad() -> None:
    tally = tally_of(policies_of())
    count(tally, 100, [7, 7, 0])
    assert (tally.counts.zero, tally.counts.bad, tally.counts.rows_out) == (2, 0, 3)
    assert tally.first_bad_rows == []


def test_bad_rows_are_named_by_file_row_and_key() -> None:
    tally = tally_of(policies_of(invalid="drop"))
    count(tally, 100, [0, 0, 1, 2])
    rows = [(row.row, row.file, row.file_row, row.key, row.reason) for row in tally.first_bad_rows]
    assert rows == [
        (102, "a", 52, "key 102", "null_feature"),
        (103, "b", 0, "key 103", "ragged_feature"),
    ]
    assert str(tally.first_bad_rows[1]) == "b, row 0, key key 103: ragged_feature"


def test_the_first_ten_bad_rows_are_enough() -> None:
    tally = tally_of(policies_of(invalid="drop"))
    for chunk in range(3):
        count(tally, 100 + 6 * chunk, [1, 7, 1, 1, 0, 1])
    assert [row.row for row in tally.first_bad_rows] == [
        100, 102, 103, 105, 106, 108, 109, 111, 112, 114,
    ]  # fmt: skip
    assert tally.counts.bad == 12


def test_a_part_that_fails_names_the_rows_that_failed() -> None:
    """Rows that merely went to quarantine before them are not what stopped the run."""
    tally = tally_of(policies_of(invalid="fail", nonfinite="quarantine"))
    count(tally, 100, [5] * 12)
    count(tally, 112, [5, 1])
    record = tally.record("b" * 64, ())
    assert [row.row for row in record.first_bad_rows] == [113]
    assert record.counts.failed == 1
    assert record.counts.quarantined == 13


def test_quarantine_and_failure_take_rows_out() -> None:
    tally = tally_of(policies_of(invalid="fail", nonfinite="quarantine", zero="drop"))
    count(tally, 100, [1, 5, 7, 0])
    assert tally.counts.rows_out == 1
    assert tally.policies.actions[np.array([5], np.uint8)].tolist() == [QUARANTINE]


def test_hashes_of_a_part_keep_its_quarantined_rows_apart() -> None:
    """What only a prediction finds is no part of them: who compares hashes does not predict."""
    features = {"x": np.arange(8.0).reshape(4, 2)}
    table = pa.table({"id": range(4)})

    def hashes(failed: Reason, *quarantined: int) -> dict[str, str]:
        found, away = PartHashes(), np.zeros(4, np.uint8)
        away[list(quarantined)] = Reason.MODEL_FAILURE
        faults = np.array([0, 0, failed, 0], np.uint8)
        found.add(Chunk(0, table, features, faults), away)
        return found.to_dict()

    assert hashes(Reason.MODEL_FAILURE) == hashes(Reason.GOOD) != hashes(Reason.NULL_FEATURE)
    assert set(hashes(Reason.GOOD)) == {"good"}
    assert set(hashes(Reason.MODEL_FAILURE, 2)) == {"good", "model_failure"}
    assert hashes(Reason.GOOD, 1, 2) != hashes(Reason.GOOD, 2)
