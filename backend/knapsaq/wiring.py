"""Wiring: where a registry has its tasks from besides decorators, and which queues they go to.

Where in the flow: before a worker or an application starts, ``connect`` calls
``prepare``, which imports what was included and gives every task its queue. Until
then nothing is imported, so a program may name its tasks before they exist.

Invariants, each a test in ``tests/fundamentals/test_string_routes.py`` or ``test_queue_routes.py``:

* preparing twice changes nothing;
* all that is wrong is told at once;
* a task that names a queue keeps it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol, Self, TypeVar

from knapsaq.errors import ConfigurationError, DuplicateTaskError, RegistryError, RouteError
from knapsaq.home import Home
from knapsaq.job import new_key
from knapsaq.options import DEFAULT_QUEUE
from knapsaq.saq_settings import SaqGiven, SaqSettings, called_as_in_saq, options_as_in_saq
from knapsaq.settings import Settings, routed
from knapsaq.task import Task

S = TypeVar("S", bound=Settings)
AnyTask = Task[..., Any, Any]


class Source(Protocol):
    """Where tasks come from when a program starts, such as ``knapsaq.routes.TaskRoutes``."""

    @property
    def queues(self) -> Collection[str]:
        """The queues that it names."""

    def load(self, registry: Any, /) -> Mapping[str, str]:
        """Register the tasks that are not registered yet; return why, for each route that leads nowhere."""


class Wiring(Home):
    """What a registry is wired to; ``Registry`` is the whole."""

    def __init__(self) -> None:
        self._tasks: dict[str, AnyTask] = {}
        self._aliases: dict[str, AnyTask] = {}
        self._sources: list[Source] = []
        self._saq: dict[str, SaqSettings] = {}
        self._routes: Mapping[str, str] = {}

    def add(self, task: AnyTask) -> AnyTask:
        """Register a task.

        Raises:
            DuplicateTaskError: Another function has the name; the error shows both places.
        """
        self._refuse_duplicate(task)
        self._place(task)
        old = self._tasks.get(task.name, task)
        if old is not task:  # its module was imported again; routes to it are looked up at the next start
            self._aliases = {name: other for name, other in self._aliases.items() if other is not old}
        self._tasks[task.name] = task
        return task

    @classmethod
    def from_saq_settings(cls, settings: SaqGiven) -> Self:
        """Return a registry of the functions in SAQ's ``settings``; see ``add_saq_settings``."""
        return cls().add_saq_settings(settings)

    def add_saq_settings(self, settings: SaqGiven) -> Self:
        """Add the functions of SAQ's ``settings``; workers of its queue take the rest: hooks, cron jobs, timers, ...

        The functions are called as SAQ calls them, and have the limits of SAQ's jobs. Where neither a broker's URL is
        given nor ``KNAPSAQ_BROKER_URL`` set, ``connect`` opens the server of the settings' queue, as SAQ does.

        Args:
            settings: The dictionary or a function that returns one, or the dotted path of either.

        Raises:
            ConfigurationError: Something in it is wrong or cannot be honoured; the error says why.
            RegistryError: The path leads nowhere.
            DuplicateTaskError: A function has the name of another task.
        """
        read = SaqSettings.read(settings)
        if all(self._saq.get(queue) == read for queue in read.queues):
            return self
        for queue in read.queues:
            if queue in self._saq:
                msg = f"{read.place}: queue {queue!r} has other settings of SAQ's already; put both into one dictionary"
                raise ConfigurationError(msg)
        if len({one.url for one in (*self._saq.values(), read)}) > 1:
            raise ConfigurationError(
                f"{read.place}: another dictionary's queue is on another server; make it one broker"
            )
        tasks = [self._task_of_saq(name, read) for name in read.functions]
        for task in tasks:
            self._refuse_duplicate(task)
        for task in tasks:
            self.add(task)
        self._saq |= dict.fromkeys(read.queues, read)
        return self

    def include(self, source: Source) -> Self:
        """Take tasks from ``source`` as well; it is asked when a worker or an application starts.

        Raises:
            RegistryError: It is nothing that tasks can be taken from.
        """
        if not callable(getattr(source, "load", None)):
            raise RegistryError(
                f"tasks cannot be taken from {source!r}; give routes, such as knapsaq.routes.TaskRoutes()"
            )
        if not any(known is source for known in self._sources):
            self._sources.append(source)
        return self

    def load(self) -> None:
        """Import what was included.

        Raises:
            RouteError: Routes lead to no task; all of them are in the error.
        """
        problems = {route: why for source in self._sources for route, why in source.load(self).items()}
        if problems:
            raise RouteError(tuple(problems), tuple(problems.values()))

    def prepare(self, settings: S) -> S:
        """Import what was included, and give each task that names no queue the one of ``Settings.task_routes``.

        ``connect`` and the command line do so when they start.

        Returns:
            The settings, with the queues that were included and, of SAQ's settings, the server.

        Raises:
            RouteError: Routes lead to no task; all of them are in the error.
            SettingsError: A pattern leads to a queue that nobody names.
        """
        self.load()
        named = [task.options.queue for task in self._aliases.values() if task.options.names_queue]
        settings = settings.with_queues([*(queue for source in self._sources for queue in source.queues), *named])
        for saq in self._saq.values():
            settings = saq.completed(settings)
        settings.check_routes()
        self._routes = settings.task_routes
        for task in self._tasks.values():
            self._place(task)
        return settings

    def worker_options(self, queue: str) -> dict[str, Any]:
        """Return what SAQ's settings say of the worker of a queue, in the arguments of SAQ's ``Worker``."""
        saq = self._saq.get(queue)
        if saq is None:
            return {}
        return {**saq.options, **({"id": f"{saq.name}-{new_key()}"} if saq.name else {})}

    def alias(self, name: str, task: AnyTask) -> None:
        """Let a task be found under a further name."""
        self._aliases[name] = task

    def aliased(self, name: str) -> AnyTask | None:
        """Return the task that has a further name, or None."""
        return self._aliases.get(name)

    def _refuse_duplicate(self, task: AnyTask) -> None:
        known = self._tasks.get(task.name)
        if known is not None and known.location != task.location:
            raise DuplicateTaskError(task.name, known.location, task.location)

    def _place(self, task: AnyTask) -> None:
        """Give a task that names no queue the one of the first pattern that fits it."""
        if task.options.names_queue:
            return
        queue = (self._routes and routed(self._routes, task.name, task.path, task.__module__)) or DEFAULT_QUEUE
        if queue != task.options.queue:
            task.place(queue, named=False)

    def _task_of_saq(self, name: str, saq: SaqSettings) -> AnyTask:
        function = saq.functions[name]
        if not isinstance(function, Task):
            return Task(called_as_in_saq(name, function), options_as_in_saq(name, saq.queues[0]), home=self)
        if self._tasks.get(function.name) is not function:
            msg = f"{saq.place}: {name!r} is a task of another registry; use get_registry().add_saq_settings(...)"
            raise ConfigurationError(msg)
        return function

    def _unwire(self) -> None:
        self._aliases.clear()
        self._sources.clear()
        self._saq.clear()
        self._routes = {}
