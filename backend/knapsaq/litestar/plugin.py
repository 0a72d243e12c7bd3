"""Plugin: everything that a Litestar application needs to queue jobs.

Where in the flow: the application's end of the queue. While the application runs,
the plugin holds a connection, through which ``task.enqueue(...)`` and the handlers'
``task_queues`` send. Making the plugin does no I/O; it hands its dependencies to the
registry, so that a worker which imports the same module has them too.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from click import Group
from litestar import Litestar
from litestar.config.app import AppConfig
from litestar.di import Provide
from litestar.exceptions import LitestarDeprecationWarning
from litestar.plugins import CLIPlugin, InitPlugin
from litestar.types import Guard
from litestar_saq import TaskQueues

from knapsaq.client import Client, connect
from knapsaq.context import Context
from knapsaq.errors import BrokerError, ConfigurationError
from knapsaq.job import Job
from knapsaq.litestar.answers import ANSWERS
from knapsaq.litestar.cli import workers_group
from knapsaq.litestar.correlation import CorrelationMiddleware
from knapsaq.litestar.dependencies import Shared, for_handlers
from knapsaq.litestar.guards import AdminGuard
from knapsaq.litestar.web import web_router
from knapsaq.queue import Queue
from knapsaq.registry import Registry, get_registry
from knapsaq.settings import Settings

QUEUES_KEY = "task_queues"
NAMESPACE = {cls.__name__: cls for cls in (TaskQueues, Queue, Job, Context, Client)}


class KnapsaqPlugin(InitPlugin, CLIPlugin):
    """Connects a Litestar application to its queues.

    Args:
        settings: Unless given, those of the environment when the application is made.
        registry: The tasks; the program's registry unless given.
        dependencies: Providers by parameter name, for tasks and route handlers alike: functions, ``knapsaq.Provide``
            or ``litestar.di.Provide``. A name that the application itself provides stays the application's.
        guards: Who may see the web page; unless given, whoever shows ``KNAPSAQ_API_TOKEN``, and everybody in debug
            mode. An empty list lets everybody in.
        web: Whether SAQ's web page is served.
        web_path: Where, beginning with a slash.

    Raises:
        ConfigurationError: ``web_path`` is no path.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        registry: Registry | None = None,
        dependencies: Mapping[str, Any] | None = None,
        guards: Sequence[Guard] | None = None,
        web: bool = True,
        web_path: str = "/saq",
    ) -> None:
        if not web_path.startswith("/") or not web_path.strip("/"):
            msg = f"KnapsaqPlugin: web_path is {web_path!r}; expected a path such as '/saq'"
            raise ConfigurationError(msg)
        self._settings = settings
        self.registry = registry or get_registry()
        self.dependencies = dict(dependencies or {})
        self.guards = guards
        self.web = web
        self.web_path = "/" + web_path.strip("/")
        self.registry.provide(self.dependencies)

    @property
    def settings(self) -> Settings:
        """The settings; read from the environment when they are first asked for.

        Raises:
            SettingsError: A setting is wrong.
        """
        if self._settings is None:
            self._settings = Settings()
        return self._settings

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add connection, dependencies, correlation ids, error answers and the web page to an application.

        Raises:
            ConfigurationError: The application provides ``task_queues`` already.
        """
        if QUEUES_KEY in app_config.dependencies:
            msg = f"the application has a dependency {QUEUES_KEY!r} already; KnapsaqPlugin needs the name: rename yours"
            raise ConfigurationError(msg)
        self.registry.provide(self.dependencies)
        queues, shared = TaskQueues(), Shared()
        for name, provide in for_handlers(self.dependencies, shared).items():
            app_config.dependencies.setdefault(name, provide)
        app_config.dependencies[QUEUES_KEY] = Provide(lambda: queues, sync_to_thread=False)
        _allow_inferred_queues()
        app_config.lifespan.append(self._lifespan(queues, shared))
        app_config.middleware.insert(0, CorrelationMiddleware())
        app_config.signature_namespace = {**NAMESPACE, **app_config.signature_namespace}
        for kind, answer in ANSWERS.items():
            app_config.exception_handlers.setdefault(kind, answer)
        if self.web:
            guards = [AdminGuard(self.settings)] if self.guards is None else list(self.guards)
            app_config.route_handlers.append(web_router(self.web_path, guards, self.settings))
        return app_config

    def on_cli_init(self, cli: Group) -> None:
        """Add ``litestar workers``."""
        cli.add_command(workers_group(self))

    def _lifespan(self, queues: TaskQueues, shared: Shared) -> Any:
        @asynccontextmanager
        async def lifespan(_app: Litestar) -> AsyncIterator[None]:
            async with AsyncExitStack() as stack:
                try:
                    client = await stack.enter_async_context(connect(self.settings, registry=self.registry))
                except BrokerError as error:
                    # The server prints the whole chain, and it says nothing that this one does not.
                    raise BrokerError(*error.args) from None
                await stack.enter_async_context(shared.lifespan())
                queues.queues = {**client.queues}
                try:
                    yield
                finally:
                    queues.queues = {}

        return lifespan


def _allow_inferred_queues() -> None:
    """Let handlers write ``task_queues: TaskQueues``, litestar-saq's spelling, without Litestar's warning.

    Litestar 2 finds the dependency by its name and warns that Litestar 3 will not. That this one has to be spelt
    ``NamedDependency[TaskQueues]`` then is no news to whoever upgrades us to Litestar 3.
    """
    pattern = rf".*Inferred dependency field '{QUEUES_KEY}'"
    warnings.filterwarnings("ignore", message=pattern, category=LitestarDeprecationWarning)
