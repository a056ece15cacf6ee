"""The contract of a store: of its live version, of each that is kept, and in its targets."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from batchnorm_tool import Contract, accept, normalize, rollback, verify
from batchnorm_tool.cli.app import cli
from batchnorm_tool.commands.refresh import commit
from batchnorm_tool.errors import Damaged
from batchnorm_tool.store.state import StoreDirectory, contract_path
from tests.commands.refresh.nightly import Nightly, features

FIRST = dict.fromkeys(range(40), 0)
SECOND = {**FIRST, 3: 1, 50: 0}


def live(nightly: Nightly) -> bytes:
    """The contract of the live version, which is the one that readers find."""
    state, version = nightly.state, nightly.state.pointer().live or 0
    content = state.contract(version)
    assert content is not None
    assert (Path(state.root) / "contract.json").read_bytes() == content
    named = hashlib.sha256(content).hexdigest()
    assert state.existing_record(version).contract == named
    assert f"contract       {named}" in CliRunner().invoke(cli, ["show", nightly.store]).output
    return content


def test_canaries_are_rows_of_the_first_load_and_stay(nightly: Nightly) -> None:
    nightly.night(FIRST, {"contract": {"keys": True}})
    first = live(nightly)
    contract = Contract.load(nightly.store)
    (feature,) = contract.features
    assert (feature.input, feature.columns) == ("x", ("x",))
    assert contract.space == nightly.state.existing_record(1).space
    assert len({canary.key["id"] for canary in contract.canaries if canary.key}) == 16
    for canary in contract.canaries:
        raw = features((canary.key or {})["id"])
        assert canary.features["x"].tolist() == raw.tolist()
        assert canary.vectors["x"].tolist() == normalize(raw[None])[0].tolist()
        assert float(canary.norms["x"]) == np.linalg.norm(raw.astype(np.float64))
    nightly.night(SECOND, {"contract": {"keys": True}})
    assert live(nightly) == first
    nightly.night({**SECOND, 4: 2})
    assert all(canary.key is None for canary in Contract.load(nightly.store).canaries)
    nightly.night({**SECOND, 4: 3}, {"contract": {"canaries": 0}})
    assert Contract.load(nightly.store).canaries == ()
    assert verify(nightly.store).rows == 41


def test_a_night_without_changes_writes_nothing(nightly: Nightly) -> None:
    nightly.night(FIRST)
    before = live(nightly)
    place = Path(nightly.state.root) / "contract.json"
    written = place.stat().st_mtime_ns
    assert nightly.night(FIRST).state == "nothing to do"
    assert (live(nightly), place.stat().st_mtime_ns) == (before, written)


def test_a_new_space_has_rows_of_its_own_and_waits_with_them(nightly: Nightly) -> None:
    nightly.night(FIRST)
    first = live(nightly)
    nightly.held(FIRST, normalize__norm="l1")
    assert live(nightly) == first
    accept(nightly.store, 2)
    (output,) = Contract.load(nightly.store).outputs
    assert output.normalization.norm.label == "l1"
    second = live(nightly)
    for canary in Contract.load(nightly.store).canaries:
        assert np.abs(canary.vectors["x"]).sum() == pytest.approx(1)
    rollback(nightly.store)
    assert live(nightly) == first
    # Back in the other space, where every vector is known: so are its canary rows.
    accept(nightly.store, nightly.held(FIRST, normalize__norm="l1")["version"])
    assert live(nightly) == second
    verify(nightly.store)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("step", ["tag", "put_record", "put_pointer"])
def test_killed_after_the_commit_the_next_call_switches_it(
    nightly: Nightly, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    nightly.night(FIRST)

    def killed(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        owner: Any = commit.transaction if step == "tag" else StoreDirectory
        patched.setattr(owner, step, killed)
        with pytest.raises(KilledError):
            nightly.night(FIRST, normalize__norm="l1", store__on_new_space="publish")
    rollback(nightly.store, 1)  # finishes version 2, and goes back
    state = nightly.state
    assert state.contract(2) != state.contract(1) == state.contract(3) == live(nightly)
    verify(nightly.store)


def test_damage_is_found_and_what_is_not_kept_goes(nightly: Nightly) -> None:
    for edit in range(4):
        nightly.night({**FIRST, 3: edit}, store__keep__count=2)
    state = nightly.state
    assert state.storage.names("contracts") == ["000003.json", "000004.json"]
    for path in (contract_path(3), "contract.json"):
        place = Path(state.root) / path
        content = place.read_bytes()
        place.write_bytes(content.replace(b"0.1", b"0.2", 1))
        with pytest.raises(Damaged, match=f"`{path}` is not what was written"):
            verify(nightly.store)
        place.write_bytes(content)
    verify(nightly.store)


def test_where_a_version_has_none_the_next_makes_one(nightly: Nightly) -> None:
    """Stores of an earlier version have none, and a damaged one is no reason to stop."""
    nightly.night(FIRST)
    for content in (None, b"{}"):
        place = Path(nightly.state.root) / contract_path(nightly.state.pointer().live or 0)
        place.unlink()
        if content is not None:
            place.write_bytes(content)
        nightly.night({**FIRST, 3: 1 + (content is None)})
        assert len(Contract.load(nightly.store).canaries) == 1  # the row that was predicted
    assert json.loads(live(nightly))["checksum"]
