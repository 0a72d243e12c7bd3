"""Options: what ``@task`` may be told, checked completely when the task is defined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal, TypedDict

from knapsaq.batch import Batch
from knapsaq.checks import (
    MAX_SECONDS,
    NAME,
    SECONDS,
    SOME_SECONDS,
    Check,
    check,
    duration,
    flag,
    mapping,
    name,
    queue_name,
    some_time,
    whole,
)
from knapsaq.errors import InvalidArgumentsError, OptionError, TaskDefinitionError
from knapsaq.hooks import EXPECTED, middlewares
from knapsaq.limits import (
    LIMIT_CHECKS,
    WAYS,
    Concurrency,
    ConcurrencyLimit,
    Debounce,
    Key,
    Rate,
    RateLimit,
    Throttle,
    Unique,
    refuse_several,
)
from knapsaq.timing import Duration, epoch_seconds

DEFAULT_QUEUE = "default"
MAX_RETRIES = 10_000
NEVER_RETRIED = (InvalidArgumentsError, TaskDefinitionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """The options of one task, as given; ``None`` takes the default of ``Settings``.

    Attributes:
        name: The task's name in the registry and on the wire; the function's name by default.
        queue: The queue that its jobs go to.
        names_queue: Whether that was said; else ``Settings.task_routes`` may say it.
        timeout: Hard limit of one attempt in seconds; 0 is no limit.
        soft_timeout: Seconds, above 0 and below ``timeout``, after which ``SoftTimeLimitExceeded`` is raised in the
            task, so that it can clean up.
        retries: Further attempts after the first, 0 to 10,000. Without it a task is not run again when it raises,
            but may itself ask for ``Settings.task_max_retries`` further attempts with ``Retry``.
        retry_delay: Seconds before the first retry.
        retry_backoff: ``True`` doubles the delay with each retry, a number does so up to that many seconds.
        retry_jitter: Whether each delay is drawn between half of it and the whole of it.
        retry_on: Only these exceptions are retried.
        give_up_on: These exceptions are never retried.
        ttl: Seconds that a finished job and its result are kept; 0 for ever, -1 not at all.
        expires: Seconds from the moment at which a job may run, or an aware ``datetime``; one that no worker has
            started by then ends as expired and never runs.
        run: ``"async"`` on the event loop, ``"thread"`` in a thread, ``"process"`` in a process of its own, for plain
            functions at the top of a module that keep a processor busy; by the kind of function unless given.
        batch: That the function gets a list of calls at once; not in a process.
        middleware: What is done around its jobs, outermost first, inside of the registry's own.
        dependencies: Providers for this task alone, by parameter name; they win over the registry's.
        priority: 0 to 9; of the jobs that wait, those with a higher one begin first.
        rate_limit: How often they may begin: ``"10/m"``, a ``Rate``, or several, which all have to let a job go.
        concurrency: How many may run at once, in all workers together: a number, a ``Concurrency``, or several.
        unique: Whether jobs with the same arguments are one, or how; see ``Unique``.
        debounce: Seconds without another call after which a job runs; see ``Debounce``.
        throttle: Seconds within which calls get the same job; see ``Throttle``. At most one of these three.
        fair_key: Whose job it is, so that nobody's many jobs hold up another's: the name of a parameter, or a function
            of the arguments by name.
    """

    name: str | None = None
    queue: str = DEFAULT_QUEUE
    names_queue: bool = False
    timeout: float | None = None
    soft_timeout: float | None = None
    retries: int | None = None
    retry_delay: float = 1.0
    retry_backoff: bool | float = True
    retry_jitter: bool = True
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    give_up_on: tuple[type[BaseException], ...] = ()
    ttl: int | None = None
    expires: float | datetime | None = None
    run: Literal["async", "thread", "process"] | None = None
    batch: Batch | None = None
    middleware: tuple[Any, ...] = ()
    dependencies: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    priority: int = 0
    rate_limit: tuple[Rate, ...] = ()
    concurrency: tuple[Concurrency, ...] = ()
    unique: Unique | Literal[False] = False
    debounce: Debounce | Literal[False] = False
    throttle: Throttle | Literal[False] = False
    fair_key: Key | None = None

    @classmethod
    def build(cls, place: str, given: Mapping[str, Any]) -> TaskOptions:
        """Return checked options.

        Args:
            place: Where they were given, for the error's text.
            given: The options by name.

        Raises:
            OptionError: One is unknown or out of range, or two do not go together; the error names the legal ones.
        """
        checked = check(place, given, CHECKS)
        refuse_several(place, checked)
        options = cls(**checked, names_queue="queue" in checked)
        if options.soft_timeout and options.timeout and options.soft_timeout >= options.timeout:
            expected = f"less than timeout, which is {options.timeout:g} s and ends the attempt"
            raise OptionError(place, "soft_timeout", given["soft_timeout"], expected)
        if options.batch is not None and options.run == "process":
            raise OptionError(place, "batch", options.batch, "no run='process' with it; a plain `def` runs in a thread")
        return options

    def retries_after(self, error: BaseException) -> bool:
        """Return whether an attempt that raised this is worth another one, as far as there is one left."""
        if isinstance(error, (*NEVER_RETRIED, *self.give_up_on)):
            return False
        return isinstance(error, self.retry_on)


def preset(place: str, outer: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a preset: ``given`` on top of those of the preset that it is made of.

    Raises:
        OptionError: One is unknown, out of range, or a ``name`` or ``batch``, which each task has for itself.
    """
    if given.get("name") is not None:
        raise OptionError(place, "name", given["name"], "nothing, as each task has a name of its own")
    if given.get("batch") is not None:
        raise OptionError(place, "batch", given["batch"], "nothing, as a function is written for it; say it in @task")
    checked = check(place, given, CHECKS)
    refuse_several(place, checked)
    return merged(outer, checked)


def merged(outer: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options on top of checked ones: middlewares go inside, providers are added by name, others replace.

    Of ``unique``, ``debounce`` and ``throttle`` one replaces the others.
    """
    said = {name: value for name, value in given.items() if value is not None}
    options = {**_without_ways(outer, said), **said}
    if outer.get("middleware") and given.get("middleware") is not None:
        own = given["middleware"]
        options["middleware"] = (*outer["middleware"], *(own if isinstance(own, (list, tuple)) else (own,)))
    if outer.get("dependencies") and isinstance(given.get("dependencies"), Mapping):
        options["dependencies"] = {**outer["dependencies"], **given["dependencies"]}
    return options


def _without_ways(outer: Mapping[str, Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    if not any(way in given for way in WAYS):
        return outer
    return {name: value for name, value in outer.items() if name not in WAYS}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What ``.using(...)`` may say of one call; ``None`` takes the task's own option.

    Attributes:
        queue: Another queue.
        key: The job's key; while a job of that key has not ended, the same job is returned instead of a new one.
        delay: Seconds from now before it may run; not together with ``eta``.
        eta: The aware ``datetime`` before which it does not run.
        timeout: Hard limit of one attempt in seconds; 0 is no limit.
        retries: Further attempts after the first; with 0 it is not run again either where it raises ``Retry``.
        ttl: Seconds that the finished job is kept.
        expires: Seconds from the moment at which it may run, or an aware ``datetime``; if no worker has started it
            by then, it ends as expired and never runs.
        headers: Text by name that travels with the job and is read as ``ctx.headers``.
        priority: 0 to 9; of the jobs that wait, those with a higher one begin first.
        rate_limit: Instead of the task's rates, those of its annotations among them; an empty list is none.
        concurrency: Likewise instead of the task's.
        unique: Instead of the task's ``unique``, ``debounce`` or ``throttle``; False is none of them. Where a ``key``
            is named, it stands for the arguments.
        debounce: Likewise; not together with ``delay`` or ``eta``.
        throttle: Likewise.
        fair_key: Instead of the task's.
        controlled: Whether any of the last seven was said.
    """

    queue: str | None = None
    key: str | None = None
    delay: float | None = None
    eta: float | None = None
    timeout: float | None = None
    retries: int | None = None
    ttl: int | None = None
    expires: float | datetime | None = None
    headers: Mapping[str, str] | None = None
    priority: int | None = None
    rate_limit: tuple[Rate, ...] | None = None
    concurrency: tuple[Concurrency, ...] | None = None
    unique: Unique | Literal[False] | None = None
    debounce: Debounce | Literal[False] | None = None
    throttle: Throttle | Literal[False] | None = None
    fair_key: Key | None = None
    controlled: bool = False

    def merged(self, place: str, given: Mapping[str, Any]) -> CallOptions:
        """Return these options with ``given`` on top.

        Raises:
            OptionError: One is unknown or out of range, two do not go together, or it expires before it is due.
        """
        checked = check(place, given, CALL_CHECKS)
        if not checked.keys().isdisjoint(LIMIT_CHECKS):
            ways: dict[str, Any] = dict.fromkeys(WAYS) if not checked.keys().isdisjoint(WAYS) else {}
            checked = {**ways, **checked, "controlled": True}
        merged = replace(self, **checked)
        if merged.controlled:
            refuse_several(place, {name: getattr(merged, name) for name in (*WAYS, "delay", "eta")})
        if merged.delay is not None and merged.eta is not None:
            raise OptionError(place, "eta", given.get("eta", merged.eta), "either delay or eta, not both")
        if isinstance(merged.expires, datetime) and merged.eta and merged.eta >= merged.expires.timestamp():
            raise OptionError(place, "expires", merged.expires, "a moment after eta, as it would never run")
        return merged


class LimitKeywords(TypedDict, total=False):
    """The options of both that flow control obeys; None is as if not given."""

    priority: int | None
    rate_limit: RateLimit | None
    concurrency: ConcurrencyLimit | None
    unique: bool | Unique | None
    debounce: Duration | Debounce | Literal[False] | None
    throttle: Duration | Throttle | Literal[False] | None
    fair_key: Key | None


class TaskKeywords(LimitKeywords, total=False):
    """The options of ``@task`` for type checkers and editors; None is as if not given."""

    name: str | None
    queue: str | None
    timeout: Duration | None
    soft_timeout: Duration | None
    retries: int | None
    retry_delay: Duration | None
    retry_backoff: bool | Duration | None
    retry_jitter: bool | None
    retry_on: type[BaseException] | tuple[type[BaseException], ...] | None
    give_up_on: type[BaseException] | tuple[type[BaseException], ...] | None
    ttl: int | None
    expires: Duration | datetime | None
    run: Literal["async", "thread", "process"] | None
    middleware: object
    dependencies: Mapping[str, Any] | None


class CallKeywords(LimitKeywords, total=False):
    """The options of ``.using()`` for type checkers and editors; None is as if not given."""

    queue: str | None
    key: str | None
    delay: Duration | None
    eta: datetime | None
    timeout: Duration | None
    retries: int | None
    ttl: int | None
    expires: Duration | datetime | None
    headers: Mapping[str, str] | None


def _backoff(value: Any) -> bool | float:
    return value if isinstance(value, bool) else duration(value)


def _exceptions(value: Any) -> tuple[type[BaseException], ...]:
    kinds = value if isinstance(value, tuple) else (value,)
    if all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        return kinds
    raise TypeError(value)


def _run(value: Any) -> str:
    if value in ("async", "thread", "process"):
        return str(value)
    raise ValueError(value)


def _batch(value: Any) -> Batch:
    if isinstance(value, Batch):
        return value
    raise TypeError(value)


def _providers(value: Any) -> Mapping[str, Any]:
    return MappingProxyType({name(key): provider for key, provider in mapping(value).items()})


def _moment(value: Any) -> float:
    if isinstance(value, datetime):
        return epoch_seconds(value)
    raise TypeError(value)


def _expires(value: Any) -> float | datetime:
    if not isinstance(value, datetime):
        return some_time(value)
    epoch_seconds(value)
    return value


def _headers(value: Any) -> Mapping[str, str]:
    headers = mapping(value)
    if all(isinstance(key, str) and isinstance(text, str) for key, text in headers.items()):
        return headers
    raise TypeError(value)


RETRIES = f"a whole number from 0 to {MAX_RETRIES:,}"
TTL = "whole seconds, 0 for ever, or -1 not at all"
EXPIRES = "seconds above 0 up to ten years, a timedelta, or an aware datetime"

CHECKS: dict[str, tuple[str, Check]] = {
    "name": (NAME, name),
    "queue": ("1 to 64 letters, digits or _ . - { }", queue_name),
    "timeout": (SECONDS, duration),
    "soft_timeout": (SOME_SECONDS, some_time),
    "retries": (RETRIES, whole(0, MAX_RETRIES)),
    "retry_delay": (SECONDS, duration),
    "retry_backoff": ("True, False or the longest delay in seconds", _backoff),
    "retry_jitter": ("True or False", flag),
    "retry_on": ("an exception class or a tuple of them", _exceptions),
    "give_up_on": ("an exception class or a tuple of them", _exceptions),
    "ttl": (TTL, whole(-1, int(MAX_SECONDS))),
    "expires": (EXPIRES, _expires),
    "run": ("'async', 'thread' or 'process'", _run),
    "batch": ("a Batch, such as Batch(size=100, wait=0.5)", _batch),
    "middleware": (EXPECTED, middlewares),
    "dependencies": ("providers by parameter name", _providers),
    **LIMIT_CHECKS,
}

CALL_CHECKS: dict[str, tuple[str, Check]] = {
    "queue": ("1 to 64 letters, digits or _ . - { }", queue_name),
    "key": (NAME, name),
    "delay": (SECONDS, duration),
    "eta": ("an aware datetime, such as datetime.now(UTC) + timedelta(hours=1)", _moment),
    "timeout": (SECONDS, duration),
    "retries": (RETRIES, whole(0, MAX_RETRIES)),
    "ttl": (TTL, whole(-1, int(MAX_SECONDS))),
    "expires": (EXPIRES, _expires),
    "headers": ("text by name", _headers),
    **LIMIT_CHECKS,
}
