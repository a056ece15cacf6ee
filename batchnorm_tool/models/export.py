"""The formats in which a normalized model is written; `batchnorm_tool.registry` lists them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from batchnorm_tool.display import did_you_mean
from batchnorm_tool.errors import JobError
from batchnorm_tool.registry import BAKE_FORMATS, load

if TYPE_CHECKING:
    from batchnorm_tool.models.backends.normalized_model import NormalizedModel


@dataclass(frozen=True)
class BakeFormat:
    """A format of model files.

    Attributes:
        file: Its file's, or directory's, name where there are several formats.
        write: Writes a model to a path that does not exist yet.
        packages: What has to be installed to write and to run it.
        extra: The extra of this package that installs them.
        is_admitted: Whether the safety gate knows it, and has to admit what was written.
    """

    file: str
    write: Callable[[NormalizedModel, Path], None]
    packages: tuple[str, ...] = ()
    extra: str = ""
    is_admitted: bool = False


def bake_format(name: str) -> BakeFormat:
    """Return a format by its name.

    Raises:
        JobError: There is none of that name, or it needs what is not installed.
    """
    if name not in BAKE_FORMATS:
        raise JobError(
            f"`to` takes {', '.join(BAKE_FORMATS)}. Received: {name}."
            f"{did_you_mean(name, BAKE_FORMATS)}"
        )
    found: BakeFormat = load(BAKE_FORMATS, name)
    for package in found.packages:
        if find_spec(package) is None:
            raise JobError(
                f"`to` names {name}, which needs {package}. Install it with `pip install "
                f"'batchnorm-tool[{found.extra}]'`, or leave {name} out."
            )
    return found
