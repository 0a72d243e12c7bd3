"""Registry: every task of a program, by name.

Where in the flow: importing the domains' ``tasks.py`` modules fills it, because
``@task`` and ``@scheduled_task`` add to it. The application looks tasks up to enqueue
them, the worker to run them. Importing does no I/O.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from saq.types import Context as SaqContext

from knapsaq.context import Context
from knapsaq.errors import DuplicateTaskError, KnapsaqError, RegistryError, TaskDefinitionError, UnknownTaskError
from knapsaq.middleware import Layers, Stack
from knapsaq.options import TaskKeywords, TaskOptions, merged, preset
from knapsaq.schedules import Schedule
from knapsaq.task import Sender, Task

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
X = TypeVar("X")
X_contra = TypeVar("X_contra", contravariant=True)
K = TypeVar("K", Context, SaqContext)
AnyTask = Task[..., Any, Any]


class TakesCtx(Protocol[X_contra, P, R_co]):
    """A function whose first parameter is the context, by its name."""

    def __call__(self, ctx: X_contra, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run it."""


class TakesContext(Protocol[X_contra, P, R_co]):
    """Likewise, by its other name and its annotation."""

    def __call__(self, context: X_contra, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run it."""


class LeavesCtx(Protocol[X_contra, P, R_co]):
    """Likewise, for a function that does not look at it."""

    def __call__(self, _ctx: X_contra, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run it."""


class Decorator(Protocol):
    """``@task``: with or without options. The type of the task follows from the function's.

    Type checkers know the context under the names ``ctx``, ``_ctx`` and ``context``. Protocols with its name, and not
    ``Concatenate``, so that all overloads that fit infer the same function type: else mypy takes every function whose
    annotations hold an ``Any``, such as ``dict[str, Any]``, for ambiguous and gives up on its task's type.
    """

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine function is also a function
        self, function: TakesCtx[X, P, Coroutine[Any, Any, R]], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], Coroutine[Any, Any, R]]]: ...
    @overload
    def __call__(
        self, function: TakesCtx[X, P, R], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], R]]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: LeavesCtx[K, P, Coroutine[Any, Any, R]], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], Coroutine[Any, Any, R]]]: ...
    @overload
    def __call__(
        self, function: LeavesCtx[K, P, R], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], R]]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: TakesContext[K, P, Coroutine[Any, Any, R]], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], Coroutine[Any, Any, R]]]: ...
    @overload
    def __call__(
        self, function: TakesContext[K, P, R], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], R]]: ...
    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Task[P, R, Callable[P, Coroutine[Any, Any, R]]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R, Callable[P, R]]: ...
    @overload
    def __call__(self, /, **options: Unpack[TaskKeywords]) -> Decorator: ...

    def preset(self, **options: Unpack[TaskKeywords]) -> Decorator:
        """Return a decorator like this one with other defaults; presets are made of presets, too.

        An option of the task wins over the preset's. ``middleware`` is added inside of the preset's, ``dependencies``
        are added by name, everything else replaces. None is as if not given.

        Raises:
            OptionError: An option is unknown or out of range, or is ``name``.
        """


class _TaskDecorator:
    """What ``Decorator`` describes.

    Args:
        define: Makes a task of a function and options, and registers it.
        defaults: Options of a preset, checked.
    """

    def __init__(self, define: Callable[[Any, Mapping[str, Any]], AnyTask], defaults: Mapping[str, Any]) -> None:
        self._define, self._defaults = define, defaults

    def __call__(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        options = merged(self._defaults, options)
        if function is None:
            return lambda decorated: self._define(decorated, options)
        return self._define(function, options)

    def preset(self, **options: Any) -> _TaskDecorator:
        return _TaskDecorator(self._define, preset("task.preset()", self._defaults, options))


class Registry:
    """Tasks by name, the providers of their parameters, and the connection through which they are sent.

    Most programs use the one that ``get_registry()`` returns.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, AnyTask] = {}
        self._dependencies: dict[str, Any] = {}
        self._senders: list[Sender] = []
        self.layers = Layers()

    def __repr__(self) -> str:
        return f"<Registry of {len(self._tasks)} tasks>"

    @property
    def task(self) -> Decorator:
        """The decorator ``@task`` of this registry."""
        return cast("Decorator", _TaskDecorator(self._define, {}))

    def scheduled_task(
        self,
        *,
        cron: str,
        timezone: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[TaskKeywords],
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
            task.signature.bind((), schedule.kwargs, task.signature.injectable(_left_open(task, schedule)))
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
        self.layers.changed(in_use=bool(task.options.middleware))
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
        """Import every ``tasks`` module at or below a package and return their names, sorted.

        Raises:
            RegistryError: There is no such package, or nothing to find in it; or a module of it fails to import,
                which is named, with the cause chained.
        """
        found = sorted(_task_modules(package))
        if not found:
            raise RegistryError(f"package {package!r} has no module named 'tasks'; create one, or check the name")
        for name in found:
            _import(name)
        return found

    def clear(self) -> None:
        """Forget all tasks, providers and middlewares; for tests."""
        self._tasks.clear()
        self._dependencies.clear()
        self.layers = Layers()

    @property
    def dependencies(self) -> Mapping[str, Any]:
        """The providers that every task may ask for, by parameter name."""
        return self._dependencies

    def provide(self, dependencies: Mapping[str, Any]) -> None:
        """Add providers that every task may ask for by parameter name; a later one replaces an earlier."""
        self._dependencies.update(dependencies)

    def use(self, *middleware: object, queue: str | None = None) -> None:
        """Add middlewares around all jobs, or around those of one queue; see ``Middleware``.

        Each is inside of those that were added before; all are outside of the tasks' own.

        Args:
            middleware: Objects with any of the hooks.
            queue: The queue's name; all queues unless given.

        Raises:
            OptionError: One cannot be a middleware; the error names the legal methods.
        """
        self.layers.add(middleware, queue)

    def stack(self, name: str, queue: str) -> Stack:
        """Return the hooks around the jobs of a task, known or not, in a queue."""
        task = self._tasks.get(name)
        return self.layers.stack(name, queue, task.options.middleware) if task else self.layers.stack("", queue, ())

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

    def _define(self, function: Callable[..., Any], options: Mapping[str, Any]) -> AnyTask:
        return self.add(self._build(f"@task of {_named(function)}", function, options, ()))

    def _build(self, place: str, function: Any, options: Mapping[str, Any], schedules: tuple[Schedule, ...]) -> AnyTask:
        if isinstance(function, Task):
            raise TaskDefinitionError(function.name, "it is a task already; decorate the function once")
        if not callable(function):
            raise TaskDefinitionError(repr(function), "a task is made of a function")
        return Task(function, TaskOptions.build(place, options), home=self, schedules=schedules)


def _left_open(task: AnyTask, schedule: Schedule) -> frozenset[str]:
    """Return what a schedule does not give; a provider that is not known yet may fill it."""
    return frozenset(task.signature.parameters) - schedule.kwargs.keys()


def _named(function: object) -> str:
    return repr(getattr(function, "__name__", function))


def _task_modules(package: str) -> Iterator[str]:
    """Yield the names of the ``tasks`` modules and packages at or below a package, with or without ``__init__.py``."""
    for root in map(Path, getattr(_import(package), "__path__", ())):
        for file in (*root.rglob("tasks.py"), *root.rglob("tasks/__init__.py")):
            parts = file.relative_to(root).with_suffix("").parts
            names = parts[:-1] if parts[-1] == "__init__" else parts
            if all(name.isidentifier() for name in names):
                yield ".".join((package, *names))


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except KnapsaqError:
        raise  # a wrong option or a name used twice: it says where
    except ImportError as error:
        msg = f"module {name!r} cannot be imported: {error}; check the name and that it is on the Python path"
        raise RegistryError(msg) from error
    except Exception as error:
        msg = f"module {name!r} cannot be imported, as it raises {error!r}"
        raise RegistryError(msg) from error


_registry = Registry()


def get_registry() -> Registry:
    """Return the program's registry, which ``@task`` fills."""
    return _registry


task: Decorator = _registry.task
scheduled_task = _registry.scheduled_task


def refuse_duplicates(functions: Collection[Any]) -> None:
    """Refuse two functions of one name, of which SAQ's worker keeps one or the other.

    Args:
        functions: What a worker is given: functions, or names with functions.

    Raises:
        DuplicateTaskError: Two of them have one name.
    """
    named: dict[str, Any] = {}
    for entry in functions:
        name, function = entry if isinstance(entry, tuple) else (entry.__qualname__, entry)
        if named.setdefault(name, function) is not function:
            raise DuplicateTaskError(name, repr(named[name]), repr(function))
