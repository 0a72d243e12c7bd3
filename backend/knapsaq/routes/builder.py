"""Builder: routes, broker, time zone and queues, put together into a worker.

Where in the flow: ``WorkerBuilder`` only collects; ``create`` makes a worker without
importing a route or opening a connection, so a module can hold one. Its ``start``
does both, as does ``knapsaq -A module worker``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any, Self, TypeVar

from knapsaq import events
from knapsaq.client import connect
from knapsaq.errors import OptionError, SettingsError, WorkerError, nearest
from knapsaq.process import first_error, run_workers
from knapsaq.redis.connection import broker_errors
from knapsaq.registry import Registry, get_registry
from knapsaq.routes.collection import TaskRoutes
from knapsaq.routes.instance import RedisInstance
from knapsaq.settings import Settings
from knapsaq.worker import Worker

T = TypeVar("T")

PLACE = "WorkerBuilder"
WORKER_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,100}")


class RoutedWorker:
    """Runs the jobs of a program's queues in this process: one ``knapsaq.Worker`` for each queue.

    Made by ``WorkerBuilder.create``. An application connects with what it holds, so that both know the same tasks:
    ``connect(worker.settings, registry=worker.registry)`` or ``KnapsaqPlugin(worker.settings, registry=...)``.

    Attributes:
        name: The beginning of the workers' ids; None where no name was set.
        settings: Broker, time zone, concurrency, and every queue that may be sent to.
        registry: The tasks; those of the routes are in it once something has started.
        queues: The queues that it serves; None serves all of the settings'.
    """

    SIGNALS = Worker.SIGNALS

    def __init__(
        self, settings: Settings, registry: Registry, queues: tuple[str, ...] | None = None, name: str | None = None
    ) -> None:
        self.settings = settings
        self.registry = registry
        self.queues = queues
        self.name = name
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()

    def __repr__(self) -> str:
        return f"<RoutedWorker {self.name or ''!r} of {', '.join(self.queues or self.settings.queues)}>"

    async def start(self) -> None:
        """Import the routes, connect, and run jobs until ``stop`` is called or a signal arrives.

        Raises:
            RouteError: Routes lead to no task; all of them are in the error.
            SettingsError: A setting is wrong.
            ProviderError: A task asks for something that nobody provides.
            BrokerError: The broker cannot be reached.
            WorkerError: It runs already.
        """
        if not self._ended.is_set():
            raise WorkerError(f"{self!r} runs already; create another one")
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()
        self._ended.clear()
        loop = asyncio.get_running_loop()
        for number in self.SIGNALS:
            loop.add_signal_handler(number, self.request_stop)
        try:
            await self._run()
        except asyncio.CancelledError:
            raise
        except BaseExceptionGroup as group:
            with broker_errors(self.settings.broker_url):
                raise first_error(group) from group
        finally:
            for number in self.SIGNALS:
                loop.remove_signal_handler(number)
            self._ended.set()

    async def stop(self) -> None:
        """Take no more jobs, give the running ones the grace period, put back the rest; return when that is done."""
        if not self._stop.is_set():
            self.request_stop()
        await self._ended.wait()

    def request_stop(self) -> None:
        """Begin to stop; a second call does not wait for the running jobs any longer."""
        (self._hurry if self._stop.is_set() else self._stop).set()

    async def _run(self) -> None:
        async with connect(self.settings, registry=self.registry) as client:
            self.settings = client.settings  # with the queues of the routes
            own = {task.options.queue for task in self.registry.get_all_tasks()}
            for queue in self.queues or ():
                if queue not in own:
                    events.queue_without_task(queue, nearest(queue, own))
            await run_workers(client, self._stop, queues=self.queues, hurry=self._hurry, name=self.name)


class WorkerBuilder:
    """Puts a worker together; every ``set_...`` returns the builder.

    What is not set comes from ``set_settings``, else from the environment, as ``Settings`` says.
    """

    def __init__(self) -> None:
        self._name: str | None = None
        self._settings: Settings | None = None
        self._registry: Registry | None = None
        self._queues: tuple[str, ...] | None = None
        self._routes: list[TaskRoutes] = []
        self._values: dict[str, Any] = {}

    def set_name(self, name: str) -> Self:
        """Set the beginning of the workers' ids, as logs and the web page show them.

        Args:
            name: 1 to 100 letters, digits or ``_ . -``.

        Raises:
            OptionError: It is none.
        """
        if not WORKER_NAME.fullmatch(_kind("name", name, str, "1 to 100 letters, digits or _ . -")):
            raise OptionError(PLACE, "name", name, "1 to 100 letters, digits or _ . -")
        self._name = name
        return self

    def set_redis(self, redis: RedisInstance | str) -> Self:
        """Set the broker.

        Args:
            redis: An instance, a URL (``redis://``, ``rediss://`` or ``unix://``), or ``"embedded"``.

        Raises:
            SettingsError: It is none; a password in it is not shown.
        """
        _kind("redis", redis, (RedisInstance, str), "a RedisInstance or a URL such as 'redis://localhost:6379/0'")
        url = redis.url if isinstance(redis, RedisInstance) else redis
        self._values["broker_url"] = _checked("set_redis", "broker_url", url)
        return self

    def set_task(self, task: TaskRoutes) -> Self:
        """Add routes with their queues and schedules; what is registered there later counts as well.

        Raises:
            OptionError: It is no ``TaskRoutes``.
        """
        self._routes.append(_kind("task", task, TaskRoutes, "an instance of knapsaq.routes.TaskRoutes"))
        return self

    def set_timezone(self, timezone: str) -> Self:
        """Set the IANA zone in which cron expressions are read.

        Raises:
            SettingsError: There is none of that name.
        """
        self._values["timezone"] = _checked("set_timezone", "timezone", timezone)
        return self

    def set_concurrency(self, concurrency: int) -> Self:
        """Set how many jobs of each queue run at once, 1 to 10,000.

        Raises:
            SettingsError: It is out of range.
        """
        self._values["concurrency"] = _checked("set_concurrency", "concurrency", concurrency)
        return self

    def set_queues(self, queues: Iterable[str]) -> Self:
        """Set the queues that the worker serves; without it, it serves all that the routes and the settings name.

        Args:
            queues: Their names; a text may have several, with commas in between.

        Raises:
            SettingsError: One is no name, or there is none.
            OptionError: They are neither a text nor a list.
        """
        names: Any = queues if isinstance(queues, str) else tuple(_kind("queues", queues, Iterable, "names of queues"))
        self._queues = _checked("set_queues", "queues", names)
        return self

    def set_settings(self, settings: Settings) -> Self:
        """Set where everything comes from that nothing else here sets.

        Raises:
            OptionError: They are no ``Settings``.
        """
        self._settings = _kind("settings", settings, Settings, "an instance of knapsaq.Settings")
        return self

    def set_registry(self, registry: Registry) -> Self:
        """Set where the tasks are registered; the program's registry unless set.

        Raises:
            OptionError: It is no ``Registry``.
        """
        self._registry = _kind("registry", registry, Registry, "an instance of knapsaq.Registry")
        return self

    def create(self) -> RoutedWorker:
        """Return the worker; nothing is imported or connected yet.

        Raises:
            SettingsError: A setting of the environment is wrong.
        """
        registry = self._registry or get_registry()
        for routes in self._routes:
            registry.include(routes)
        settings = self._settings or Settings()
        settings = settings.with_values(**self._values).with_queues(self._queues or ())
        return RoutedWorker(settings, registry, self._queues, self._name)


def _checked(method: str, name: str, value: Any) -> Any:
    """Return a setting as ``Settings`` takes it; an error names the method, as no variable was set."""
    try:
        return getattr(Settings(**{name: value}), name)
    except SettingsError as error:
        if error.setting != f"KNAPSAQ_{name.upper()}":
            raise  # one of the environment's
        raise SettingsError(f"of {PLACE}.{method}", error.given, error.expected) from None


def _kind(option: str, value: T, kind: type | tuple[type, ...], expected: str) -> T:
    """Return a value if it is of a kind; whoever calls may not have asked a type checker."""
    if not isinstance(value, kind):
        raise OptionError(PLACE, option, value, expected)
    return value
