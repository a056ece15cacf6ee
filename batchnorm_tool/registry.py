"""What a job file chooses by name: one line for each norm, file format, engine and publish target.

A line says where to find what bears the name, as ``module:object``, or which name it is another
spelling of. To list the names imports nothing, so that ``--help`` can do it.
"""

import functools
import importlib
from collections.abc import Mapping
from typing import Any

# A function from rows to their lengths, as `batchnorm_tool.norms.norm` describes it.
NORMS = {
    "none": "batchnorm_tool.norms.norm:ones",
    "l1": "batchnorm_tool.norms.norm:l1_norms",
    "l2": "batchnorm_tool.norms.norm:l2_norms",
    "cosine": "l2",
    "euclidean": "l2",
    "max": "batchnorm_tool.norms.norm:max_norms",
    "linf": "max",
    "lp": "batchnorm_tool.norms.norm:lp_norms",
}

# A class derived from `batchnorm_tool.formats.Format`.
FORMATS = {
    "parquet": "batchnorm_tool.formats.parquet:Parquet",
    "npy": "batchnorm_tool.formats.npy:Npy",
    "arrow": "batchnorm_tool.formats.arrow:Arrow",
}

# What works as `batchnorm_tool.engines.NamedEngine` does.
ENGINES = {
    "local": "batchnorm_tool.engines.local:LocalEngine",
}  # fmt: skip

# A class derived from `batchnorm_tool.publish.Target`.
TARGETS = {
    "changes": "batchnorm_tool.publish.changes:ChangeFeed",
    "parquet": "batchnorm_tool.publish.parquet:ParquetSnapshot",
    "pgvector": "batchnorm_tool.publish.pgvector:PgvectorTable",
    "faiss": "batchnorm_tool.publish.faiss:FaissIndex",
    "query_model": "batchnorm_tool.commands.refresh.query_model:QueryModel",
}

# A `batchnorm_tool.models.backends.export.BakeFormat`.
BAKE_FORMATS = {
    "keras": "batchnorm_tool.models.backends.export:KERAS",
    "savedmodel": "batchnorm_tool.models.backends.export:SAVED_MODEL",
    "onnx": "batchnorm_tool.models.backends.export:ONNX",
    "openvino": "batchnorm_tool.models.backends.export:OPENVINO",
    "litert": "batchnorm_tool.models.backends.export:LITERT",
}


def spellings(choices: Mapping[str, str]) -> dict[str, list[str]]:
    """Return each name with its other spellings.

    Example:
        >>> spellings({"l2": "module:function", "cosine": "l2"})
        {'l2': ['cosine']}
    """
    names = (name for name, place in choices.items() if ":" in place)
    return {name: [other for other in choices if choices[other] == name] for name in names}


def load(choices: Mapping[str, str], name: str) -> Any:
    """Import what bears a name."""
    return _imported(choices[name])


@functools.cache
def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
