"""What is shown: one function for each row of the targets, and one for how cost grows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.bench import Bench
from benchmarks.cases.against_others import deep_model, single_layer, whole_processes
from benchmarks.cases.against_the_limit import (
    convolution,
    norms_and_statistics,
    stored_predictions,
    sum_of_stages,
)
from benchmarks.cases.back_ends import families, memory, quick_start
from benchmarks.cases.baking import baked_model
from benchmarks.cases.choices import batch_size, layouts, two_processes
from benchmarks.cases.comparing import memory_of_neighbours, nearest_neighbours, norm_survey
from benchmarks.cases.growing import growth
from benchmarks.cases.memory_and_start import flat_memory, quick_starts
from benchmarks.cases.refreshing import (
    difference_alone,
    disk_after_nights,
    first_load,
    heavy_model,
    memory_of_the_difference,
    night_against_its_parts,
    nothing_changed,
)
from benchmarks.findings import Finding

Case = Callable[[Bench], list[Finding]]

CASES: Mapping[str, Case] = {
    "1": deep_model,
    "2": sum_of_stages,
    "3": whole_processes,
    "4": single_layer,
    "5": convolution,
    "6": stored_predictions,
    "7": norms_and_statistics,
    "8": flat_memory,
    "9": batch_size,
    "10": quick_starts,
    "11": two_processes,
    "12": layouts,
    "start": quick_start,
    "backend-memory": memory,
    "families": families,
    "baked": baked_model,
    "growth": growth,
    "compare-neighbours": nearest_neighbours,
    "compare-memory": memory_of_neighbours,
    "compare-norms": norm_survey,
    "refresh-load": first_load,
    "refresh-night": night_against_its_parts,
    "refresh-heavy": heavy_model,
    "refresh-nothing": nothing_changed,
    "refresh-difference": difference_alone,
    "refresh-memory": memory_of_the_difference,
    "refresh-disk": disk_after_nights,
}
