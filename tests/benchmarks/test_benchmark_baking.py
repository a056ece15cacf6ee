"""The case of the baked model, its jobs run in this process: no time is asserted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from batchnorm_tool import Job, run
from benchmarks.agreement import Disagreement
from benchmarks.bench import Bench, Contender, Runs
from benchmarks.cases.baking import baked_model
from benchmarks.data import DEEP, Table, make
from benchmarks.measure import Measurement
from benchmarks.sizes import SIZES

pytestmark = pytest.mark.usefixtures("tensorflow")

SIZE = replace(SIZES["tiny"], rows=256)
COPY = replace(DEEP, baked=True)


class InThisProcess(Bench):
    """A sitting that runs the contenders' jobs, and says that each took as long as its place."""

    def run(
        self, case: str, contenders: Mapping[str, Contender], repetitions: int | None = None
    ) -> dict[str, Runs]:
        self.jobs = [json.loads(str(one.command[-1]))["job"] for one in contenders.values()]
        for job in self.jobs:
            run(Job.from_dict(job))
        return {name: taking(place) for place, name in enumerate(contenders, 1)}


def taking(seconds: float) -> Runs:
    said = {"body_seconds": seconds, "body_cpu_seconds": 2 * seconds}
    return Runs([Measurement(9.0, 9.0, 1, 1, said)])


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InThisProcess:
    for module in ("bench", "data"):
        monkeypatch.setattr(f"benchmarks.{module}.WORK", tmp_path)
    make(Table(SIZE.rows))
    make(DEEP)
    return InThisProcess(SIZE, cores=1)


def test_the_baked_model_does_the_same_job(bench: InThisProcess) -> None:
    make(COPY)
    found = baked_model(bench)
    assert [one.value for one in found] == [2.0, 3.0]
    raw, baked, none = bench.jobs
    assert (raw["model"]["path"], baked["model"]["path"]) == (str(DEEP.path), str(COPY.path))
    assert {**raw, "model": 0, "output": 0} == {**baked, "model": 0, "output": 0}
    assert none["normalize"] == {"norm": "none"}


def test_a_copy_that_gives_other_vectors_is_told(bench: InThisProcess) -> None:
    COPY.path.write_bytes(DEEP.path.read_bytes())  # under ``none`` it gives raw predictions
    with pytest.raises(Disagreement, match="differs"):
        baked_model(bench)
