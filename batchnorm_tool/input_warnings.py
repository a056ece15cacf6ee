"""What a person should know of an input that is no error: said once, or collected as data.

Python's own `warnings.catch_warnings` changes filters that all threads share, so a run in a thread
would silence the process around it. A context variable belongs to its thread.
"""

from __future__ import annotations

import contextlib
import warnings
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_collector: ContextVar[Callable[[str], object] | None] = ContextVar("collector", default=None)


class InputWarning(UserWarning):
    """Something about an input that is worth knowing, and no reason to stop."""


def warn(text: str) -> None:
    """Tell whoever collects warnings in this thread, or raise an `InputWarning`."""
    tell = _collector.get()
    if tell is None:
        warnings.warn(text, InputWarning, stacklevel=3)
    else:
        tell(text)


@contextlib.contextmanager
def collected(tell: Callable[[str], object]) -> Iterator[None]:
    """Give each warning of this thread to ``tell`` instead.

    Example:
        >>> texts = []
        >>> with collected(texts.append):
        ...     warn("the file is empty")
        >>> texts
        ['the file is empty']
    """
    token = _collector.set(tell)
    try:
        yield
    finally:
        _collector.reset(token)
