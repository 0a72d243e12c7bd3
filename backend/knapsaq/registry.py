"""Registry: every task of a program, by name.

Where in the flow: importing the domains' ``tasks.py`` modules fills it, because
``@task`` and ``@scheduled_task`` add to it. The application looks tasks up to enqueue
them, the worker to run them. Importing does no I/O.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Never, Unpack, cast

from knapsaq.context import Context
from knapsaq.decorators import Decorator, TaskDecorator
from knapsaq.definitions import naming
from knapsaq.editing import Schedules
from knapsaq.errors import (
    DuplicateScheduleError,
    DuplicateTaskError,
    KnapsaqError,
    OptionError,
    RegistryError,
    TaskDefinitionError,
    UnknownTaskError,
)
from knapsaq.home import Sender
from knapsaq.middleware import Layers, Stack
from knapsaq.options import TaskKeywords, TaskOptions
from knapsaq.schedules import Misfire, Schedule, without_name
from knapsaq.signature import INJECTED
from knapsaq.task import Task
from knapsaq.timing import Duration
from knapsaq.wiring import AnyTask, Wiring


class Registry(Wiring):
    """Tasks by name, the providers of their parameters, and the connection through which they are sent.

    Most programs use the one that ``get_registry()`` returns.
    """

    def __init__(self) -> None:
        super().__init__()
        self._scheduled: dict[str, str] = {}
        self._dependencies: dict[str, Any] = {}
        self._senders: list[Sender] = []
        self.layers = Layers()

    def __repr__(self) -> str:
        return f"<Registry of {len(self._tasks)} tasks>"

    @property
    def task(self) -> Decorator:
        """The decorator ``@task`` of this registry."""
        return cast("Decorator", TaskDecorator(self._define, {}))

    def scheduled_task(
        self,
        *wrong: Never,
        cron: str | None = None,
        every: Duration | None = None,
        schedule: str | None = None,
        timezone: str | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        jitter: Duration = 0,
        misfire: Misfire = "once",
        misfire_window: Duration = 3600,
        overlap: bool = False,
        enabled: bool = True,
        **options: Unpack[TaskKeywords],
    ) -> Decorator:
        """Return the decorator that makes a task of a function and runs it by the clock.

        On top of another ``@scheduled_task`` or of ``@task`` it gives that task a further schedule.

        Args:
            wrong: Nothing; all is given by name.
            cron: Five fields: minute, hour, day of month, month, day of week; a sixth one is the second; or ``@daily``.
            every: Instead of ``cron``: seconds or a ``timedelta``, from 1 second on, between two fires.
            schedule: The schedule's name, unique in the registry; the task's name unless given.
            timezone: The IANA zone of the fields; ``Settings.timezone`` unless given.
            args: The positional arguments of the jobs that the schedule fires.
            kwargs: Their arguments by name.
            jitter: Seconds or a ``timedelta``, up to a day, by a part of which each job is delayed.
            misfire: What becomes of due times that passed while no worker ran: ``"skip"`` drops them, ``"once"`` runs
                the newest, ``"all"`` runs each and needs ``overlap=True``.
            misfire_window: Seconds or a ``timedelta``; what was missed longer ago is never run.
            overlap: Whether it fires while the job that it fired before has not ended.
            enabled: Whether it fires at all; with False somebody has to resume it.
            options: The options of ``@task``.

        Raises:
            OptionError: The expression, the zone or an option is wrong.
            InvalidArgumentsError: The task cannot take the arguments.
            DuplicateScheduleError: Another schedule has the name.
            TaskDefinitionError: A further schedule of the same task has no name of its own.
        """
        if wrong:
            raise without_name(wrong[0])
        given = {"cron": cron, "every": every, "name": schedule, "timezone": timezone, "args": args, "kwargs": kwargs}
        given |= {"jitter": jitter, "misfire": misfire, "misfire_window": misfire_window}
        given |= {"overlap": overlap, "enabled": enabled}

        return cast("Decorator", lambda function: self._schedule(function, given, options))

    def add(self, task: AnyTask) -> AnyTask:
        """Register a task.

        Raises:
            DuplicateTaskError: Another function has the name; the error shows both places.
        """
        super().add(task)
        self.layers.changed(in_use=bool(task.options.middleware))
        return task

    def get(self, name: str) -> AnyTask:
        """Return the task of that name.

        Raises:
            UnknownTaskError: There is none; the error names the nearest.
        """
        task = self.find(name)
        if task is None:
            raise UnknownTaskError(name, self.names())
        return task

    def find(self, name: str) -> AnyTask | None:
        """Return the task of that name, be it the route to it, or None."""
        task = self._tasks.get(name)
        return self.aliased(name) if task is None else task

    def find_schedule(self, name: str) -> tuple[AnyTask, Schedule] | None:
        """Return the schedule of that name with its task, or None."""
        task = self._tasks.get(self._scheduled.get(name, ""))
        return next(((task, one) for one in task.schedules if one.name == name), None) if task else None

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
        self._unwire()
        self._scheduled.clear()
        self._dependencies.clear()
        self.layers = Layers()

    @property
    def schedules(self) -> Schedules:
        """The schedules in Redis, to look at and to change; inside a connection."""
        return Schedules(self)

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
        task = self.find(name)
        return self.layers.stack(name, queue, task.options.middleware) if task else self.layers.stack("", queue, ())

    def surround(self, ctx: Context, queue: str) -> Context:
        """Give a job's context its task, if that is known, and the hooks that concern the job."""
        name = ctx.job.function
        ctx.stack = self.stack(name, queue)
        if task := self.find(name):
            ctx["task"] = task
        return ctx

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
        return self.add(self._build(f"@task of {_named(function)!r}", function, options))

    def _schedule(self, function: Any, given: Mapping[str, Any], options: Mapping[str, Any]) -> AnyTask:
        place = f"@scheduled_task of {function.name if isinstance(function, Task) else _named(function)!r}"
        # First, so that a misspelt option is named and not what is missing instead.
        if isinstance(function, Task):
            task = self._further(place, function, options)
        else:
            task = self._build(place, function, options)
        try:
            schedule = Schedule.build(place, **given)
        except OptionError as error:
            option = "schedule" if error.option == "name" else error.option
            raise OptionError(place, option, error.given, error.expected) from error.__cause__
        schedule = replace(schedule, name=schedule.name or task.name)
        with naming(task, schedule.name):
            _bind(task, schedule)
        self._refuse_taken(schedule.name, task)
        self.add(task)
        self._scheduled[schedule.name] = task.name
        task.schedules = (*task.schedules, schedule)
        return task

    def _further(self, place: str, task: AnyTask, options: Mapping[str, Any]) -> AnyTask:
        """Return a task that is to have a further schedule."""
        if task is not self._tasks.get(task.name):
            raise TaskDefinitionError(task.name, "it is a task of another registry; schedule it with that registry's")
        for option, value in options.items():
            raise OptionError(place, option, value, "nothing here: options of @task belong to the innermost decorator")
        return task

    def _refuse_taken(self, name: str, task: AnyTask) -> None:
        if any(schedule.name == name for schedule in task.schedules):
            problem = f"it has a schedule {name!r} already; give each further one a name with schedule=..."
            raise TaskDefinitionError(task.name, problem)
        known = self.find_schedule(name)
        if known is not None and known[0].name != task.name:
            raise DuplicateScheduleError(name, known[0].location, task.location)

    def _build(self, place: str, function: Any, options: Mapping[str, Any]) -> AnyTask:
        if isinstance(function, Task):
            raise TaskDefinitionError(function.name, "it is a task already; decorate the function once")
        if not callable(function):
            raise TaskDefinitionError(repr(function), "a task is made of a function")
        return Task(function, TaskOptions.build(place, options), home=self)


def _bind(task: AnyTask, schedule: Schedule) -> None:
    """Refuse arguments that the task cannot take; what is not given may be left to a provider not known yet."""
    signature = task.signature
    by_position = [
        p.name for p in signature.parameters.values() if p.kind in _BY_POSITION and p.default is not INJECTED
    ]
    given = {*by_position[: len(schedule.args)], *schedule.kwargs}
    if not (signature.open_ended or schedule.kwargs.keys() <= signature.parameters.keys()):
        given = {*signature.parameters}  # so that the error lists them
    signature.bind(schedule.args, schedule.kwargs, signature.injectable(signature.parameters.keys() - given))


def _named(function: object) -> str:
    return str(getattr(function, "__name__", function))


_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


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
