from __future__ import annotations

import json

from batchnorm_tool.job import Input, Job, Normalize, job_schema
from batchnorm_tool.registry import TARGETS


def test_the_schema_describes_every_key() -> None:
    schema = job_schema()

    described = {
        name: list(definition["properties"])
        for name, definition in schema["$defs"].items()
        if "properties" in definition
    }
    assert list(schema["properties"]) == list(Job.model_fields)
    assert schema["required"] == ["input", "output"]
    assert schema["additionalProperties"] is False
    assert described["Normalize"] == list(Normalize.model_fields)
    assert described["Input"] == list(Input.model_fields)
    definitions = [each for one in schema["$defs"].values() for each in one.get("anyOf", [one])]
    assert len(definitions) == len(schema["$defs"]) + len(TARGETS) - 1
    for definition in definitions:
        assert all("description" in key for key in definition["properties"].values())
    json.dumps(schema, allow_nan=False)


def test_the_schema_has_the_keys_of_each_target() -> None:
    targets = job_schema()["$defs"]["Publish"]["anyOf"]
    known = {target["properties"]["to"]["anyOf"][0]["const"]: target for target in targets}
    assert list(known) == list(TARGETS)
    assert list(known["faiss"]["properties"]) == ["to", "name", "path", "index", "sample"]
    assert known["pgvector"]["required"] == ["to", "table"]
    assert {target["additionalProperties"] for target in targets} == {False}


def test_the_schema_bounds_numbers_and_lets_a_variable_stand_for_one() -> None:
    fraction = job_schema()["$defs"]["Normalize"]["properties"]["max_bad_fraction"]

    assert fraction["anyOf"] == [
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "string", "pattern": r"^\$\{.+\}$"},
    ]
