"""Registry: every task of a program, by name.

Where in the flow: importing the domains' ``tasks.py`` modules fills it, because
``@task`` and ``@scheduled_task`` add to it. The application looks tasks up to enqueue
them, the worker to run them. Importing does no I/O.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from saq.types import Context as SaqContext

from knapsaq.context import Context
from knapsaq.errors import DuplicateTaskError, RegistryError, TaskDefinitionError, UnknownTaskError
from knapsaq.options import TaskOptions
from knapsaq.schedules import Schedule
from knapsaq.task import Sender, Task

P = ParamSpec("P")
R = TypeVar("R")
AnyTask = Task[..., Any, Any]


class Decorator(Protocol):
    """What turns a function into a task; the type of the task follows from the function's."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[Context, P], Awaitable[R]], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], Awaitable[R]]]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[SaqContext, P], Awaitable[R]], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], Awaitable[R]]]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[Context, P], R], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], R]]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[SaqContext, P], R], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], R]]: ...
    @overload
    def __call__(self, function: Callable[P, Awaitable[R]], /) -> Task[P, R, Callable[P, Awaitable[R]]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R, Callable[P, R]]: ...


class TaskDecorator(Decorator, Protocol):
    """``@task`` itself: with or without options."""

    @overload  # type: ignore[override]
    def __call__(
        self, function: Callable[Concatenate[Context, P], Awaitable[R]], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], Awaitable[R]]]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[SaqContext, P], Awaitable[R]], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], Awaitable[R]]]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[Context, P], R], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], R]]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[SaqContext, P], R], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], R]]: ...
    @overload
    def __call__(self, function: Callable[P, Awaitable[R]], /) -> Task[P, R, Callable[P, Awaitable[R]]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R, Callable[P, R]]: ...
    @overload
    def __call__(self, /, **options: Any) -> Decorator: ...


class Registry:
    """Tasks by name, the providers of their parameters, and the connection through which they are sent.

    Most programs use the one that ``get_registry()`` returns.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, AnyTask] = {}
        self._dependencies: dict[str, Any] = {}
        self._senders: list[Sender] = []

    def __repr__(self) -> str:
        return f"<Registry of {len(self._tasks)} tasks>"

    @property
    def task(self) -> TaskDecorator:
        """The decorator ``@task`` of this registry."""
        return cast("TaskDecorator", self._decorate)

    def scheduled_task(
        self, *, cron: str, timezone: str | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Decorator:
        """Return the decorator that makes a task of a function and runs it by the clock.

        Args:
            cron: Five fields: minute, hour, day of month, month, day of week.
            timezone: The IANA zone of the fields; ``Settings.timezone`` unless given.
            kwargs: The arguments of the jobs that the schedule fires.
            options: The options of ``@task``.

        Raises:
            OptionError: The expression, the zone or an option is wrong.
            InvalidArgumentsError: The task cannot take ``kwargs``.
        """

        def decorate(function: Callable[..., Any]) -> AnyTask:
            place = f"@scheduled_task of {_named(function)}"
            schedule = Schedule.build(place, cron=cron, timezone=timezone, kwargs=kwargs)
            task = self._build(place, function, options, (schedule,))
            task.signature.bind((), schedule.kwargs, task.injected)
            return self.add(task)

        return cast("Decorator", decorate)

    def add(self, task: AnyTask) -> AnyTask:
        """Register a task.

        Raises:
            DuplicateTaskError: Another function has the name; the error shows both places.
        """
        known = self._tasks.get(task.name)
        if known is not None and known.location != task.location:
            raise DuplicateTaskError(task.name, known.location, task.location)
        self._tasks[task.name] = task
        return task

    def get(self, name: str) -> AnyTask:
        """Return the task of that name.

        Raises:
            UnknownTaskError: There is none; the error names the nearest.
        """
        task = self._tasks.get(name)
        if task is None:
            raise UnknownTaskError(name, self.names())
        return task

    def find(self, name: str) -> AnyTask | None:
        """Return the task of that name, or None."""
        return self._tasks.get(name)

    def get_all_tasks(self) -> list[AnyTask]:
        """Return all tasks in the order of their definition."""
        return list(self._tasks.values())

    def get_scheduled_tasks(self) -> list[AnyTask]:
        """Return the tasks that have a schedule."""
        return [task for task in self._tasks.values() if task.schedules]

    def names(self) -> tuple[str, ...]:
        """Return the names of all tasks, sorted."""
        return tuple(sorted(self._tasks))

    def autodiscover(self, package: str) -> list[str]:
        """Import every ``tasks`` module at or below a package and return their names.

        Raises:
            RegistryError: There is no such package; or a module of it fails to import, which is named, with the
                cause chained.
        """
        found = [name for name in _modules(package) if name.rsplit(".", 1)[-1] == "tasks"]
        for name in found:
            _import(name)
        return found

    def clear(self) -> None:
        """Forget all tasks and providers; for tests."""
        self._tasks.clear()
        self._dependencies.clear()

    @property
    def dependencies(self) -> Mapping[str, Any]:
        """The providers that every task may ask for, by parameter name."""
        return self._dependencies

    def provide(self, dependencies: Mapping[str, Any]) -> None:
        """Add providers that every task may ask for by parameter name; a later one replaces an earlier."""
        self._dependencies.update(dependencies)

    @property
    def sender(self) -> Sender | None:
        """The newest open connection, or None."""
        return self._senders[-1] if self._senders else None

    @contextmanager
    def bound(self, sender: Sender) -> Iterator[None]:
        """Send the tasks' jobs through ``sender`` while the block runs."""
        self._senders.append(sender)
        try:
            yield
        finally:
            self._senders.remove(sender)

    def _decorate(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        if function is None:
            return lambda decorated: self._decorate(decorated, **options)
        return self.add(self._build(f"@task of {_named(function)}", function, options, ()))

    def _build(
        self, place: str, function: Any, options: Mapping[str, Any], schedules: tuple[Schedule, ...]
    ) -> AnyTask:
        if isinstance(function, Task):
            raise TaskDefinitionError(function.name, "it is a task already; decorate the function once")
        if not callable(function):
            raise TaskDefinitionError(repr(function), "a task is made of a function")
        return Task(function, TaskOptions.build(place, options), home=self, schedules=schedules)


def _named(function: object) -> str:
    return repr(getattr(function, "__name__", function))


def _modules(package: str) -> Iterator[str]:
    """Yield the package's name and those of the modules below it, importing packages on the way."""
    yield package
    root = _import(package)
    for found in pkgutil.walk_packages(getattr(root, "__path__", ()), f"{package}.", onerror=_import):
        yield found.name


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        msg = f"module {name!r} cannot be imported: {error}; check the name and that it is on the Python path"
        raise RegistryError(msg) from error


_registry = Registry()


def get_registry() -> Registry:
    """Return the program's registry, which ``@task`` fills."""
    return _registry


task: TaskDecorator = _registry.task
scheduled_task = _registry.scheduled_task
