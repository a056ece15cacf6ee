from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchnorm_tool.display import mask_secrets
from batchnorm_tool.errors import JobError
from batchnorm_tool.job import Input, Job, Output
from batchnorm_tool.job.types import is_within
from tests.job.job_texts import MINIMAL, with_value


def test_relative_paths_start_from_the_job_file_whatever_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "job.yaml").write_text(
        """
        input: {path: [../data/*.parquet, s3://bucket/x, /abs/y], keys: keys.npy}
        model: {path: ../model.keras}
        output: {path: ../runs/x}
        """,
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)

    job = Job.load("jobs/job.yaml")

    assert job.input.path == [f"{tmp_path}/data/*.parquet", "s3://bucket/x", "/abs/y"]
    assert job.input.paths == job.input.path
    assert job.input.keys == f"{tmp_path}/jobs/keys.npy"
    assert job.model is not None
    assert job.model.path == f"{tmp_path}/model.keras"
    assert job.output.path == f"{tmp_path}/runs/x"


def test_paths_given_in_python_start_from_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")

    assert Input(path="x.npy").path == f"{tmp_path}/x.npy"
    assert Input(path=Path("x.npy")).path == f"{tmp_path}/x.npy"  # type: ignore[arg-type]
    assert Input(path={"a": "x.npy"}).paths == [f"{tmp_path}/x.npy"]
    assert Output(path="~/runs").path == "/home/someone/runs"


@pytest.mark.parametrize(
    ("given", "output", "text"),
    [
        ("/data", "/data", "is inside the input"),
        ("/data", "/data/out", "is inside the input"),
        (["/other", "/data"], "/data/../data/out/x", "is inside the input"),
        ("/data/*", "/data/out", "is inside the input"),
        ("/data/**/*.parquet", "/data/deep/out", "is inside the input"),
        ("/runs/in.npy", "/runs", "contains /runs/in.npy, which a new result would replace"),
        ({"a": "/runs/in.npy"}, "/runs", "contains /runs/in.npy"),
        ("s3://bucket/data", "s3://bucket/data/out", "is inside the input"),
    ],
)
def test_input_and_output_lie_apart(given: Any, output: str, text: str) -> None:
    with pytest.raises(JobError, match=r"`output\.path` ") as caught:
        Job.from_dict({"input": {"path": given}, "output": {"path": output}})

    assert text in caught.value.message


def test_an_output_does_not_hold_the_model() -> None:
    model = {"path": "/runs/x/model.keras"}

    with pytest.raises(JobError, match=r"contains /runs/x/model\.keras"):
        Job.from_dict({**MINIMAL, "model": model, "output": {"path": "/runs/x"}})


@pytest.mark.parametrize(
    ("inner", "outer"),
    [("/database", "/data"), ("/data/out", "/data/*.parquet"), ("/data", "/data/out")],
)
def test_neighbours_are_not_inside(inner: str, outer: str) -> None:
    assert not is_within(inner, outer)


SECRET_URIS = [
    "s3://AKIA:s3cr3t@bucket/x",
    "s3://AKIA:s3cr3t/with/slashes@bucket/x",
    "s3://AKIA:s3cr3t",
    "s3://s3cr3t@bucket/x",
    "https://s3cr3t@host/x",
    "abfss://box:s3cr3t@host/x",
    "s3://bucket/x?access_key=s3cr3t&region=eu",
    "s3://bucket/x?region=eu&secret_key=s3cr3t",
    "https://host/x?X-Amz-Signature=s3cr3t",
    "https://host/x?sv=1&sig=s3cr3t",
]


@pytest.mark.parametrize("uri", SECRET_URIS)
@pytest.mark.parametrize("key", ["input.path", "input.keys", "model.path", "output.path"])
def test_credentials_in_a_uri_are_refused_and_never_shown(key: str, uri: str) -> None:
    with pytest.raises(JobError, match=rf"`{key}` contains credentials") as caught:
        Job.from_dict(with_value(key, uri))

    assert "s3cr3t" not in caught.value.message
    assert "s3cr3t" not in repr(caught.value.__cause__)
    assert "***" in caught.value.message


def test_a_secret_beside_another_mistake_is_not_shown_either() -> None:
    with pytest.raises(JobError) as caught:
        Job.from_dict(with_value("input.path", ["s3://a:s3cr3t@bucket", 3]))

    assert "s3cr3t" not in caught.value.message


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a@b.parquet",
        "s3://bucket/x?region=eu-west-1&endpoint_override=localhost:9000",
        "http://localhost:9000/x",
        "abfss://container@account.dfs.core.windows.net/x",
        "gs://anonymous@bucket/x",
        "not a uri: me:you@here",
    ],
)
def test_uris_without_secrets_are_left_alone(uri: str) -> None:
    assert mask_secrets(uri) == uri


def test_masked_is_the_whole_job_with_secrets_hidden() -> None:
    job = Job.from_dict(with_value("input.fill.note", "s3://a:s3cr3t@bucket"))

    masked = job.masked()

    assert masked["input"]["fill"] == {"note": "s3://***@bucket"}
    assert {**masked, "input": None} == {**job.to_dict(), "input": None}
