"""Jobs as texts and as data: what loads, and what a refusal says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batchnorm_tool.errors import JobError
from batchnorm_tool.job import Job

MINIMAL = {"input": {"path": "in.parquet"}, "output": {"path": "out"}}


def job_of(text: str, tmp_path: Path, name: str = "job.yaml") -> Job:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return Job.load(path)


def refusal_of(text: str, tmp_path: Path, name: str = "job.yaml") -> str:
    with pytest.raises(JobError) as caught:
        job_of(text, tmp_path, name)
    return caught.value.message


def with_value(key: str, value: object) -> dict[str, Any]:
    data: dict[str, Any] = {**json.loads(json.dumps(MINIMAL)), "model": {"path": "model.keras"}}
    *sections, last = key.split(".")
    section = data
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = value
    return data
