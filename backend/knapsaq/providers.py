"""Providers: functions that make what a task asks for by parameter name.

Where in the flow: the worker plans once, when it starts, which providers each task
needs and in which order; so a missing one is found before any job runs. For each
job the executor walks the plan. A generator is finished after the job, also when
the job has failed (it then sees the exception) or was cancelled. The job's time
limit is over by then, so each clean-up has one of its own.

The dictionary is Litestar's: names to functions or to ``litestar.di.Provide``, so one
dictionary serves route handlers and tasks. Nothing here imports Litestar.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal

from knapsaq.context import Context
from knapsaq.errors import MissingProviderError, ProviderError
from knapsaq.task import Task

Scope = Literal["job", "worker"]
CONTEXT_NAMES = frozenset({"ctx", "context"})
CLEANUP_SECONDS = 30.0
"""How long one provider's clean-up may wait before it is cancelled, so that no slot is kept for ever."""


@dataclass(frozen=True, slots=True)
class Provide:
    """A provider with a scope other than its default.

    Attributes:
        dependency: A function, coroutine function, generator function or asynchronous generator function. Its
            parameters are other providers' names, or ``ctx`` for the context.
        scope: ``"job"`` makes a value for each job, ``"worker"`` one for the worker's life.
        sync_to_thread: Whether a plain function is called in a thread, as it blocks.
    """

    dependency: Callable[..., Any]
    scope: Scope = "job"
    sync_to_thread: bool = False

    @classmethod
    def of(cls, value: Any) -> Provide:
        """Return what a dictionary of dependencies holds as a ``Provide``: ours, Litestar's, or a bare function."""
        if isinstance(value, cls):
            return value
        dependency = getattr(value, "dependency", value)
        if not callable(dependency):
            msg = f"{value!r} provides nothing; give a function or Provide(function)"
            raise ProviderError(msg)
        dependency = getattr(dependency, "func", dependency) if _wrapped_by_litestar(dependency) else dependency
        scope: Scope = "worker" if getattr(value, "use_cache", False) else "job"
        return cls(dependency, scope, bool(getattr(value, "sync_to_thread", False)))


@dataclass(frozen=True, slots=True)
class Step:
    """One provider in a plan: which value it makes, and of which others."""

    name: str
    provide: Provide
    needs: tuple[str, ...]

    async def make(self, stack: AsyncExitStack, values: Mapping[str, Any], owner: str = "") -> Any:
        """Return the provider's value; its clean-up is left with ``stack``, and ``owner`` begins its error."""
        function = self.provide.dependency
        given = {need: values[need] for need in self.needs}
        if inspect.isasyncgenfunction(function):
            manager = asynccontextmanager(function)(**given)
            value = await manager.__aenter__()
            stack.push_async_exit(partial(_finish, manager, f"{owner}the clean-up of {self.name!r}"))
            return value
        if inspect.isgeneratorfunction(function):
            return stack.enter_context(contextmanager(function)(**given))
        if self.provide.sync_to_thread:
            import anyio.to_thread  # noqa: PLC0415 - most workers have no such provider

            return await anyio.to_thread.run_sync(lambda: function(**given))
        value = function(**given)
        return await value if inspect.isawaitable(value) else value


@dataclass(frozen=True, slots=True)
class Plan:
    """How the injected parameters of one task are made."""

    task: str
    steps: tuple[Step, ...]
    wanted: tuple[str, ...]

    async def resolve(self, ctx: Context, stack: AsyncExitStack, shared: Mapping[str, Any]) -> dict[str, Any]:
        """Return the injected arguments of one job; ``shared`` holds the worker's own values."""
        values = {**shared, **dict.fromkeys(CONTEXT_NAMES, ctx)}
        for step in self.steps:
            values[step.name] = await step.make(stack, values, f"task {self.task!r}: ")
        return {name: values[name] for name in self.wanted}


NOTHING = Plan("", (), ())


class Injector:
    """All plans of a worker, and the values that live as long as it does.

    Args:
        tasks: The tasks that the worker may run.

    Raises:
        MissingProviderError: A task asks for something that nobody provides.
        ProviderError: Providers need each other in a circle, or one of the worker's needs one of a job.
    """

    def __init__(self, tasks: Iterable[Task[..., Any, Any]]) -> None:
        self._shared_steps: dict[str, Step] = {}
        self._plans = {task.name: self._plan(task) for task in tasks}
        self._shared: dict[str, Any] = {}
        self._stack = AsyncExitStack()

    def plan(self, task: Task[..., Any, Any]) -> Plan:
        """Return the plan of a task."""
        plan = self._plans.get(task.name)
        if plan is None:
            plan = self._plans[task.name] = self._plan(task)
        return plan

    @property
    def shared(self) -> Mapping[str, Any]:
        """The values that live as long as the worker, by name."""
        return self._shared

    async def open(self) -> None:
        """Make the worker's own values.

        Raises:
            ProviderError: A provider raised; it is named, with the cause chained.
        """
        for name, step in self._shared_steps.items():
            try:
                self._shared[name] = await step.make(self._stack, self._shared)
            except Exception as error:
                raise ProviderError(f"provider {name!r} failed: {error!r}") from error

    async def close(self) -> None:
        """Finish the worker's own values, newest first."""
        self._shared = {}
        await self._stack.aclose()

    def _plan(self, task: Task[..., Any, Any]) -> Plan:
        providers = task.providers
        wanted = tuple(sorted(task.injected))
        if not wanted:
            return NOTHING
        steps: dict[str, Step] = {}
        for name in wanted:
            self._collect(task.name, name, providers, steps, ())
        return Plan(task.name, tuple(step for step in steps.values() if step.provide.scope == "job"), wanted)

    def _collect(
        self, task: str, name: str, providers: Mapping[str, Any], steps: dict[str, Step], path: tuple[str, ...]
    ) -> Step:
        if name in path:
            msg = f"task {task!r}: providers need each other in a circle: {' -> '.join((*path, name))}"
            raise ProviderError(msg)
        if name not in providers:
            raise MissingProviderError(task, name, tuple(providers))
        if name in steps:
            return steps[name]
        provide = Provide.of(providers[name])
        needs = tuple(_needs(provide.dependency, providers))
        for need in needs:
            if need in CONTEXT_NAMES and provide.scope == "job":
                continue
            step = self._collect(task, need, providers, steps, (*path, name))
            if provide.scope == "worker" and step.provide.scope == "job":
                msg = f"provider {name!r} lives as long as the worker, but needs {need!r}, which is made for each job"
                raise ProviderError(msg)
        steps[name] = Step(name, provide, needs)
        if provide.scope == "worker":
            self._share(task, steps[name])
        return steps[name]

    def _share(self, task: str, step: Step) -> None:
        known = self._shared_steps.setdefault(step.name, step)
        if known.provide.dependency is not step.provide.dependency:
            msg = f"task {task!r}: {step.name!r} lives as long as the worker, but two tasks provide it differently"
            raise ProviderError(msg)


async def _finish(
    manager: AbstractAsyncContextManager[Any],
    what: str,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> bool | None:
    """Finish one provider's value within the time for that; the others' clean-ups have theirs."""
    try:
        async with asyncio.timeout(CLEANUP_SECONDS) as limit:
            return await manager.__aexit__(kind, error, trace)
    except TimeoutError as late:
        if not limit.expired():
            raise
        msg = f"{what} took longer than {CLEANUP_SECONDS:g} s and was cancelled"
        raise ProviderError(msg) from late


def _needs(function: Callable[..., Any], providers: Mapping[str, Any]) -> Iterable[str]:
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is parameter.empty or name in providers:
            yield name


def _wrapped_by_litestar(function: object) -> bool:
    """Tell Litestar's thread wrapper around a plain function, which has the function as ``func``."""
    return type(function).__name__ == "AsyncCallable" and hasattr(function, "func")
