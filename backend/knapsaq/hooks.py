"""Hooks: the methods that a middleware may have, and the check of what claims to be one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

HOOKS: Mapping[str, tuple[str, ...]] = {
    "before_enqueue": ("job",),
    "around": ("ctx", "call_next"),
    "on_success": ("ctx", "result"),
    "on_failure": ("ctx", "error"),
    "on_retry": ("ctx", "error", "after"),
    "on_revoked": ("ctx", "reason"),
}
"""Their names, and what each is called with."""

EXPECTED = "an object, or a list of them, with any of the methods " + ", ".join(
    f"{name}({', '.join(parameters)})" for name, parameters in HOOKS.items()
)


class UnfitError(ValueError):
    """An object is no middleware; the text says why."""


def middlewares(value: Any) -> tuple[Any, ...]:
    """Return what an option holds as middlewares, each checked.

    Raises:
        UnfitError: One cannot be a middleware.
    """
    found = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for middleware in found:
        _check(middleware)
    return found


def _check(middleware: Any) -> None:
    shown = type(middleware).__name__
    if isinstance(middleware, type):
        raise UnfitError(f"{middleware.__name__} is a class; give an object of it, {middleware.__name__}()")
    names = {name for name in dir(type(middleware)) if not name.startswith("_")}
    for name in sorted(names - HOOKS.keys()):
        import difflib  # noqa: PLC0415 - only mistakes need it

        if close := difflib.get_close_matches(name, HOOKS, n=1, cutoff=0.8):
            raise UnfitError(f"{shown}.{name} would never be called; did you mean {close[0]!r}?")
    hooks = {name: hook for name in HOOKS if (hook := getattr(middleware, name, None)) is not None}
    if not hooks:
        raise UnfitError(f"{shown} has none of them")
    for name, hook in hooks.items():
        if not callable(hook) or not _takes(hook, HOOKS[name]):
            raise UnfitError(f"{shown}.{name} has to be a method that takes ({', '.join(HOOKS[name])})")
    if "around" in hooks and not inspect.iscoroutinefunction(hooks["around"]):
        raise UnfitError(f"{shown}.around has to be an `async def`; it wraps plain functions as well")


def _takes(hook: Any, parameters: tuple[str, ...]) -> bool:
    try:
        inspect.signature(hook).bind(*parameters)
    except TypeError:
        return False
    except ValueError:  # it has no signature that could be looked at
        return True
    return True
