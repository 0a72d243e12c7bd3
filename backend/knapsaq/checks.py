"""Checks: how what somebody has given for an option is checked, and stored in one form.

Where in the flow: below everything that takes options. Each check returns the stored value or raises ``ValueError`` or
``TypeError``; ``check`` makes of that an ``OptionError`` that says what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from knapsaq.errors import OptionError, closest
from knapsaq.hooks import UnfitError
from knapsaq.setting_checks import QUEUE_NAME
from knapsaq.timing import seconds

NAME_PATTERN = re.compile(r"[A-Za-z0-9_.:\-{}/]{1,200}")
MAX_SECONDS = 10 * 365 * 86_400.0
NAME = "1 to 200 letters, digits or _ . : - / { }"
SECONDS = "seconds from 0 to ten years, or a timedelta"
SOME_SECONDS = "seconds above 0 up to ten years, or a timedelta"

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


def some_time(value: Any) -> float:
    """Accept seconds above 0 up to ten years, or a ``timedelta``."""
    if length := duration(value):
        return length
    raise ValueError(value)


def mapping(value: Any) -> dict[Any, Any]:
    """Accept a mapping; returns a dict of its own."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(value)
