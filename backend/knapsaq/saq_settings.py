"""SAQ's settings: the dictionary with which SAQ's own worker is started, read and checked.

Where in the flow: ``Registry.add_saq_settings`` takes the functions from here, and each
worker of the dictionary's queue the rest. A function is called as SAQ calls it: with
the context first, and its arguments as JSON has them, whatever its annotations say.

Invariants, each a test in ``tests/fundamentals/test_saq_settings.py``:

* what SAQ's worker accepts is honoured, or refused with the reason before anything starts;
* a password in the queue's address is in no error and in no ``repr()``.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import tzinfo
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote, urlencode

from croniter import croniter
from saq.job import CronJob
from saq.job import Job as SaqJob

from knapsaq.checks import Check, check, queue_name, whole
from knapsaq.context import Context
from knapsaq.errors import ConfigurationError, DuplicateTaskError, OptionError
from knapsaq.importing import find
from knapsaq.options import DEFAULT_QUEUE, TaskOptions
from knapsaq.setting_checks import EMBEDDED
from knapsaq.settings import Settings
from knapsaq.task import Task

S = TypeVar("S", bound=Settings)
SaqGiven: TypeAlias = Mapping[str, Any] | str | Callable[[], Mapping[str, Any]]

SAQ_URL = "redis://localhost:6379/0"
"""The server of settings without a queue, as in SAQ."""

TIMERS = ("schedule", "worker_info", "sweep", "abort")
NOT_THE_WORKERS = frozenset({"functions", "queue", "queues", "id"})
PROBE = {"text": "\u00e9", "numbers": [1, 2.5], "nothing": None}
"""What a queue's own way of writing is tried with."""


@dataclass(frozen=True, slots=True)
class SaqSettings:
    """What SAQ's ``settings`` dictionary says.

    Attributes:
        place: Where it was given, for errors.
        queues: The names of its queues; SAQ's own default where it has none.
        url: The address of their server; None where a queue asks a sentinel for it.
        functions: The functions by name, those of the cron jobs included.
        options: What SAQ's ``Worker`` takes besides.
        name: The worker's ``id``; each process adds something of its own, as a lease is one process'.
    """

    place: str
    queues: tuple[str, ...]
    url: str | None = field(repr=False)
    functions: Mapping[str, Callable[..., Any]]
    options: Mapping[str, Any]
    name: str | None = None

    @classmethod
    def read(cls, given: SaqGiven) -> SaqSettings:
        """Return checked settings.

        Args:
            given: The dictionary or a function that returns one, or the dotted path of either, as SAQ's command line
                takes it.

        Raises:
            ConfigurationError: Something in it is wrong, or cannot be honoured; the error says why.
            RegistryError: The path leads nowhere.
            DuplicateTaskError: Two functions have one name.
        """
        place = f"SAQ's settings {given}" if isinstance(given, str) else "SAQ's settings"
        found = _returned(place, find(given) if isinstance(given, str) else given)
        if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
            raise OptionError(place, "settings", found, "a dictionary with 'functions', or a function that returns one")
        values = check(place, found, CHECKS)
        if "functions" not in values:
            raise OptionError(place, "functions", None, CHECKS["functions"][0])
        if values.get("burst") and not values.get("dequeue_timeout"):
            raise OptionError(
                place, "dequeue_timeout", values.get("dequeue_timeout"), "seconds above 0, as burst is on"
            )
        queues = [_Address.of(place, queue) for queue in (*values.get("queues", ()), *_present(values.get("queue")))]
        if len({queue.url for queue in queues}) > 1:
            raise ConfigurationError(f"{place}: its queues are on several servers; a program has one broker")
        return cls(
            place=place,
            queues=tuple(dict.fromkeys(queue.name for queue in queues)) or (DEFAULT_QUEUE,),
            url=queues[0].url if queues else SAQ_URL,
            functions=MappingProxyType(_named(values["functions"], values.get("cron_jobs", ()))),
            options=MappingProxyType({name: values[name] for name in values if name not in NOT_THE_WORKERS}),
            name=values.get("id"),
        )

    def completed(self, settings: S) -> S:
        """Return settings with these queues, on their server unless the settings name one themselves.

        Raises:
            ConfigurationError: Neither names one.
        """
        settings = settings.with_queues(self.queues)
        if settings.broker_url != EMBEDDED or settings.is_given("broker_url"):
            return settings
        if self.url is None:
            problem = "its queue has no address of its own, such as redis://host:6379/0; set KNAPSAQ_BROKER_URL"
            raise ConfigurationError(f"{self.place}: {problem}")
        return settings.with_values(broker_url=self.url)


class Called:
    """A function of SAQ's, which takes what a job holds as it is."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.__name__, self.__doc__, self.__module__ = name, function.__doc__, function.__module__
        self.__qualname__ = getattr(function, "__qualname__", name)
        self.__code__ = getattr(inspect.unwrap(function), "__code__", None)
        self.function = function

    def __repr__(self) -> str:
        return repr(self.function)

    def __call__(self, ctx: Context, **arguments: Any) -> Any:
        """Run it, in a thread."""
        return self.function(ctx, **arguments)


class Awaited(Called):
    """Likewise, a coroutine function."""

    async def __call__(self, ctx: Context, **arguments: Any) -> Any:
        """Run it on the loop."""
        running: Awaitable[Any] = self.function(ctx, **arguments)
        return await running


def called_as_in_saq(name: str, function: Callable[..., Any]) -> Called:
    """Return a function as SAQ calls it."""
    return (Awaited if inspect.iscoroutinefunction(function) else Called)(name, function)


def options_as_in_saq(name: str, queue: str) -> TaskOptions:
    """Return the options of a function of SAQ's: the limits of SAQ's Job, and exact delays."""
    return TaskOptions(
        name=name, queue=queue, names_queue=True, timeout=SaqJob.timeout, ttl=SaqJob.ttl, retry_jitter=False
    )


@dataclass(frozen=True, slots=True)
class _Address:
    """A queue's name, and the URL of its server."""

    name: str
    url: str | None = field(repr=False)

    @classmethod
    def of(cls, place: str, queue: Any) -> _Address:
        """Return where one of SAQ's queues is.

        Raises:
            ConfigurationError: It is not on Redis, or is read and written in a way of its own.
        """
        pool = getattr(getattr(queue, "redis", None), "connection_pool", None)
        name = str(getattr(queue, "name", queue))
        if pool is None:
            kind = type(queue).__name__
            msg = f"{place}: queue {name!r} is a {kind}; Knapsaq's queues live in Redis or Valkey, so give a RedisQueue"
            raise ConfigurationError(msg)
        if not _speaks_json(queue):
            msg = (
                f"{place}: queue {name!r} has a dump or load that is not JSON, as Knapsaq's records are; leave them out"
            )
            raise ConfigurationError(msg)
        if getattr(queue, "_before_enqueues", None):
            msg = (
                f"{place}: queue {name!r} has before_enqueue callbacks, which a worker's own queue would not call; "
                f"register them in a startup function: ctx['worker'].queue.register_before_enqueue(...)"
            )
            raise ConfigurationError(msg)
        return cls(queue_name_of(place, name), url_of(pool))


def queue_name_of(place: str, name: str) -> str:
    """Return a queue's name if it can be one here.

    Raises:
        OptionError: It cannot.
    """
    try:
        return queue_name(name)
    except ValueError:
        raise OptionError(place, "queue", name, "a queue whose name is 1 to 64 letters, digits or _ . - { }") from None


def url_of(pool: Any) -> str | None:
    """Return the URL of the server to which a redis-py pool connects; None if it asks each time, as for a sentinel."""
    given = dict(pool.connection_kwargs)
    if given.get("credential_provider") is not None or not ("path" in given or given.keys() & {"host", "port"}):
        return None
    secret = given.get("password")
    user = quote(str(given.get("username") or ""), safe="")
    login = f"{user}:{quote(str(secret), safe='')}@" if secret else (f"{user}@" if user else "")
    extra = {key: value for key, value in given.items() if key.startswith("ssl_") and isinstance(value, (str, int))}
    if "path" in given:
        extra = {"db": given.get("db") or 0, **extra}
        return f"unix://{login}{quote(str(given['path']))}?{urlencode(extra)}"
    scheme = "rediss" if "SSL" in pool.connection_class.__name__ or "Tls" in pool.connection_class.__name__ else "redis"
    host = str(given.get("host") or "localhost")
    host = f"[{host}]" if ":" in host else host
    query = f"?{urlencode(extra)}" if extra and scheme == "rediss" else ""
    return f"{scheme}://{login}{host}:{given.get('port') or 6379}/{given.get('db') or 0}{query}"


def _returned(place: str, found: Any) -> Any:
    """Return what was given, or what a function returns that was."""
    if not callable(found) or inspect.iscoroutinefunction(found) or isinstance(found, Task):
        return found
    try:
        return found()
    except Exception as error:
        raise ConfigurationError(f"{place}: the function that is to return them raised {error!r}") from error


def _speaks_json(queue: Any) -> bool:
    """Tell whether what a queue writes is JSON, and JSON what it reads."""
    try:
        return bool(json.loads(queue._dump(PROBE)) == PROBE and queue._load(json.dumps(PROBE)) == PROBE)  # noqa: SLF001
    except Exception:  # noqa: BLE001 - whatever the program's own functions raise
        return False


def _present(value: Any) -> tuple[Any, ...]:
    return () if value is None else (value,)


def _named(functions: Collection[Any], crons: Collection[CronJob[Any]]) -> dict[str, Callable[..., Any]]:
    """Return SAQ's functions by the names that SAQ gives them."""
    named: dict[str, Callable[..., Any]] = {}
    for entry in (*functions, *(cron.function for cron in crons)):
        name, function = entry if isinstance(entry, tuple) else (entry.__qualname__, entry)
        if named.setdefault(name, function) is not function:
            raise DuplicateTaskError(name, repr(named[name]), repr(function))
    return named


def _functions(value: Any) -> Collection[Any]:
    entries = _several(value)
    for entry in entries:
        name, function = entry if isinstance(entry, tuple) else (getattr(entry, "__qualname__", None), entry)
        if not isinstance(name, str) or not name or not callable(function):
            raise TypeError(entry)
    return entries


def _crons(value: Any) -> Collection[CronJob[Any]]:
    entries = _several(value)
    for entry in entries:
        if not isinstance(entry, CronJob) or not croniter.is_valid(entry.cron):
            raise ValueError(entry)
    return entries


def _hooks(value: Any) -> Any:
    for hook in (value,) if callable(value) else _several(value):
        if not callable(hook):
            raise TypeError(hook)
    return value


def _several(value: Any) -> tuple[Any, ...]:
    if isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping)):
        return tuple(value)
    raise TypeError(value)


def _queue(value: Any) -> Any:
    if isinstance(value, (str, bytes)) or not hasattr(value, "enqueue"):
        raise TypeError(value)
    return value


def _timers(value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping) or not all(name in TIMERS for name in value):
        raise TypeError(value)
    seconds = {name: _number(number) for name, number in value.items()}
    if not all(seconds.values()):
        raise ValueError(value)
    return seconds


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise TypeError(value)
    return value


def _kind(kind: type) -> Check:
    def convert(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        raise TypeError(value)

    return convert


def _identity(value: Any) -> str:
    if isinstance(value, str) and value and not set(value) & {" ", ":"}:
        return value
    raise ValueError(value)


HOOKS = "a function that takes the context, or several"

CHECKS: dict[str, tuple[str, Check]] = {
    "functions": ("functions, or tuples of a name and a function", _functions),
    "queue": ("a queue of SAQ's, such as saq.Queue.from_url('redis://localhost')", _queue),
    "queues": ("several queues of SAQ's", lambda value: tuple(map(_queue, _several(value)))),
    "concurrency": ("a whole number from 1 to 10,000", whole(1, 10_000)),
    "cron_jobs": ("instances of saq.CronJob with cron expressions that croniter reads", _crons),
    "cron_tz": ("a time zone, such as zoneinfo.ZoneInfo('Europe/Berlin')", _kind(tzinfo)),
    "startup": (HOOKS, _hooks),
    "shutdown": (HOOKS, _hooks),
    "before_process": (HOOKS, _hooks),
    "after_process": (HOOKS, _hooks),
    "timers": (f"seconds above 0 for {', '.join(TIMERS)}", _timers),
    "dequeue_timeout": ("seconds from 0 on", _number),
    "burst": ("True or False", _kind(bool)),
    "max_burst_jobs": ("a whole number from 1 on", whole(1, 1_000_000_000)),
    "shutdown_grace_period_s": ("seconds from 0 on", _number),
    "cancellation_hard_deadline_s": ("seconds from 0 on", _number),
    "metadata": ("a dictionary that JSON can carry", _kind(dict)),
    "id": ("a text without spaces and colons", _identity),
    "poll_interval": ("seconds from 0 on, which only PostgreSQL needs", _number),
}
