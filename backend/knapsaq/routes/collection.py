"""Collection: routes with their queues and schedules, as a program writes them down.

Where in the flow: the first step. Nothing is imported here; what can be checked
without that, the form of a route, a queue's name and a schedule's fields, is.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Self, TypeAlias

from knapsaq.checks import NAME_PATTERN, queue_name
from knapsaq.errors import OptionError
from knapsaq.registry import Registry
from knapsaq.routes.loading import load
from knapsaq.schedules import Schedule
from knapsaq.task import MAIN_MODULES

RouteSchedule: TypeAlias = str | timedelta
"""A cron expression, such as ``crontab(...)`` gives, or an interval."""


class TaskRoutes:
    """Tasks by the dotted paths of their functions, with queues and schedules.

    A route leads to a function, which becomes a task named by the route; to a task, which keeps its name and is found
    by its route too; or to a module, whose tasks are taken. The name of a task is a route as well. All are imported
    when a worker or an application starts.

    Every instance has collections of its own, and every method that registers returns the instance.
    """

    def __init__(self) -> None:
        self._tasks: list[str] = []
        self._tasks_routes: dict[str, dict[str, str]] = {}
        self._periodic_tasks: dict[str, dict[str, Any]] = {}
        caller = sys._getframe(1)  # noqa: SLF001 - as `warnings` and `logging` find who calls
        name = str(caller.f_globals.get("__name__", ""))
        self._module = f"file:{caller.f_code.co_filename}" if name in MAIN_MODULES else name

    def __repr__(self) -> str:
        return f"<TaskRoutes of {len(self._tasks)} routes, {len(self._periodic_tasks)} of them by the clock>"

    def register(self, route: str, queue: str | None = None) -> Self:
        """Register a task.

        Args:
            route: The dotted path of its function, such as ``"shop.tasks.send_email"``.
            queue: Its queue. Without one it keeps the queue that it has: of an earlier call, of its decorator, or of
                ``Settings.task_routes``.

        Raises:
            OptionError: The route is no dotted path, or the queue's name is none.
        """
        _check_route(route)
        if queue is not None:
            _check_queue(route, queue)
        if route not in self._tasks_routes:
            self._tasks.append(route)
            self._tasks_routes[route] = {}
        if queue is not None:
            self._tasks_routes[route] = {"queue": queue}
        return self

    def bulk_register(self, routes: Sequence[str], queue: str | None = None) -> Self:
        """Register several tasks, all in one queue if one is given.

        Raises:
            OptionError: A route or the queue is wrong; nothing was registered.
        """
        given = _several("routes", routes, "a list of dotted paths")
        for route in given:
            _check_route(route)
        for route in given:
            self.register(route, queue)
        return self

    def register_periodic_task(
        self,
        route: str,
        schedule: RouteSchedule,
        queue: str | None = None,
        *values: Any,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> Self:
        """Register a task that runs by the clock; a later schedule of the same name takes its place.

        Args:
            route: The dotted path of its function.
            schedule: ``crontab(...)`` or another cron expression, in the worker's time zone; or the interval, a
                ``timedelta`` from 1 second on.
            queue: Its queue; see ``register``.
            values: The positional arguments of each run, behind the queue.
            args: The same as a list, for a call that names its other arguments.
            kwargs: The arguments of each run by name.
            name: The schedule's name, the route unless given; a task with several schedules needs one for each.

        Raises:
            OptionError: Something is wrong; nothing was registered.
        """
        place = f"register_periodic_task of {route!r}"
        if values and args is not None:
            raise OptionError(place, "args", args, "either values behind the queue or args=, not both")
        _check_route(route)
        _check_schedule(place, schedule)
        entry = route if name is None else name
        when = {"every" if isinstance(schedule, timedelta) else "cron": schedule}
        given = values or tuple(_several("args", () if args is None else args, "a list of arguments", place))
        Schedule.build(place, name=entry, args=given, kwargs=kwargs, **when)
        self.register(route, queue)
        self._periodic_tasks[entry] = {"task": route, "schedule": schedule, "args": given}
        if kwargs:
            self._periodic_tasks[entry]["kwargs"] = dict(kwargs)
        return self

    def bulk_register_periodic_task(
        self, tasks: Sequence[tuple[str, RouteSchedule, Sequence[Any]]], queue: str | None = None
    ) -> Self:
        """Register several tasks that run by the clock.

        Args:
            tasks: For each its route, its schedule and a list of its positional arguments.
            queue: The queue of all of them.

        Raises:
            OptionError: One of them is wrong, and says so; nothing was registered.
        """
        checked = TaskRoutes()
        for entry in _several("tasks", tasks, "a list of (route, schedule, args)"):
            if not isinstance(entry, (tuple, list)) or len(entry) != 3:  # noqa: PLR2004 - as the sentence says
                raise OptionError("bulk_register_periodic_task", "tasks", entry, "(route, schedule, args) for each")
            route, schedule, args = entry
            if route in checked.get_periodic_tasks():
                expected = "each route once; give further schedules of one a name with register_periodic_task(name=...)"
                raise OptionError("bulk_register_periodic_task", "tasks", entry, expected)
            checked.register_periodic_task(route, schedule, queue, args=args)
        for name, entry in checked._periodic_tasks.items():
            self.register(entry["task"], queue)
            self._periodic_tasks[name] = entry
        return self

    def get_tasks(self) -> list[str]:
        """Return all routes in the order of their registration."""
        return list(self._tasks)

    def get_tasks_routes(self) -> dict[str, dict[str, str]]:
        """Return for each route ``{"queue": name}``, or nothing where no queue was given."""
        return {route: dict(where) for route, where in self._tasks_routes.items()}

    def get_periodic_tasks(self) -> dict[str, dict[str, Any]]:
        """Return the schedules by name: ``"task"``, ``"schedule"`` as given, ``"args"``, and ``"kwargs"`` if any."""
        return {name: dict(entry) for name, entry in self._periodic_tasks.items()}

    @property
    def queues(self) -> Collection[str]:
        """The queues that are named, each once."""
        return tuple(dict.fromkeys(where["queue"] for where in self._tasks_routes.values() if where))

    def load(self, registry: Registry) -> Mapping[str, str]:
        """Import the routes and register the tasks in a registry, which calls this when a program starts.

        Returns:
            For each route that leads to no task, or whose schedule does not fit it, the reason.
        """
        return load(registry, self.get_tasks(), self.get_tasks_routes(), self.get_periodic_tasks(), self._module)


def _check_route(route: object) -> None:
    if not isinstance(route, str) or not NAME_PATTERN.fullmatch(route):
        expected = "the dotted path of a function, such as 'shop.tasks.send_email', of at most 200 characters"
        raise OptionError("TaskRoutes", "route", route, expected)


def _check_schedule(place: str, schedule: object) -> None:
    if not isinstance(schedule, (str, timedelta)):
        expected = "crontab(...) or another cron expression, or a timedelta from 1 second on"
        raise OptionError(place, "schedule", schedule, expected)


def _check_queue(route: str, queue: object) -> None:
    try:
        queue_name(queue)
    except ValueError:
        expected = "1 to 64 letters, digits or _ . - { }"
        raise OptionError(f"route {route!r}", "queue", queue, expected) from None


def _several(option: str, given: Any, expected: str, place: str = "TaskRoutes") -> list[Any]:
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise OptionError(place, option, given, expected)
    return list(given)
