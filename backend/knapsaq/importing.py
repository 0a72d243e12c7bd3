"""Importing: what a dotted path names, or why it names nothing.

Where in the flow: when a program starts, the routes and settings that it was given
as text are looked up here. An error says at which part of the path the way ends,
and what stands there instead.
"""

from __future__ import annotations

import importlib
import pkgutil
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from knapsaq.errors import KnapsaqError, RegistryError, closest, nearest

MISSING = object()


def find(path: str) -> Any:
    """Import what a dotted path names: a module, or something in one.

    Where a package has a function and a module of one name, the last part of a path means the function.

    Raises:
        RegistryError: It names nothing: no such module, a module that cannot be imported, or nothing of that name in
            it. The text says which, with the nearest name.
    """
    first, *names = path.split(".")
    here, found = first, _submodule(first)
    if found is MISSING:
        raise RegistryError(_no_module(first))
    for number, name in enumerate(names, start=1):
        inner = _member(found, here, name, last=number == len(names))
        if inner is MISSING:
            kind = "module" if isinstance(found, ModuleType) else "object"
            raise RegistryError(f"{kind} {here!r} has no {name!r}; {nearest(name, _names_in(found))}")
        here, found = f"{here}.{name}", inner
    return found


def failure(error: BaseException) -> str:
    """Return what a module's import raised, with file and line of the program's own."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if len(frames) > 1 else ""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} at {error.filename}:{error.lineno}"
    return f"{type(error).__name__}: {error}{place}"


def _member(found: Any, here: str, name: str, *, last: bool) -> Any:
    """Return what ``found`` holds under a name, or ``MISSING``."""
    try:
        own = getattr(found, name, MISSING)
    except Exception as error:
        raise RegistryError(f"{name!r} of {here!r} cannot be had: {failure(error)}") from error
    if not isinstance(found, ModuleType) or (last and callable(own)):
        return own
    module = _submodule(f"{here}.{name}")
    return own if module is MISSING else module


def _submodule(name: str) -> Any:
    """Import a module; ``MISSING`` if there is none of that name."""
    try:
        return importlib.import_module(name)
    except KnapsaqError as error:
        raise RegistryError(f"module {name!r} cannot be imported: {error}") from error
    except ModuleNotFoundError as error:
        if error.name == name:
            return MISSING
        raise RegistryError(f"module {name!r} cannot be imported: {failure(error)}") from error
    except (Exception, SystemExit) as error:
        raise RegistryError(f"module {name!r} cannot be imported: {failure(error)}") from error


def _no_module(name: str) -> str:
    here = Path()
    folders = (folder.name for folder in here.iterdir() if folder.is_dir())  # a package needs no __init__.py
    close = closest(name, [*(module.name for module in pkgutil.iter_modules()), *folders])
    hint = f"did you mean {close!r}?" if close else f"it is neither installed nor in {here.absolute()}"
    return f"there is no module {name!r}; {hint}"


def _names_in(found: Any) -> set[str]:
    """Return the names that a route may mean: functions, classes and modules."""
    own = getattr(found, "__dict__", {})
    names = {name for name, value in own.items() if not name.startswith("_") and callable(value)}
    return names | {module.name for module in pkgutil.iter_modules(getattr(found, "__path__", None) or [])}
