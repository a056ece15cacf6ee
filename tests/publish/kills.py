"""The end of a process at one step of its work, played by an exception."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from batchnorm_tool.errors import Interrupted


class Kill(Interrupted):
    """Stands for the end of the process."""


def killed_at(
    monkeypatch: pytest.MonkeyPatch,
    step: tuple[Any, str],
    count: int,
    when: str,
    attempt: Callable[[], object],
) -> bool:
    """Run `attempt`, killed `before` or `after` the step's call number `count`; whether it was."""
    real, calls = getattr(*step), 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and when == "before":
            raise Kill(step[1])
        answer = real(*args, **kwargs)
        if calls == count:
            raise Kill(step[1])
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(*step, dying)
        try:
            attempt()
        except Kill:
            return True
    return False
