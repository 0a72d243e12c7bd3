"""Loading: the module whose import fills the registry, and the settings that go with it."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from knapsaq.environment import EnvironmentSettings, setting
from knapsaq.errors import ConfigurationError, KnapsaqError, RegistryError, nearest
from knapsaq.importing import failure
from knapsaq.registry import Registry, get_registry
from knapsaq.routes import RoutedWorker, TaskRoutes
from knapsaq.saq_settings import SaqGiven
from knapsaq.settings import Settings
from knapsaq.task import Task

MODULE_NAME = re.compile(r"\w+(\.\w+)*")
HELD = (RoutedWorker, TaskRoutes, Registry, Settings)
EXAMPLE = "`knapsaq -A app.queue.config ...`"


class AppChoice(EnvironmentSettings, prefix="KNAPSAQ_"):
    """Which module is the application's, if the command line does not say; read as the settings are."""

    app: str | None = setting(default=None, description="the module whose import defines the tasks")


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """An application that was imported.

    Attributes:
        module: The module's name.
        settings: Its own ``settings``, else those of its worker or of the environment.
        has_settings: Whether they are its own.
        registry: Its own ``registry``, else its worker's or the program's.
        queues: The queues that its worker serves; None where it does not say.
        worker_name: The beginning of its workers' ids.
    """

    module: str
    settings: Settings
    has_settings: bool
    registry: Registry
    queues: tuple[str, ...] | None = None
    worker_name: str | None = None


def choose(given: str | None) -> str:
    """Return the name of the application's module.

    Args:
        given: What the command line says.

    Raises:
        ConfigurationError: It says nothing, nor does ``KNAPSAQ_APP``; or it is no module's name.
    """
    name = given or AppChoice().app
    if not name:
        msg = f"no application is given: name the module whose import defines the tasks, {EXAMPLE}, or set KNAPSAQ_APP"
        raise ConfigurationError(msg)
    if not MODULE_NAME.fullmatch(name) or name.endswith(".py"):
        guess = name.partition(":")[0].removesuffix(".py").strip("./").replace("/", ".")
        hint = f"; did you mean {guess!r}?" if MODULE_NAME.fullmatch(guess) else ""
        msg = f"{name!r} is not the name of a module such as 'app.queue.config'{hint}"
        raise ConfigurationError(msg)
    return name


def load(given: str | None) -> App:
    """Import the application; modules of the working directory can be imported.

    What a module holds counts: ``settings``, ``registry``, a worker of ``WorkerBuilder``, any ``TaskRoutes``, and SAQ's
    ``settings`` dictionary. The path may also lead to one of these itself, as SAQ's command line takes it.

    Raises:
        ConfigurationError: No module is given, a setting is wrong, or the module holds several workers.
        RegistryError: The module cannot be imported; the text says where it fails, the cause is chained.
        RouteError: Routes of it lead to no task.
    """
    name = choose(given)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    found = _import(name, here)
    if isinstance(found, ModuleType):
        return _app(name, vars(found))
    if isinstance(found, HELD):
        return _app(name, {"settings" if isinstance(found, Settings) else "registry": found})
    if isinstance(found, Mapping) or (callable(found) and not isinstance(found, Task)):
        return _app(name, {}, found)
    msg = f"{name!r} is of type {type(found).__name__}; expected a module, a worker, routes, or SAQ's settings"
    raise ConfigurationError(msg)


def _import(name: str, here: str) -> Any:
    try:
        return importlib.import_module(name)
    except KnapsaqError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _broken(name, error) from error
        parent, _, last = name.rpartition(".")
        module = sys.modules.get(parent)
        if error.name == name and parent and hasattr(module, last):
            return getattr(module, last)
        if error.name == name and isinstance(module, ModuleType) and not hasattr(module, "__path__"):
            known = (one for one in vars(module) if not one.startswith("_"))
            raise RegistryError(f"module {parent!r} has no {last!r}; {nearest(last, known)}") from error
        msg = f"there is no module {name!r}: {error.name!r} is neither installed nor in {here}; run where it lies"
        raise RegistryError(msg) from error
    except Exception as error:
        raise _broken(name, error) from error


def _app(name: str, held: Mapping[str, Any], saq: SaqGiven | None = None) -> App:
    """Return what a module holds, or what was named itself, ready to start."""
    worker = _worker(name, held.values())
    own, registry = held.get("settings"), held.get("registry")
    if isinstance(own, Mapping) and "functions" in own:
        saq = own
    settings = own if isinstance(own, Settings) else worker.settings if worker else Settings()
    if not isinstance(registry, Registry):
        registry = worker.registry if worker else get_registry()
    for value in held.values() if worker is None else ():
        if isinstance(value, TaskRoutes):
            registry.include(value)
    if saq is not None:
        registry.add_saq_settings(saq)
    prepared = registry.prepare(settings)
    queues = worker.queues if worker else None
    if saq is not None and not settings.is_given("queues"):
        queues = tuple(dict.fromkeys(task.options.queue for task in registry.get_all_tasks())) or None  # as SAQ does
    return App(
        module=name,
        settings=prepared,
        has_settings=isinstance(own, Settings),
        registry=registry,
        queues=queues,
        worker_name=worker.name if worker else None,
    )


def _worker(name: str, values: Iterable[Any]) -> RoutedWorker | None:
    workers = list({id(value): value for value in values if isinstance(value, RoutedWorker)}.values())
    if len(workers) > 1:
        msg = f"module {name!r} holds {len(workers)} workers: {workers}; name one, as {name}.<its name>"
        raise ConfigurationError(msg)
    return workers[0] if workers else None


def _broken(name: str, error: BaseException) -> RegistryError:
    return RegistryError(f"module {name!r} cannot be imported: {failure(error)}; --debug shows the traceback")
