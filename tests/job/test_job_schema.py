from __future__ import annotations

import json

from batchnorm_tool.job import Input, Job, Normalize, job_schema


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
    for definition in schema["$defs"].values():
        assert all("description" in key for key in definition["properties"].values())
    json.dumps(schema, allow_nan=False)


def test_the_schema_bounds_numbers_and_lets_a_variable_stand_for_one() -> None:
    fraction = job_schema()["$defs"]["Normalize"]["properties"]["max_bad_fraction"]

    assert fraction["anyOf"] == [
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "string", "pattern": r"^\$\{.+\}$"},
    ]
