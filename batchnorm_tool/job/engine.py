"""Where the work is done: the ``engine`` section of a job."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from batchnorm_tool.job.messages import Expects
from batchnorm_tool.job.sections import Section
from batchnorm_tool.job.values import (
    Count,
    CountOrAuto,
    Flag,
    GpuNumber,
    available_engine,
    wrong,
)


class Engine(Section):
    """Where the work is done: the ``engine`` section."""

    kind: Annotated[Literal["local"], BeforeValidator(available_engine)] = Field(
        default="local", description="What carries parts to workers."
    )
    devices: Annotated[
        Literal["auto", "cpu", "gpu"]
        | Annotated[list[GpuNumber | Literal["cpu"]], Field(min_length=1)],
        Expects(
            "`auto`, `cpu`, `gpu`, or a list of GPU numbers, such as [0, 1], or of processes on "
            "the CPU, such as [cpu, cpu]"
        ),
    ] = Field(
        default="auto",
        description="auto, cpu, gpu, or a list with a GPU number or `cpu` for each process.",
    )
    workers: CountOrAuto = Field(
        default="auto",
        description="Parts that are worked on at the same time, by all processes together.",
    )
    threads: Annotated[Count, Expects("a whole number above 0")] = Field(
        default=1, description="Threads inside one call of the model; they change low bits."
    )
    mixed_bits: Flag = Field(
        default=False, description="Resume although low bits of new parts may differ."
    )

    @property
    def device(self) -> Literal["auto", "cpu", "gpu"]:
        """The kind of the devices: bits depend on it, and not on how many there are.

        Example:
            >>> Engine(devices=[0, 1]).device, Engine(devices=["cpu", "cpu"]).device
            ('gpu', 'cpu')
        """
        if isinstance(self.devices, str):
            return self.devices
        return "cpu" if "cpu" in self.devices else "gpu"

    @field_validator("threads")
    @classmethod
    def _check_threads(cls, threads: int) -> int:
        if threads > 1024:  # with 2**31 - 1 TensorFlow takes the process down
            raise wrong(f"must be at most 1,024. Received: {threads}. One for each core is enough.")
        return threads

    @field_validator("devices")
    @classmethod
    def _check_alike(cls, devices: str | list[int | str]) -> str | list[int | str]:
        numbers = [] if isinstance(devices, str) else [each for each in devices if each != "cpu"]
        if numbers and len(numbers) < len(devices):
            text = (
                f"names the CPU beside GPUs, which give other low bits. Expected GPU numbers alone,"
                f" or `cpu` alone. Received: {devices}."
            )
            raise wrong(text)
        if len(set(numbers)) < len(numbers):
            text = (
                "names a GPU twice, and one process computes on each. Name each once. "
                f"Received: {devices}."
            )
            raise wrong(text)
        return devices
