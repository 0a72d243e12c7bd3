"""Variables: the context variables that a function sets in a thread, brought back to whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, Self


class Variables:
    """A function to be called in a thread; at the end of the block, what it has set there is set here too.

    Args:
        function: The function. A thread has a copy of the context of whoever starts it.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._after: Context | None = None
        self._before: Context | None = None

    def __call__(self) -> Any:
        """Call the function, in the thread."""
        self._before = copy_context()
        try:
            return self._function()
        finally:
            self._after = copy_context()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._before is None or self._after is None:  # the thread runs on, and nobody waits for it
            return
        for variable, value in self._after.items():
            if variable not in self._before or self._before[variable] is not value:
                variable.set(value)
