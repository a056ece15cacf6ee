"""A new norm, format, engine or target is one file and one line in the registry.

Each is tried on a copy of the package: the file and the line are added, and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.errors import JobError
from batchnorm_tool.job import Job

PACKAGE = Path(__file__).parent.parent / "batchnorm_tool"
VECTORS = np.array([[3, 4, 0], [1, 1, 1], [-2, 0, 1], [1e200, 0, 1e200], [1e-200, 0, 0]])
PROGRAM = """
import json, sys
from click.testing import CliRunner
import batchnorm_tool
from batchnorm_tool.cli.app import cli

results = [CliRunner().invoke(cli, command) for command in json.loads(sys.argv[1])]
told = [[result.exit_code, result.output] for result in results]
print(json.dumps({"package": batchnorm_tool.__file__, "told": told}))
"""

CUBE = '''
"""The cube root of the sum of cubes."""

import numpy as np


def cube_norms(x64):
    return np.cbrt((np.abs(x64) ** 3).sum(axis=1, keepdims=True))
'''

JSON_LINES = '''
"""A row in each line, as JSON."""

import hashlib
import json
from pathlib import Path

import pyarrow.json

from batchnorm_tool.formats import Format, Inspected


class JsonLines(Format):
    def recognises(self, head, tail):
        return head.startswith(b"{") and tail.endswith(b"}\\n")

    def fingerprint(self, path):
        content = Path(path).read_bytes()
        return len(content), hashlib.sha256(content).hexdigest()

    def inspect(self, path):
        size, fingerprint = self.fingerprint(path)
        table = pyarrow.json.read_json(path)
        return Inspected(table.schema, table.num_rows, fingerprint, size, {})

    def read(self, path, columns, start, stop, batch_rows):
        table = pyarrow.json.read_json(path).select(list(columns))
        yield from table.slice(start, stop - start).to_batches(batch_rows)

    def open_sink(self, files, stem, schema, layout):
        return JsonLinesSink(files(f"{stem}.jsonl"))


class JsonLinesSink:
    def __init__(self, file):
        self.file = file

    def write(self, table):
        for row in table.to_pylist():
            self.file.write(json.dumps(row).encode() + b"\\n")

    def close(self):
        pass
'''

BACKWARDS = '''
"""The last part first."""

import contextlib
from pathlib import Path

from pydantic import Field

from batchnorm_tool.engines.local import LocalEngine
from batchnorm_tool.job import Engine
from batchnorm_tool.job.types import LocalOrUri


class BackwardsSection(Engine):
    log: LocalOrUri = Field(description="Where the parts are listed.")


class BackwardsEngine(LocalEngine):
    section = BackwardsSection

    @classmethod
    @contextlib.contextmanager
    def open(cls, plan, parts):
        engine = cls(1)
        engine.log = Path(plan.job.engine.log)
        yield engine

    def run(self, worker, numbers, advance):
        for number in super().run(worker, numbers[::-1], advance):
            with self.log.open("a") as file:
                print(number, file=file)
            yield number
'''

LETTER = '''
"""A text that says what was published."""

from pathlib import Path

from pydantic import Field

from batchnorm_tool.job.refresh_sections import Publish
from batchnorm_tool.job.types import LocalOrUri, Text
from batchnorm_tool.publish import Target, version_facts


class PublishLetter(Publish):
    path: LocalOrUri = Field(description="The file.")
    greeting: Text = Field(default="Hello", description="How it begins.")


class Letter(Target):
    section = PublishLetter

    def __init__(self, section):
        super().__init__(section)
        self.place, self.greeting = section.path, section.greeting

    def publish(self, publication, held):
        text = f"{self.greeting}: version {publication.version}, {publication.rows} rows"
        Path(self.place).write_text(text)
        return version_facts(publication)
'''


class Extended:
    """A copy of the package with one more file and one more line; commands that are run with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.put(VECTORS)

    def put(self, vectors: np.ndarray) -> None:
        """Write the input."""
        table = pa.table({"id": range(len(vectors)), "v": vectors.tolist()})
        pq.write_table(table, self.folder / "in.parquet")

    def add(self, path: str, text: str, registry: str, line: str) -> None:
        """Copy the package, and add a file and a line to a registry."""
        copy = shutil.copytree(PACKAGE, self.folder / "batchnorm_tool")
        (copy / path).write_text(text)
        before = (copy / "registry.py").read_text()
        begin = f"\n{registry} = {{\n"
        after = before.replace(begin, f"{begin}    {line},\n")
        assert after.count("\n") == before.count("\n") + 1
        (copy / "registry.py").write_text(after)

    def job(self, **sections: Any) -> str:
        """Write a job file that leaves nothing out but these sections, and return its name."""
        source = {"path": "in.parquet", "key": "id", "features": "v"}
        job = {"input": source, "output": {"path": "out"}, **sections}
        (self.folder / "job.yaml").write_text(json.dumps(job))
        with pytest.raises(JobError, match=r"must be|Unknown norm"):
            Job.load(self.folder / "job.yaml")  # the package that has no such line
        return "job.yaml"

    def run(self, *commands: list[str]) -> list[tuple[int, str]]:
        """Run commands in one process; the exit code and output of each."""
        found = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(commands)],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        told = json.loads(found.stdout)
        assert Path(told["package"]).is_relative_to(self.folder)
        return [(code, text) for code, text in told["told"]]

    def vectors(self, output: str) -> np.ndarray:
        """The vectors of a result in Parquet."""
        return np.array(pq.read_table(self.folder / output / "vectors")["vector"].to_pylist())


@pytest.fixture
def extended(tmp_path: Path) -> Extended:
    return Extended(tmp_path)


def choices(schema: str, section: str, key: str) -> list[str]:
    """The values that a key can have, by the JSON Schema."""
    found = json.loads(schema)["$defs"][section]
    keys = [one["properties"][key] for one in found.get("anyOf", [found])]
    words = [word for one in keys for word in one["anyOf"]]
    return [choice for word in words for choice in (*word.get("enum", ()), word.get("const"))]


def test_a_norm(extended: Extended) -> None:
    place = "batchnorm_tool.norms.cube:cube_norms"
    extended.add("norms/cube.py", CUBE, "NORMS", f'"cube": "{place}"')
    job = extended.job(normalize={"norm": "cube"})
    flags = ["--column", "v", "--norm"]
    ran, verified, normalized, compared, schema, help_, wrong = extended.run(
        ["run", job],
        ["verify", "out"],
        ["normalize", "in.parquet", "again", *flags, "cube"],
        ["compare", "in.parquet", "--column", "v", "--norms", "none,cube", "--k", "1"],
        ["schema"],
        ["run", "--help"],
        ["normalize", "in.parquet", "never", *flags, "cubic"],
    )
    assert [code for code, _ in (ran, verified, normalized, compared)] == [0, 0, 0, 0], ran
    for output in ("out", "again"):
        cubes = np.abs(extended.vectors(output)) ** 3
        assert cubes.sum(axis=1) == pytest.approx(np.ones(len(VECTORS)), rel=1e-6)
    assert "cube, none, l1" in help_[1]
    norm = json.loads(schema[1])["$defs"]["Normalize"]["properties"]["norm"]
    assert "cube" in norm["description"]
    assert wrong[0] == 2
    assert "one of cube, none, l1" in wrong[1]
    assert "Did you mean `cube`?" in wrong[1]


def test_a_format(extended: Extended) -> None:
    place = "batchnorm_tool.formats.json_lines:JsonLines"
    extended.add("formats/json_lines.py", JSON_LINES, "FORMATS", f'"jsonl": "{place}"')
    job = extended.job(output={"path": "out", "format": "jsonl"})
    flags = ["--column", "vector", "--key", "id"]
    ran, verified, read_again, schema, help_, wrong, unknown = extended.run(
        ["run", job],
        ["verify", "out"],
        ["normalize", "out/vectors", "again", *flags],
        ["schema"],
        ["run", "--help"],
        ["run", job, "--format", "jsonlines"],
        ["normalize", job, "never"],
    )
    assert [code for code, _ in (ran, verified, read_again)] == [0, 0, 0], ran
    [file] = (extended.folder / "out" / "vectors").iterdir()
    first = json.loads(file.read_text().partition("\n")[0])
    assert first == {"id": 0, "vector": pytest.approx([0.6, 0.8, 0.0]), "norm": 5.0}
    assert extended.vectors("again")[0] == pytest.approx([0.6, 0.8, 0.0])
    assert "jsonl" in choices(schema[1], "Output", "format")
    assert "jsonl, parquet, npy or arrow" in help_[1]
    assert [wrong[0], unknown[0]] == [2, 2]
    assert "is none of jsonl, parquet, npy, arrow" in unknown[1]
    assert "must be `jsonl`, `parquet`, `npy` or `arrow`" in wrong[1]


def test_an_engine_with_a_key_of_its_own(extended: Extended) -> None:
    place = "batchnorm_tool.engines.backwards:BackwardsEngine"
    extended.add("engines/backwards.py", BACKWARDS, "ENGINES", f'"backwards": "{place}"')
    output = {"path": "out", "part_rows": 2}
    job = extended.job(output=output, engine={"kind": "backwards", "log": "parts.txt"})
    ran, local, schema, help_, wrong, missing = extended.run(
        ["run", job],
        ["normalize", "in.parquet", "local", "--column", "v", "--key", "id", "--part-rows", "2"],
        ["schema"],
        ["run", "--help"],
        ["run", job, "--engine", "backward"],
        ["normalize", "in.parquet", "never", "--set", "engine.kind=backwards"],
    )
    assert [code for code, _ in (ran, local)] == [0, 0], ran
    assert (extended.folder / "parts.txt").read_text().split() == ["2", "1", "0"]
    for part in ("part-000000.parquet", "part-000001.parquet", "part-000002.parquet"):
        files = [extended.folder / path / "vectors" / part for path in ("out", "local")]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert "backwards" in choices(schema[1], "Engine", "kind")
    assert "backwards or local" in help_[1]
    assert [wrong[0], missing[0]] == [2, 2]
    assert "`engine.kind` must be `backwards` or `local`" in wrong[1]
    assert "`engine.log` is missing: `kind: backwards` needs it." in missing[1]


def test_a_publish_target_with_keys_of_its_own(extended: Extended) -> None:
    place = "batchnorm_tool.publish.letter:Letter"
    extended.add("publish/letter.py", LETTER, "TARGETS", f'"letter": "{place}"')
    extended.put(VECTORS[:3])
    letter = {"to": "letter", "path": "letter.txt", "greeting": "Dear all"}
    job = extended.job(store={"path": "items.lance"}, publish=[letter])
    refreshed, schema, help_, wrong, foreign = extended.run(
        ["refresh", job],
        ["schema"],
        ["refresh", "--help"],
        ["refresh", job, "--set", "publish=[{to: leter, path: x}]"],
        ["refresh", job, "--set", "publish=[{to: letter, path: x, keep: 3}]"],
    )
    assert refreshed[0] == 0, refreshed
    assert (extended.folder / "letter.txt").read_text() == "Dear all: version 1, 3 rows"
    assert "letter" in choices(schema[1], "Publish", "to")
    assert "letter, changes, parquet, pgvector, faiss or query_model" in " ".join(help_[1].split())
    assert [wrong[0], foreign[0]] == [2, 2]
    assert "Did you mean `letter`?" in wrong[1]
    expected = "`publish.0.keep` is not for `to: letter`, which takes `path`, `greeting`."
    assert expected in foreign[1]
