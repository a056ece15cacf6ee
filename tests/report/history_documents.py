"""Histories of a store, made up in the format of its night records."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

START = datetime(2026, 3, 1, 2, 0, 0, tzinfo=UTC)
LIMITS = {
    ("gate.input.changed", "input"): (0.2, 0.012),
    ("gate.input.vanished", "input"): (0.02, 0.004),
    ("gate.input.mean_shift", "input"): (1.0, 0.05),
    ("gate.output.bad", "whole"): (0.001, 0.0001),
    ("gate.output.norm_psi", "changed"): (0.2, 0.06),
    ("gate.output.norm_psi", "whole"): (0.2, 0.01),
    ("gate.output.centroid_shift", "changed"): (0.3, 0.08),
    ("gate.output.frechet", "changed"): (0.3, 0.09),
}


def finding(limit: str, scope: str, measured: float | None, allowed: float) -> dict[str, Any]:
    passed = measured is None or measured <= allowed
    rows = [] if passed else [{"key": {"id": 17 + n}, "value": 9.25 + n} for n in range(3)]
    what = f"Measured {measured}; at most {allowed} allowed."
    return {"limit": limit, "scope": scope, "measured": measured, "allowed": allowed} | {
        "passed": passed,
        "what": what,
        "rows": rows,
    }


def night(version: int, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A published night of 1,000,000 rows of which about 1 % changed."""
    generator = np.random.default_rng((version, seed))
    norms = generator.lognormal(0.4 + version / 400, 0.3, 2000)
    changed, new, gone = (int(n) for n in generator.integers((8000, 900, 700), (12000, 1500, 900)))
    started = START + timedelta(days=version - 1)
    quantiles = {
        f"q{q:02d}": float(np.quantile(norms, q / 100)) for q in (1, 5, 25, 50, 75, 95, 99)
    }
    record = {
        "format": 1,
        "version": version,
        "base": version - 1 or None,
        "kind": "load" if version == 1 else "refresh",
        "new_space": False,
        "state": "published",
        "reason": None,
        "run_id": f"{version:032x}",
        "started": started.isoformat(),
        "finished": (started + timedelta(minutes=7)).isoformat(),
        "lance_version": version,
        "restores": None,
        "rows": {"in": 1_000_000, "new": new, "changed": changed, "touched": 310, "same": 980_000}
        | {"vanished": gone, "recomputed": 0, "predicted": new + changed, "reused": 12}
        | {"stale": 3, "quarantined": 1, "live": 999_999},
        "space": "ab" * 32,
        "bits": "cd" * 32,
        "model": {"path": "/models/encoder.keras", "content": "ef" * 32},
        "norms": {"count": 999_999, "min": 0.1, "max": 9.0, "mean": 1.6, "std": 0.5} | quantiles,
        "gate": {
            "action": "hold",
            "passed": True,
            "findings": [
                finding(limit, scope, usual * float(generator.uniform(0.5, 1.5)), allowed)
                for (limit, scope), (allowed, usual) in LIMITS.items()
            ]
            + [finding("audit.counts", "audit", 0.0, 0.0)],
        },
        "seconds": {"difference": 1.21, "prediction": 3.4, "gate": 0.5, "merge": 0.8},
        "warnings": [],
    }
    if version == 1:
        record["rows"] |= {"new": 1_000_000, "changed": 0, "same": 0, "vanished": 0, "touched": 0}
        record["gate"]["findings"] = record["gate"]["findings"][3:4]
    return record | changes


def broken(version: int, state: str, measured: float | None = 0.9) -> dict[str, Any]:
    """A night that broke two limits."""
    record = night(version, state=state, reason="gate" if state == "waiting" else None)
    for place, known in enumerate(record["gate"]["findings"]):
        if known["limit"] in {"gate.output.norm_psi", "gate.output.frechet"}:
            value = finding(known["limit"], known["scope"], measured, known["allowed"])
            record["gate"]["findings"][place] = value | {"passed": False}
    record["gate"]["passed"] = False
    return record


def rollback(version: int, restores: int) -> dict[str, Any]:
    empty = dict.fromkeys(night(1)["rows"], 0)
    return night(version, kind="rollback", restores=restores, gate=None, model=None) | {
        "rows": empty | {"live": 999_000},
        "seconds": {"merge": 0.2},
    }


def history(nights: int = 30, **changes: Any) -> dict[str, Any]:
    """A history with a rejected night, a new space, a rollback, and a candidate that waits."""
    records = [night(version) for version in range(1, nights + 1)]
    live = nights
    if nights >= 30:
        records[8] = broken(9, "superseded")
        records[14] = night(15, new_space=True)
        records[19] = rollback(20, 17)
        records[-1] = broken(nights, "waiting")
        live = nights - 1
    return {
        "kind": "history",
        "path": "/stores/items.lance",
        "live": live,
        "hold": None,
        "waiting": nights if nights >= 30 else None,
        "kept": [record["version"] for record in records if live - 14 < record["version"] <= live],
        "nights": records,
    } | changes
