"""Loading: routes become tasks.

Where in the flow: a registry that is prepared for a start comes here. First all
routes are imported, as one may name what another one's module defines; then the
tasks are registered, with their queues and schedules.

Invariants, each a test in ``tests/fundamentals/test_string_routes.py``:

* loading twice changes nothing;
* each wrong route is told with its reason, and no right one among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from types import ModuleType
from typing import Any

from knapsaq.errors import KnapsaqError, RegistryError, closest
from knapsaq.importing import find
from knapsaq.options import TaskOptions
from knapsaq.registry import Registry
from knapsaq.task import Task

AnyTask = Task[..., Any, Any]


def load(
    registry: Registry,
    routes: Iterable[str],
    queues: Mapping[str, Mapping[str, str]],
    periodic: Mapping[str, Mapping[str, Any]],
    module: str,
) -> dict[str, str]:
    """Import routes and register their tasks and schedules, unless a registry has them already.

    Args:
        registry: Where they are registered.
        routes: The dotted paths.
        queues: ``{"queue": name}`` or nothing by route.
        periodic: ``"task"``, ``"schedule"``, ``"args"`` and maybe ``"kwargs"`` by the schedule's name.
        module: Where they were collected; whoever does not import it leaves their schedules in Redis alone.

    Returns:
        For each route that is wrong the reason.
    """
    routes = tuple(routes)
    found, problems = _found(registry, routes)
    # Modules last, as a route to one of their functions says more.
    for route, thing in sorted(found.items(), key=lambda item: isinstance(item[1], ModuleType)):
        try:
            _register(registry, route, thing, queues.get(route, {}).get("queue"))
        except KnapsaqError as error:
            problems[route] = str(error)
    for name, entry in periodic.items():
        if entry["task"] in problems:
            continue
        try:
            _schedule(registry, name, entry, module)
        except KnapsaqError as error:
            problems[entry["task"]] = str(error)
    return {route: problems[route] for route in routes if route in problems}


def _found(registry: Registry, routes: Iterable[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what the routes lead to, and why the others lead nowhere."""
    found: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for route in routes:
        try:
            found[route] = registry.find(route) or find(route)
        except RegistryError as error:
            problems[route] = str(error)
    for route in list(problems):
        if (task := registry.find(route)) is not None:  # the name of a task that another route's module defines
            found[route] = task
            del problems[route]
        elif close := closest(route, registry.names(), cutoff=0.8):
            problems[route] += f"; or did you mean the task {close!r}?"
    return found, problems


def _register(registry: Registry, route: str, thing: Any, queue: str | None) -> None:
    known = registry.aliased(route)
    if known is not None:
        if queue is not None and known.options.queue != queue:
            if known.options.names_queue:
                raise RegistryError(f"it is in queue {known.options.queue!r} already, by another registration")
            known.place(queue, named=True)
        return
    if isinstance(thing, ModuleType):
        _take_module(registry, thing, queue)
        return
    task = thing if isinstance(thing, Task) else _made(registry, route, thing, queue)
    if task is thing:
        _refuse_foreign(registry, task)
        if queue is not None:
            task.place(queue, named=True)
    else:
        registry.add(task)
    registry.alias(route, task)


def _take_module(registry: Registry, module: ModuleType, queue: str | None) -> None:
    """Take the tasks of a module, or of a package the ``tasks`` modules at or below it, as Celery's discovery does."""
    name = module.__name__
    if hasattr(module, "__path__"):
        try:
            registry.autodiscover(name)
        except RegistryError as error:
            if error.__cause__ is not None:  # one of its modules cannot be imported; else there is none
                raise
    within = [task for task in registry.get_all_tasks() if f"{task.__module__}.".startswith(f"{name}.")]
    tasks = [task for task in within if registry.aliased(task.name) is not task]  # else a route has made or named it
    if not tasks:
        raise RegistryError(f"module {name!r} has no @task; name one of its functions, such as '{name}.send_email'")
    for task in tasks:
        registry.alias(task.path, task)
        if queue is not None and not task.options.names_queue:
            task.place(queue, named=True)


def _made(registry: Registry, route: str, thing: Any, queue: str | None) -> AnyTask:
    if isinstance(thing, type) or not callable(thing):
        kind = "a class" if isinstance(thing, type) else f"of type {type(thing).__name__} and cannot be called"
        raise RegistryError(f"it is {kind}; a route leads to a function, a task or a module")
    options = TaskOptions.build(f"route {route!r}", {"name": route, "queue": queue})
    try:
        return Task(thing, options, home=registry)
    except (TypeError, ValueError) as error:
        raise RegistryError(f"its parameters cannot be read: {error}") from error


def _refuse_foreign(registry: Registry, task: AnyTask) -> None:
    if registry.find(task.name) is not task:
        raise RegistryError(
            f"it is task {task.name!r} of another registry; decorate it with this one's @registry.task, "
            f"or give that registry to WorkerBuilder.set_registry or connect(registry=...)"
        )


def _schedule(registry: Registry, name: str, entry: Mapping[str, Any], module: str) -> None:
    """Give a task its schedule, unless it has it."""
    task = registry.find(entry["task"])
    if task is None:
        raise RegistryError("it is a module; a schedule needs a function")
    when = entry["schedule"]
    every = when if isinstance(when, timedelta) else None
    known = next((schedule for schedule in task.schedules if schedule.name == name), None)
    if known is not None:
        same = known.cron == when if every is None else known.every == every.total_seconds()
        if same and known.args == tuple(entry["args"]) and dict(known.kwargs) == entry.get("kwargs", {}):
            return
        raise RegistryError(f"schedule {name!r} is another one already; give this one a name of its own with name=...")
    registry.scheduled_task(
        cron=when if every is None else None,
        every=every,
        schedule=name,
        args=entry["args"],
        kwargs=entry.get("kwargs"),
    )(task)
    task.schedules = (*task.schedules[:-1], replace(task.schedules[-1], module=module))
