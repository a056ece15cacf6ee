"""What no setting turns off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.gate.findings import Finding
from batchnorm_tool.gate.output_limits import AuditFacts, RowAudit, audit
from batchnorm_tool.gate.rows import RefreshRows
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.norms.normalization import Normalization

ROWS = RefreshRows(rows_in=100, live=97, quarantined=3, new=15)
FULL = AuditFacts("full", ROWS, before=90, gone=5, distinct_keys=100)
DELTA = AuditFacts("delta", replace(ROWS, rows_in=21), before=90, gone=5, distinct_keys=100)
L2 = Norm.parse("l2")


def looked_at(
    vectors: np.ndarray, norms: np.ndarray, norm: Norm = L2, batch: int = 4
) -> dict[str, Finding]:
    rows = RowAudit(Normalization(norm), 1e-6)
    keys = pa.table({"id": np.arange(len(norms))})
    for first in range(0, len(norms), batch):
        here = slice(first, first + batch)
        rows.add(vectors[here], norms[here], keys.slice(first, batch))
    return {finding.limit: finding for finding in audit(FULL, rows)}


def counts(facts: AuditFacts) -> Finding:
    return audit(facts, RowAudit(Normalization(L2), 1e-6))[0]


def test_a_sound_night_passes() -> None:
    unit = np.eye(10)
    findings = looked_at(unit, np.ones(10))
    assert list(findings) == ["audit.counts", "audit.keys", "audit.finite", "audit.lengths"]
    assert all(f.passed and f.measured == 0 and f.scope == "audit" for f in findings.values())


@pytest.mark.parametrize("facts", [FULL, DELTA], ids=["full", "delta"])
def test_rows_add_up(facts: AuditFacts) -> None:
    assert counts(facts).passed


@pytest.mark.parametrize(
    ("facts", "wrong"),
    [
        (replace(FULL, rows=replace(ROWS, live=95)), 2),
        (replace(FULL, rows=replace(ROWS, quarantined=4)), 1),
        (replace(FULL, rows=replace(ROWS, rows_in=101)), 1),
        (replace(DELTA, rows=replace(DELTA.rows, new=16)), 1),
        (replace(DELTA, gone=7), 2),
        (replace(DELTA, before=80), 10),
    ],
    ids=["live", "quarantined", "in", "new", "gone", "before"],
)
def test_rows_that_do_not_add_up_are_found(facts: AuditFacts, wrong: int) -> None:
    finding = counts(facts)
    assert not finding.passed
    assert finding.measured == wrong


def test_the_sum_is_said_in_words() -> None:
    assert counts(FULL).what == "100 rows in = 97 live + 3 quarantined."
    assert counts(replace(DELTA, gone=7)).what == (
        "90 before + 15 new - 7 gone is not 97 live + 3 quarantined."
    )


def test_a_key_that_two_rows_have_is_found() -> None:
    finding = audit(replace(FULL, distinct_keys=99), RowAudit(Normalization(L2), 1e-6))[1]
    assert not finding.passed
    assert finding.what == "99 distinct keys in 100 rows."


def test_vectors_of_another_length_are_found_with_their_keys() -> None:
    unit = np.eye(10)
    unit[[2, 7]] *= [[1.00001], [0.5]]
    finding = looked_at(unit, np.ones(10))["audit.lengths"]
    assert finding.measured == 2
    assert [row.key["id"] for row in finding.rows] == [2, 7]
    assert [row.value for row in finding.rows] == pytest.approx([1.00001, 0.5])
    assert "2 of 10 staged vectors do not have length 1 under l2 (within 1e-06)" in finding.what


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("where", ["vector", "norm"])
def test_what_is_not_finite_is_found_once(bad: float, where: str) -> None:
    unit, norms = np.eye(10), np.ones(10)
    if where == "vector":
        unit[3, 3] = bad
    else:
        norms[3] = bad
    findings = looked_at(unit, norms)
    assert findings["audit.finite"].measured == 1
    assert findings["audit.finite"].rows[0].key == {"id": 3}
    assert findings["audit.lengths"].passed


def test_zeros_belong_beside_a_norm_of_zero_and_nowhere_else() -> None:
    unit, norms = np.eye(4), np.array([1.0, 0.0, 1.0, 0.0])
    unit[[1, 2]] = 0
    finding = looked_at(unit, norms)["audit.lengths"]
    assert [row.key["id"] for row in finding.rows] == [2, 3]


def test_a_negative_norm_is_found() -> None:
    assert looked_at(np.eye(3), np.array([1.0, -2.0, 1.0]))["audit.lengths"].measured == 1


def test_five_rows_are_named_of_many_batches() -> None:
    finding = looked_at(np.eye(20) * 2, np.ones(20), batch=3)["audit.lengths"]
    assert finding.measured == 20
    assert [row.key["id"] for row in finding.rows] == [0, 1, 2, 3, 4]


def test_the_norm_that_was_asked_for_is_measured() -> None:
    vectors = np.full((3, 4), 0.25)
    assert looked_at(vectors, np.ones(3), Norm.parse("l1"))["audit.lengths"].passed
    assert not looked_at(vectors, np.ones(3), Norm.parse("max"))["audit.lengths"].passed


def test_under_none_a_norm_is_one_and_vectors_have_any_length() -> None:
    findings = looked_at(np.eye(3) * 7, np.array([1.0, 1.0, 0.0]), Norm.parse("none"))
    assert [row.key["id"] for row in findings["audit.lengths"].rows] == [2]
