from __future__ import annotations

import pytest

from batchnorm_tool.pipeline.timing import STAGES, StageTimings


def test_what_stages_took_adds_up_also_over_processes() -> None:
    ours, theirs = StageTimings(), StageTimings()
    ours.add("write", 2.0, 0.5)
    theirs.merge({"write": (1.0, 0.25)})
    theirs.merge(ours.totals())
    assert theirs.totals() == dict.fromkeys(STAGES, (0.0, 0.0)) | {"write": (3.0, 0.75)}


def test_a_stage_that_fails_counts_too() -> None:
    timings = StageTimings()
    with pytest.raises(KeyError), timings.stage("read"):
        raise KeyError
    assert timings.totals()["read"][0] > 0
