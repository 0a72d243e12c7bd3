"""Options: what ``@task`` may be told, checked completely when the task is defined."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Literal, TypedDict

from knapsaq.errors import InvalidArgumentsError, OptionError, TaskDefinitionError, closest
from knapsaq.hooks import EXPECTED, UnfitError, middlewares
from knapsaq.setting_checks import QUEUE_NAME
from knapsaq.timing import Duration, epoch_seconds, seconds

NAME_PATTERN = re.compile(r"[A-Za-z0-9_.:\-{}/]{1,200}")
DEFAULT_QUEUE = "default"
MAX_SECONDS = 10 * 365 * 86_400.0
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
        middleware: What is done around its jobs, outermost first, inside of the registry's own.
        dependencies: Providers for this task alone, by parameter name; they win over the registry's.
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
    middleware: tuple[Any, ...] = ()
    dependencies: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def build(cls, place: str, given: Mapping[str, Any]) -> TaskOptions:
        """Return checked options.

        Args:
            place: Where they were given, for the error's text.
            given: The options by name.

        Raises:
            OptionError: One is unknown or out of range; the error names the legal ones.
        """
        checked = check(place, given, CHECKS)
        options = cls(**checked, names_queue="queue" in checked)
        if options.soft_timeout and options.timeout and options.soft_timeout >= options.timeout:
            expected = f"less than timeout, which is {options.timeout:g} s and ends the attempt"
            raise OptionError(place, "soft_timeout", given["soft_timeout"], expected)
        return options

    def retries_after(self, error: BaseException) -> bool:
        """Return whether an attempt that raised this is worth another one, as far as there is one left."""
        if isinstance(error, (*NEVER_RETRIED, *self.give_up_on)):
            return False
        return isinstance(error, self.retry_on)


def preset(place: str, outer: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a preset: ``given`` on top of those of the preset that it is made of.

    Raises:
        OptionError: One is unknown, out of range, or a ``name``, which each task has for itself.
    """
    if given.get("name") is not None:
        raise OptionError(place, "name", given["name"], "nothing, as each task has a name of its own")
    return merged(outer, check(place, given, CHECKS))


def merged(outer: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options on top of checked ones: middlewares go inside, providers are added by name, others replace."""
    options = {**outer, **{name: value for name, value in given.items() if value is not None}}
    if outer.get("middleware") and given.get("middleware") is not None:
        own = given["middleware"]
        options["middleware"] = (*outer["middleware"], *(own if isinstance(own, (list, tuple)) else (own,)))
    if outer.get("dependencies") and isinstance(given.get("dependencies"), Mapping):
        options["dependencies"] = {**outer["dependencies"], **given["dependencies"]}
    return options


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

    def merged(self, place: str, given: Mapping[str, Any]) -> CallOptions:
        """Return these options with ``given`` on top.

        Raises:
            OptionError: One is unknown or out of range, both ``delay`` and ``eta`` are given, or it expires before.
        """
        merged = replace(self, **check(place, given, CALL_CHECKS))
        if merged.delay is not None and merged.eta is not None:
            raise OptionError(place, "eta", given.get("eta", merged.eta), "either delay or eta, not both")
        if isinstance(merged.expires, datetime) and merged.eta and merged.eta >= merged.expires.timestamp():
            raise OptionError(place, "expires", merged.expires, "a moment after eta, as it would never run")
        return merged


class TaskKeywords(TypedDict, total=False):
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


class CallKeywords(TypedDict, total=False):
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


Check = Callable[[Any], Any]


def check(place: str, given: Mapping[str, Any], checks: Mapping[str, tuple[str, Check]]) -> dict[str, Any]:
    """Return the options as they are stored; each check returns the stored value or raises ``ValueError``."""
    checked: dict[str, Any] = {}
    for option, value in given.items():
        if option not in checks:
            close = closest(option, checks)
            hint = f" (did you mean {close!r}?)" if close else ""
            raise OptionError(place, option, value, f"one of the options {', '.join(checks)}{hint}")
        if value is None:
            continue
        expected, convert = checks[option]
        try:
            checked[option] = convert(value)
        except UnfitError as error:
            raise OptionError(place, option, value, f"{expected}: {error}") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise OptionError(place, option, value, expected) from error
    return checked


def name(value: Any) -> str:
    """Accept a name of a task or a key."""
    if isinstance(value, str) and NAME_PATTERN.fullmatch(value):
        return value
    raise ValueError(value)


def queue_name(value: Any) -> str:
    """Accept a queue's name, by the rule of ``Settings.queues``."""
    if isinstance(value, str) and QUEUE_NAME.fullmatch(value):
        return value
    raise ValueError(value)


def duration(value: Any) -> float:
    """Accept seconds from 0 to ten years, or a ``timedelta``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, timedelta)):
        raise TypeError(value)
    length = seconds(value)
    if 0 <= length <= MAX_SECONDS:
        return length
    raise ValueError(value)


def whole(low: int, high: int) -> Check:
    """Accept a whole number in a range."""

    def convert(value: Any) -> int:
        if isinstance(_not_bool(value), int) and low <= value <= high:
            return int(value)
        raise ValueError(value)

    return convert


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise TypeError(value)
    return value


def text(value: Any) -> str:
    """Return a text.

    Raises:
        TypeError: It is none.
    """
    if isinstance(value, str):
        return value
    raise TypeError(value)


def flag(value: Any) -> bool:
    """Return a truth value.

    Raises:
        TypeError: It is none.
    """
    if isinstance(value, bool):
        return value
    raise TypeError(value)


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


def _providers(value: Any) -> Mapping[str, Any]:
    return MappingProxyType({name(key): provider for key, provider in _mapping(value).items()})


def _mapping(value: Any) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(value)


def _moment(value: Any) -> float:
    if isinstance(value, datetime):
        return epoch_seconds(value)
    raise TypeError(value)


def _some_time(value: Any) -> float:
    if length := duration(value):
        return length
    raise ValueError(value)


def _expires(value: Any) -> float | datetime:
    if not isinstance(value, datetime):
        return _some_time(value)
    epoch_seconds(value)
    return value


def _headers(value: Any) -> Mapping[str, str]:
    headers = _mapping(value)
    if all(isinstance(key, str) and isinstance(text, str) for key, text in headers.items()):
        return headers
    raise TypeError(value)


SECONDS = "seconds from 0 to ten years, or a timedelta"
RETRIES = f"a whole number from 0 to {MAX_RETRIES:,}"
TTL = "whole seconds, 0 for ever, or -1 not at all"
EXPIRES = "seconds above 0 up to ten years, a timedelta, or an aware datetime"
NAME = "1 to 200 letters, digits or _ . : - / { }"

CHECKS: dict[str, tuple[str, Check]] = {
    "name": (NAME, name),
    "queue": ("1 to 64 letters, digits or _ . - { }", queue_name),
    "timeout": (SECONDS, duration),
    "soft_timeout": ("seconds above 0 up to ten years, or a timedelta", _some_time),
    "retries": (RETRIES, whole(0, MAX_RETRIES)),
    "retry_delay": (SECONDS, duration),
    "retry_backoff": ("True, False or the longest delay in seconds", _backoff),
    "retry_jitter": ("True or False", flag),
    "retry_on": ("an exception class or a tuple of them", _exceptions),
    "give_up_on": ("an exception class or a tuple of them", _exceptions),
    "ttl": (TTL, whole(-1, int(MAX_SECONDS))),
    "expires": (EXPIRES, _expires),
    "run": ("'async', 'thread' or 'process'", _run),
    "middleware": (EXPECTED, middlewares),
    "dependencies": ("providers by parameter name", _providers),
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
}
