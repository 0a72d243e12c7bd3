"""Callables: what a task has to know of its function before anything is called."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from knapsaq.errors import TaskDefinitionError


def refuse_hidden(task: str, function: Callable[..., Any]) -> None:
    """Refuse a function that another process cannot import.

    Raises:
        TaskDefinitionError: Saying what to do.
    """
    module, qualname = (getattr(function, name, None) or "" for name in ("__module__", "__qualname__"))
    if not module or not qualname or "<" in qualname:
        problem = f"run='process' needs a function at the top of a module, not {qualname or repr(function)}"
    elif module == "__main__" and not hasattr(sys.modules[module], "__file__"):
        problem = "run='process' needs a function of a file, not of an interactive session"
    else:
        return
    raise TaskDefinitionError(task, f"{problem}, as another process has to import it")


def takes_context(function: Callable[..., Any]) -> bool:
    """Tell whether the first parameter is the context, by its name or by its annotation."""
    first = next(iter(inspect.signature(function).parameters.values()), None)
    if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        return False
    annotation = first.annotation
    if isinstance(annotation, str):
        named = annotation.rsplit(".", 1)[-1] == "Context"
    else:
        named = getattr(annotation, "__name__", "") == "Context"
    return first.name == "ctx" or named
