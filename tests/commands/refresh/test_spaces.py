"""One space at a time: what makes a new one, how it waits, and which vectors are used again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool import accept, diff, environment, read, refresh, rollback
from batchnorm_tool.errors import Held
from tests.commands.refresh.nightly import Nightly, features, firsts, items, unit, units
from tests.refresh_records import stored_record

FIRST = dict.fromkeys(range(30), 0)


def other(nightly: Nightly, encoders: dict[str, str], name: str) -> dict[str, Any]:
    """The section of a job with another model."""
    return {"model": {"path": encoders[name]}}


def test_another_model_waits_and_is_accepted_without_it(
    encoded: Nightly, encoders: dict[str, str], seen: set[float]
) -> None:
    encoded.night(FIRST)
    seen.clear()
    held = encoded.held(FIRST, other(encoded, encoders, "b"))
    assert (held["reason"], held["version"], held["new_space"]) == ("new space", 2, True)
    assert held["rows"]["recomputed"] == held["rows"]["predicted"] == 30
    assert seen == firsts(FIRST)
    assert f"`batchnorm-tool accept {encoded.store} 2`" in held["message"]
    seen.clear()
    shutil.rmtree(encoded.path / "in")
    night = accept(encoded.store, 2)
    assert (night.state, night.version) == ("published", 2)
    assert seen == set()
    facts = encoded.state.pointer()
    assert (facts.live, facts.waiting) == (2, None)
    found = encoded.vectors()
    assert found == encoded.from_scratch(FIRST, model={"path": encoders["b"]})
    assert found != encoded.from_scratch(FIRST)
    assert encoded.staged() == []


def test_a_new_space_is_announced_before_it_starts(
    encoded: Nightly, encoders: dict[str, str], seen: set[float]
) -> None:
    encoded.night(FIRST)
    told: list[tuple[str, bool]] = []
    job = encoded.job(other(encoded, encoders, "b"))
    night = Path(encoded.state.root) / "night"
    with pytest.raises(Held):
        refresh(job, announce=lambda text: told.append((text, night.exists())))
    first, record = (stored_record(encoded.state, version) for version in (1, 2))
    assert first is not None
    assert record is not None
    old, new = (each["model"]["content"][:6] for each in (first, record))
    said = f"A new vector space (another model: {old} → {new}): every row is recomputed."
    assert told[0] == (said, False)
    assert record["warnings"] == [told[0][0]]


def test_the_same_command_while_it_waits_computes_nothing(
    encoded: Nightly, encoders: dict[str, str], seen: set[float]
) -> None:
    encoded.night(FIRST)
    first = encoded.held(FIRST, other(encoded, encoders, "b"))
    seen.clear()
    again = encoded.held(None, other(encoded, encoders, "b"))
    assert (again["version"], again["reason"]) == (2, "new space")
    assert again["rows"] == first["rows"]
    assert seen == set()
    assert encoded.state.pointer().next_version == 3


def test_another_model_may_be_published_at_once(encoded: Nightly, encoders: dict[str, str]) -> None:
    encoded.night(FIRST)
    b = other(encoded, encoders, "b")
    night = encoded.night({**FIRST, 40: 0}, b, store__on_new_space="publish")
    assert (night.state, night.record["new_space"], night.rows["predicted"]) == (
        "published",
        True,
        31,
    )
    assert encoded.vectors() == encoded.from_scratch({**FIRST, 40: 0}, **b)


def test_on_new_space_publish_lets_a_waiting_night_go(
    encoded: Nightly, encoders: dict[str, str], seen: set[float]
) -> None:
    encoded.night(FIRST)
    b = other(encoded, encoders, "b")
    encoded.held(FIRST, b)
    seen.clear()
    assert encoded.night(None, b, store__on_new_space="publish").version == 2
    assert seen == set()


def test_the_same_model_saved_again_is_no_new_space(
    encoded: Nightly, encoders: dict[str, str], seen: set[float]
) -> None:
    assert Path(encoders["a"]).read_bytes() != Path(encoders["again"]).read_bytes()
    encoded.night(FIRST)
    seen.clear()
    again = other(encoded, encoders, "again")
    assert encoded.night(FIRST, again).state == "nothing to do"
    night = encoded.night({**FIRST, 3: 1}, again)
    assert (night.state, night.record["new_space"], night.rows["predicted"]) == (
        "published",
        False,
        1,
    )
    assert seen == firsts({3: 1})


def test_another_norm_is_a_new_space(nightly: Nightly, seen: set[float]) -> None:
    nightly.night(FIRST)
    seen.clear()
    held = nightly.held(FIRST, normalize={"norm": "none"})
    assert (held["reason"], held["rows"]["predicted"]) == ("new space", 30)
    assert held["warnings"] == ["A new vector space (norm l2 → none): every row is recomputed."]
    accept(nightly.store, 2)
    expected = {key: (features(key).tobytes(), 1.0) for key in FIRST}
    assert nightly.vectors() == expected


def test_another_feature_list_is_a_new_space(nightly: Nightly) -> None:
    rename = {"input": {"path": "in", "key": "id", "features": {"x": "y"}}}
    nightly.night(FIRST)
    table = items(FIRST)
    held = nightly.held(table.append_column("y", table["x"]), rename)
    assert held["reason"] == "new space"
    assert "(features without `x`, with `y`)" in held["warnings"][0]


def test_a_wider_vector_is_taken_up(nightly: Nightly) -> None:
    nightly.night(FIRST)
    table = items(FIRST)
    wide = np.array([np.tile(features(key), 2) for key in FIRST], np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(wide.ravel()), 16)
    source = {"input": {"path": "in", "key": "id", "features": {"x": "wide"}}}
    nightly.held(table.append_column("wide", column), source)
    accept(nightly.store, 2)
    assert nightly.vectors() == {key: unit(wide[key]) for key in FIRST}
    assert read(nightly.store, version=1).to_numpy()[1].shape == (30, 8)


def test_a_night_after_an_accepted_space_builds_on_it(
    encoded: Nightly, encoders: dict[str, str], seen: set[float]
) -> None:
    b = other(encoded, encoders, "b")
    encoded.night(FIRST)
    encoded.held(FIRST, b)
    accept(encoded.store, 2)
    seen.clear()
    night = encoded.night({**FIRST, 3: 1}, b)
    assert (night.version, night.record["base"], night.record["new_space"]) == (3, 2, False)
    assert seen == firsts({3: 1})
    assert encoded.vectors() == encoded.from_scratch({**FIRST, 3: 1}, **b)


def test_vectors_of_an_older_space_are_used_again(
    encoded: Nightly, encoders: dict[str, str], seen: set[float]
) -> None:
    publish = {"store__on_new_space": "publish"}
    b = other(encoded, encoders, "b")
    encoded.night(FIRST)
    first = encoded.vectors()
    encoded.night(FIRST, b, **publish)
    assert encoded.vectors() != first
    seen.clear()
    night = encoded.night({**FIRST, 40: 0}, **publish)
    assert (night.rows["recomputed"], night.rows["reused"], night.rows["predicted"]) == (30, 30, 1)
    assert night.record["new_space"]
    # Choices are made anew with the model, on a sample of the input; then it sees one row.
    assert encoded.vectors() == encoded.from_scratch({**FIRST, 40: 0})
    assert {key: encoded.vectors()[key] for key in FIRST} == first


def test_vectors_of_an_older_type_are_used_again(nightly: Nightly) -> None:
    nightly.night(FIRST)
    nightly.night(FIRST, output__dtype="float16")
    night = nightly.night({**FIRST, 40: 0})
    assert (night.rows["recomputed"], night.rows["reused"], night.rows["predicted"]) == (30, 30, 1)
    assert nightly.vectors() == units({**FIRST, 40: 0})


def test_a_row_that_changes_back_is_not_predicted(nightly: Nightly, seen: set[float]) -> None:
    nightly.night(FIRST)
    nightly.night({**FIRST, 3: 1, 4: 1})
    seen.clear()
    night = nightly.night({**FIRST, 4: 1, 5: 1})
    assert (night.rows["changed"], night.rows["reused"], night.rows["predicted"]) == (2, 1, 1)
    assert seen == firsts({5: 1})
    assert nightly.vectors() == units({**FIRST, 4: 1, 5: 1})
    assert nightly.rows()[3]["version"] == 3


def test_a_row_that_vanished_and_comes_back_is_not_predicted(
    nightly: Nightly, seen: set[float]
) -> None:
    nightly.night(FIRST)
    nightly.night({key: 0 for key in FIRST if key > 4})
    seen.clear()
    night = nightly.night(items(FIRST, label=["back"] * 30))
    assert (night.rows["new"], night.rows["reused"], night.rows["predicted"]) == (5, 5, 0)
    assert seen == set()
    assert nightly.vectors() == units(FIRST)
    assert {row["label"] for row in nightly.rows().values()} == {"back"}


def test_after_a_rollback_vectors_of_the_undone_version_are_used(
    nightly: Nightly, seen: set[float]
) -> None:
    edits = {**FIRST, 3: 1, 4: 1, 40: 0}
    nightly.night(FIRST)
    nightly.night(edits)
    rollback(nightly.store)
    seen.clear()
    held = nightly.held(edits)
    assert (held["reason"], held["rows"]["reused"], held["rows"]["predicted"]) == ("hold", 3, 0)
    assert seen == set()
    accept(nightly.store, held["version"])
    assert nightly.vectors() == units(edits)


def test_vectors_of_versions_that_are_not_kept_are_not_used(
    nightly: Nightly, seen: set[float]
) -> None:
    keep = {"store__keep": {"count": 1}}
    nightly.night(FIRST, **keep)
    nightly.night({**FIRST, 3: 1}, **keep)
    night = nightly.night(FIRST, **keep)
    assert (night.rows["reused"], night.rows["predicted"]) == (0, 1)
    assert nightly.vectors() == units(FIRST)


def test_vectors_of_another_space_are_not_used(nightly: Nightly) -> None:
    nightly.night(FIRST)
    nightly.night({**FIRST, 3: 1})
    values = {"normalize": {"norm": "none"}, "store__on_new_space": "publish"}
    night = nightly.night(FIRST, **values)
    assert (night.rows["reused"], night.rows["predicted"]) == (0, 30)
    assert nightly.vectors() == {key: (features(key).tobytes(), 1.0) for key in FIRST}


BITS = pytest.mark.parametrize("change", ["batch size", "version"])


def other_bits(change: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let tonight's low bits be others; gives values for the job."""
    if change == "batch size":
        return {"model__batch_size": 96}
    real = environment.versions

    def versions(names: tuple[str, ...]) -> dict[str, str | None]:
        return {**real(names), "tensorflow": "2.99.1"}

    monkeypatch.setattr(environment, "versions", versions)
    return {}


@BITS
def test_other_bits_are_recorded_and_recompute_nothing(
    encoded: Nightly, seen: set[float], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    encoded.night(FIRST)
    before = encoded.vectors()
    values = other_bits(change, monkeypatch)
    seen.clear()
    night = encoded.night({**FIRST, 3: 1}, **values)
    assert (night.state, night.rows["predicted"]) == ("published", 1)
    first, second = (stored_record(encoded.state, version) for version in (1, 2))
    assert first is not None
    assert second is not None
    assert first["space"] == second["space"]
    assert first["bits"] != second["bits"]
    (note,) = second["warnings"]
    assert note.startswith("Low-order bits may differ from the live version's (")
    assert note.endswith("only changed rows are recomputed.")
    assert {key: bits for key, bits in encoded.vectors().items() if key != 3} == {
        key: bits for key, bits in before.items() if key != 3
    }


@BITS
def test_other_bits_recompute_everything_where_it_is_asked_for(
    encoded: Nightly, seen: set[float], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    recompute = {"store__on_new_bits": "recompute"}
    encoded.night(FIRST, **recompute)
    values = {**recompute, **other_bits(change, monkeypatch)}
    seen.clear()
    night = encoded.night({**FIRST, 3: 1}, **values)
    assert (night.state, night.record["new_space"]) == ("published", False)
    assert (night.rows["recomputed"], night.rows["predicted"], night.rows["reused"]) == (29, 30, 0)
    assert seen == firsts({**FIRST, 3: 1})
    assert encoded.night(None, **values).state == "nothing to do"


def test_a_set_of_vectors_is_compared_with_the_store_that_took_them_up(
    encoded: Nightly, encoders: dict[str, str]
) -> None:
    encoded.night(FIRST)
    encoded.from_scratch(FIRST)
    (scratch,) = encoded.path.glob("scratch-*")
    found = diff(encoded.store, scratch).to_dict()
    assert (found["a"]["kind"], found["a"]["rows"], found["b"]["kind"]) == ("store", 30, "run")
    assert (found["cosine"]["count"], found["cosine"]["min"]) == (30, 1.0)
