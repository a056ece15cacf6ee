"""The three identities of a result: its space, its bits, and the result itself.

Each contains the one before it, so that equal results have equal bits, and equal bits have equal
spaces. The details stay beside the hashes: they say what differs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from batchnorm_tool import canonical, machine

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from batchnorm_tool.job import Job
    from batchnorm_tool.plan import Resolved
    from batchnorm_tool.sources import InputFile

_VERSIONED = ("numpy", "pyarrow", "batchnorm-tool")
_VERSIONED_WITH_MODEL = ("tensorflow", "keras", *_VERSIONED)


@dataclass(frozen=True)
class Identity:
    """What a result is made of, as plain data.

    Attributes:
        space: What gives the vectors their meaning: model content, outputs, norms, features.
        bits: What can change their low bits besides: batch size, threads, versions, device, CPU.
        policies: How bad rows are treated.
        result: All the rest: the input files, the columns that are carried, the layout.
    """

    space: dict[str, Any]
    bits: dict[str, Any]
    policies: dict[str, Any]
    result: dict[str, Any]

    @property
    def space_id(self) -> str:
        """The vector space: vectors of two spaces are never mixed."""
        return canonical.sha256(self.space)

    @property
    def bits_id(self) -> str:
        """The space and all that can change low bits: a resumed run must match it."""
        return canonical.sha256([self.space, self.bits])

    @property
    def result_id(self) -> str:
        """The whole result: decides between "nothing to do" and a refusal."""
        return canonical.sha256(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The identity as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Identity:
        """The identity that `to_dict` gave."""
        return cls(**data)


def identify(
    job: Job,
    resolved: Resolved,
    files: tuple[InputFile, ...],
    limit: int | None,
) -> Identity:
    """The identity of the result of ``job`` over ``files`` with the choices in ``resolved``."""
    return Identity(
        space=_space(job, resolved),
        bits=_bits(resolved, with_model=job.model is not None),
        policies={
            "input.invalid": job.input.invalid,
            "normalize.zero": job.normalize.zero,
            "normalize.nonfinite": job.normalize.nonfinite,
            "normalize.max_bad_fraction": job.normalize.max_bad_fraction,
        },
        result={
            "input": [file.to_dict() for file in files],
            "input.key": job.input.key,
            "input.keys": job.input.keys,
            "input.passthrough": list(job.input.passthrough),
            "limit": limit,
            "output.format": job.output.format,
            "output.dtype": job.output.dtype,
            "output.columns": job.output.columns.model_dump(),
            "output.byte_stream_split": job.output.byte_stream_split,
            "part_rows": resolved.part_rows,
            "chunk_rows": resolved.chunk_rows,
        },
    )


def _space(job: Job, resolved: Resolved) -> dict[str, Any]:
    norms = {}
    for output in resolved.outputs:
        norm, axis = job.normalize.for_output(output.name)
        norms[output.name] = {"norm": norm.label, "axis": axis}
    accepted = job.model is not None and job.model.batch_dependent == "accept"
    return {
        # Named only where it matters, so that it makes no new space of those that there are.
        **({"model.batch_dependent": resolved.batch_size} if accepted else {}),
        "model": resolved.model_content,
        "model.layer": job.model.layer if job.model else None,
        "model.signature": job.model.signature if job.model else None,
        "outputs": [output.name for output in resolved.outputs],
        "norms": norms,
        "features": {name: list(columns) for name, columns in resolved.features.items()},
        "input.fill": job.input.fill,
        "input.decode": job.input.decode,
        "input.dtype": job.input.dtype,
        "input.transform": resolved.transform,
    }


def _bits(resolved: Resolved, *, with_model: bool) -> dict[str, Any]:
    return {
        "batch_size": resolved.batch_size,
        "threads": resolved.threads,
        "device": resolved.device,
        "cpu": machine.cpu(),
        "versions": machine.versions(_VERSIONED_WITH_MODEL if with_model else _VERSIONED),
    }


def differences(old: Identity, new: Identity, unasked: Collection[str] = ()) -> Iterator[str]:
    """Say in words what differs between two identities, most meaningful first.

    Args:
        old: What stands there.
        new: What is asked for.
        unasked: Names of details that nobody asked for, because they were left to be chosen.
    """
    for group in ("space", "bits", "policies", "result"):
        before, after = getattr(old, group), getattr(new, group)
        for name in sorted((before.keys() | after.keys()) - set(unasked)):
            yield from _named_differences(name, before.get(name), after.get(name))


_IN_WORDS = {
    "input": "the input files",
    "model": "the model's content",
    "input.transform": "`input.transform` or its source",
}


def _named_differences(name: str, before: object, after: object) -> Iterator[str]:
    """What differs under ``name``; of two mappings, only the keys that differ."""
    if before == after:
        return
    if name in _IN_WORDS:
        yield _IN_WORDS[name]
    elif isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from _named_differences(f"{name}.{key}", before.get(key), after.get(key))
    else:
        yield f"`{name}` ({_short(before)} there, {_short(after)} now)"


def _short(value: object, limit: int = 60) -> str:
    text = str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
