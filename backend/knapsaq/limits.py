"""Limits: how often and how many at once the jobs of a task run, and which of them are one and the same.

Where in the flow: ``@task``, ``.using()`` and the annotations of parameters name them, checked as they are written;
``control`` makes of them what a job carries; the scripts obey that.

Invariants, each a test in ``tests/unit/test_limits.py``:

* a rate's interval is rounded up, so that no rate is faster than it says;
* a value that is wrong is refused where it is written.

Source of the rates: GCRA, ITU-T I.371 (1996), in whole microseconds.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, Union, get_args, get_origin

from knapsaq.checks import MAX_SECONDS, SOME_SECONDS, Check, check, flag, some_time, whole
from knapsaq.errors import OptionError
from knapsaq.timing import Duration

Key: TypeAlias = str | Callable[[Mapping[str, Any]], object]
"""The name of a parameter, or a function of the call's arguments by name; None from either is no key."""

HIGHEST_PRIORITY = 9
MOST = 1_000_000
MICROSECONDS = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
RATE = re.compile(r"([1-9][0-9]{0,6})/([1-9][0-9]{0,8})?([smhd])")
WAYS = ("unique", "debounce", "throttle")


class Way(NamedTuple):
    """How jobs are one and the same: what is checked, and what becomes of a second one.

    Attributes:
        by: The parameters that it goes by; None for all.
        until: ``"start"``, ``"end"``, or whole milliseconds from the first one's acceptance.
        clash: What becomes of the second one.
        delay: Seconds by which each is delayed.
    """

    by: tuple[str, ...] | None
    until: Literal["start", "end"] | int
    clash: Literal["existing", "raise", "replace"]
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Rate:
    """How often jobs may begin; those that come faster wait, and hold up no other task's.

    The starts are spread: ``"10/m"`` is one each 6 seconds. ``burst`` lets so many begin at once after a quiet time.

    Attributes:
        limit: A count from 1 to 1,000,000, a slash, and ``s``, ``m``, ``h`` or ``d``, perhaps with a number before
            it: ``"10/s"``, ``"100/h"``, ``"5/15m"``.
        key: Each value has the rate for itself: the name of a parameter, or a function of the arguments by name. The
            value is text, a number, a ``UUID``, a date or an ``Enum``; a job for which it is None is not limited.
        burst: How many may begin at once after a quiet time, from 1 to the count; jobs are let go to the millisecond,
            so rates of more than some hundred a second are reached with a burst alone.

    Raises:
        OptionError: One is wrong.
    """

    limit: str
    key: Key | None = None
    burst: int = 1

    def __post_init__(self) -> None:
        given = {"limit": _given(self.limit), "key": self.key, "burst": _given(self.burst)}
        check("Rate()", given, _RATE_CHECKS)
        count = _parsed(self.limit)[0]
        if self.burst > count:
            raise OptionError("Rate()", "burst", self.burst, f"a whole number from 1 to {count:,}, the rate's count")

    def __str__(self) -> str:
        burst = f", {self.burst} at once" if self.burst > 1 else ""
        return f"{self.limit}{_by(self.key)}{burst}"

    @property
    def interval_us(self) -> int:
        """The microseconds between two starts, rounded up."""
        count, period_us = _parsed(self.limit)
        return -(-period_us // count)


@dataclass(frozen=True, slots=True)
class Concurrency:
    """How many jobs may run at once, in all workers together; the others wait, and hold up no other task's.

    Attributes:
        limit: 1 to 1,000,000.
        key: Each value has so many for itself; as in ``Rate``.

    Raises:
        OptionError: One is wrong.
    """

    limit: int
    key: Key | None = None

    def __post_init__(self) -> None:
        check("Concurrency()", {"limit": _given(self.limit), "key": self.key}, _CONCURRENCY_CHECKS)

    def __str__(self) -> str:
        return f"{self.limit}{_by(self.key)}"


Limit: TypeAlias = Rate | Concurrency


@dataclass(frozen=True, slots=True)
class Unique:
    """Jobs with the same arguments are one: while there is one, a second one is not queued.

    How the arguments are written does not matter: by name or by place, in any order, with a default or without.

    Attributes:
        by: The parameters that count, by name; all unless given. An empty tuple: there is one of the task at all.
        until: Up to when there is one: its ``"start"``, its ``"end"``, however it ends; or seconds or a ``timedelta``,
            above 0 up to ten years, from the moment at which it was accepted.
        clash: What becomes of a second one: the ``"existing"`` job is returned in its place, ``"raise"`` raises
            ``DuplicateJobError``, and ``"replace"`` lets it take the place of one that has not started.

    Raises:
        OptionError: One is wrong.
    """

    by: str | Iterable[str] | None = None
    until: Literal["start", "end"] | Duration = "end"
    clash: Literal["existing", "raise", "replace"] = "existing"

    def __post_init__(self) -> None:
        given = {"by": self.by, "until": _given(self.until), "clash": _given(self.clash)}
        _store(self, check("Unique()", given, _UNIQUE_CHECKS))

    def __str__(self) -> str:
        until = f"{self.until:g} s" if isinstance(self.until, float) else self.until
        return f"until {until}{_by(self.by)}, else {self.clash}"

    @property
    def way(self) -> Way:
        """What it comes to."""
        until: Any = self.until
        return Way(_names_of(self.by), _ms(until) if isinstance(until, float) else until, self.clash)


@dataclass(frozen=True, slots=True)
class Debounce:
    """A job runs once no other call has come for so long; the newest call's arguments count.

    Attributes:
        seconds: Seconds or a ``timedelta``, above 0 up to ten years, that each call puts it off.
        by: The parameters that tell which calls are of one job; all unless given.

    Raises:
        OptionError: One is wrong.
    """

    seconds: Duration
    by: str | Iterable[str] | None = None

    def __post_init__(self) -> None:
        _store(self, check("Debounce()", {"seconds": _given(self.seconds), "by": self.by}, _LENGTH_CHECKS))

    def __str__(self) -> str:
        return f"{self.seconds:g} s{_by(self.by)}"

    @property
    def way(self) -> Way:
        """What it comes to."""
        return Way(_names_of(self.by), "start", "replace", some_time(self.seconds))


@dataclass(frozen=True, slots=True)
class Throttle:
    """The first of several calls runs; the others within so long from it get the same job.

    Attributes:
        seconds: Seconds or a ``timedelta``, above 0 up to ten years, from the acceptance of the first one.
        by: The parameters that tell which calls are of one job; all unless given.

    Raises:
        OptionError: One is wrong.
    """

    seconds: Duration
    by: str | Iterable[str] | None = None

    def __post_init__(self) -> None:
        _store(self, check("Throttle()", {"seconds": _given(self.seconds), "by": self.by}, _LENGTH_CHECKS))

    def __str__(self) -> str:
        return f"{self.seconds:g} s{_by(self.by)}"

    @property
    def way(self) -> Way:
        """What it comes to."""
        return Way(_names_of(self.by), _ms(some_time(self.seconds)), "existing")


RateLimit: TypeAlias = str | Rate | Sequence[str | Rate]
"""What the option ``rate_limit`` takes."""
ConcurrencyLimit: TypeAlias = int | Concurrency | Sequence[int | Concurrency]
"""What the option ``concurrency`` takes."""


def refuse_several(place: str, options: Mapping[str, Any]) -> None:
    """Refuse more than one of ``unique``, ``debounce`` and ``throttle``, and a moment beside a debounce.

    Raises:
        OptionError: Naming the second one.
    """
    named = [way for way in WAYS if options.get(way)]
    if len(named) > 1:
        expected = f"nothing beside {named[0]}, as each says which jobs are one; choose one of {', '.join(WAYS)}"
        raise OptionError(place, named[1], options[named[1]], expected)
    if options.get("debounce"):
        refuse_moment(place, options)


def refuse_moment(place: str, options: Mapping[str, Any]) -> None:
    """Refuse a ``delay`` or an ``eta`` of a job that is debounced.

    Raises:
        OptionError: There is one.
    """
    for name in ("delay", "eta"):
        if options.get(name):
            expected = "nothing beside debounce, which says when the job runs; debounce=False leaves it to the call"
            raise OptionError(place, name, options[name], expected)


def without_limits(annotation: Any) -> tuple[Any, tuple[Limit, ...]]:
    """Return an annotation without the limits in it, and those limits."""
    annotation = getattr(annotation, "__value__", annotation) if _is_alias(annotation) else annotation
    if get_origin(annotation) is Annotated:
        inner, *extras = get_args(annotation)
        found = tuple(extra for extra in extras if isinstance(extra, (Rate, Concurrency)))
        within = without_limits(inner)[1]
        if not found:
            return annotation, within
        rest = tuple(extra for extra in extras if extra not in found)
        return (Annotated[(inner, *rest)] if rest else inner), (*within, *found)
    if get_origin(annotation) in (Union, types.UnionType):
        return annotation, tuple(limit for one in get_args(annotation) for limit in without_limits(one)[1])
    return annotation, ()


def _is_alias(annotation: Any) -> bool:
    """Tell what the statement ``type A = ...`` makes, if there are limits in it."""
    value = getattr(annotation, "__value__", None)
    return type(annotation).__name__ == "TypeAliasType" and bool(without_limits(value)[1])


def _given(value: Any) -> Any:
    """Return a value as it is checked: None is not as if not given here."""
    return _NOTHING if value is None else value


class _Nothing:
    def __repr__(self) -> str:
        return "None"


_NOTHING = _Nothing()


def _store(limit: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        object.__setattr__(limit, name, value)


def _by(key: object) -> str:
    """Return what a limit goes by, in words."""
    if key is None:
        return ""
    names = [key] if isinstance(key, str) or callable(key) else list(_names(key))
    return " by " + (", ".join(str(getattr(name, "__name__", name)) for name in names) or "nothing")


def _parsed(limit: Any) -> tuple[int, int]:
    """Return the count and the microseconds of its period."""
    match = RATE.fullmatch(limit) if isinstance(limit, str) else None
    if match is None or int(match[1]) > MOST:
        raise ValueError(limit)
    period_us = int(match[2] or 1) * MICROSECONDS[match[3]]
    if period_us > MAX_SECONDS * MICROSECONDS["s"]:
        raise ValueError(limit)
    return int(match[1]), period_us


def _rate_text(value: Any) -> Any:
    _parsed(value)
    return value


def _ms(seconds: float) -> int:
    return math.ceil(seconds * 1000)


def _names(value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value)
    if all(isinstance(name, str) and name for name in names):
        return names
    raise TypeError(value)


def _names_of(by: str | Iterable[str] | None) -> tuple[str, ...] | None:
    return None if by is None else _names(by)


def _key(value: Any) -> Any:
    if (isinstance(value, str) and value) or (callable(value) and not isinstance(value, type)):
        return value
    raise TypeError(value)


def _until(value: Any) -> Any:
    return value if value in ("start", "end") else some_time(value)


def _clash(value: Any) -> Any:
    if value in ("existing", "raise", "replace"):
        return value
    raise ValueError(value)


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _rates(value: Any) -> tuple[Rate, ...]:
    return tuple(one if isinstance(one, Rate) else Rate(_rate_text(one)) for one in _several(value))


def _concurrencies(value: Any) -> tuple[Concurrency, ...]:
    return tuple(one if isinstance(one, Concurrency) else Concurrency(_count(one)) for one in _several(value))


def _unique(value: Any) -> Unique | Literal[False]:
    if isinstance(value, Unique):
        return value
    return Unique() if flag(value) else False


def _debounce(value: Any) -> Debounce | Literal[False]:
    if value is False or isinstance(value, Debounce):
        return value
    return Debounce(some_time(value))


def _throttle(value: Any) -> Throttle | Literal[False]:
    if value is False or isinstance(value, Throttle):
        return value
    return Throttle(some_time(value))


_count = whole(1, MOST)
_COUNT = f"a whole number from 1 to {MOST:,}"
_RATE = "a count from 1 to 1,000,000 for each s, m, h or d, such as '10/s', '100/h' or '5/15m'"
_KEY = "the name of a parameter, or a function of the arguments by name"
_BY = ("the name of a parameter, or several", _names)
_RATE_CHECKS: dict[str, tuple[str, Check]] = {
    "limit": (_RATE, _rate_text),
    "key": (_KEY, _key),
    "burst": (_COUNT, _count),
}
_CONCURRENCY_CHECKS: dict[str, tuple[str, Check]] = {"limit": (_COUNT, _count), "key": (_KEY, _key)}
_UNIQUE_CHECKS: dict[str, tuple[str, Check]] = {
    "by": _BY,
    "until": (f"'start', 'end', or {SOME_SECONDS}", _until),
    "clash": ("'existing', 'raise' or 'replace'", _clash),
}
_LENGTH_CHECKS: dict[str, tuple[str, Check]] = {"seconds": (SOME_SECONDS, some_time), "by": _BY}

LIMIT_CHECKS: dict[str, tuple[str, Check]] = {
    "priority": (f"a whole number from 0 to {HIGHEST_PRIORITY}, the higher the sooner", whole(0, HIGHEST_PRIORITY)),
    "rate_limit": (f"{_RATE}, a Rate, or a list of them", _rates),
    "concurrency": (f"{_COUNT}, a Concurrency, or a list of them", _concurrencies),
    "unique": ("True, False or a Unique", _unique),
    "debounce": (f"{SOME_SECONDS}; a Debounce, or False", _debounce),
    "throttle": (f"{SOME_SECONDS}; a Throttle, or False", _throttle),
    "fair_key": (_KEY, _key),
}
"""The options that this is about, of tasks and of calls."""
