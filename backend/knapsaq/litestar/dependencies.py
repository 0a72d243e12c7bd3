"""Dependencies: the providers of tasks, as route handlers get them.

A provider of the worker's scope is made once in an application too: when a handler
first asks for it, until the application stops. A provider that asks for the job's
context is for tasks alone.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from litestar.di import Provide as LitestarProvide
from litestar.utils.predicates import is_async_callable

from knapsaq.providers import CONTEXT_NAMES, Provide, Step


class Shared:
    """The values that live as long as one application."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._stack: AsyncExitStack | None = None
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Finish what was made in the block at its end, newest first."""
        self._lock = asyncio.Lock()
        async with AsyncExitStack() as self._stack:
            yield
        self._values, self._stack = {}, None

    async def get(self, step: Step, needs: Mapping[str, Any]) -> Any:
        """Return a value, made of others the first time."""
        async with self._lock:
            if step.name not in self._values:
                if self._stack is None:
                    msg = f"dependency {step.name!r} lives as long as the application, which has not started"
                    raise RuntimeError(msg)
                self._values[step.name] = await step.make(self._stack, needs)
            return self._values[step.name]


def for_handlers(dependencies: Mapping[str, Any], shared: Shared) -> dict[str, LitestarProvide]:
    """Return the providers that route handlers can use, in Litestar's form.

    Args:
        dependencies: Functions, our ``Provide`` or Litestar's, by parameter name.
        shared: Holds what is made once.
    """
    unfit: set[str] = set(CONTEXT_NAMES - dependencies.keys())
    provides = {name: Provide.of(value) for name, value in dependencies.items()}
    while found := {
        name
        for name in provides.keys() - unfit
        if unfit & inspect.signature(provides[name].dependency).parameters.keys()
    }:
        unfit |= found
    return {
        name: value if isinstance(value, LitestarProvide) else _adapted(name, provides[name], shared)
        for name, value in dependencies.items()
        if name not in unfit
    }


def _adapted(name: str, provide: Provide, shared: Shared) -> LitestarProvide:
    function = provide.dependency
    if provide.scope == "worker":
        function = _made_once(name, provide, shared)
    if _is_generator(function) or is_async_callable(function):
        return LitestarProvide(function)
    return LitestarProvide(function, sync_to_thread=provide.sync_to_thread)


def _made_once(name: str, provide: Provide, shared: Shared) -> Any:
    """Return a provider with the same parameters that makes its value once."""
    step = Step(name, provide, tuple(inspect.signature(provide.dependency).parameters))

    # `wraps`, as Litestar reads the names and types of the parameters.
    @functools.wraps(provide.dependency)
    async def get(**needs: Any) -> Any:
        return await shared.get(step, needs)

    return get


def _is_generator(function: Any) -> bool:
    target = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    return inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target)
