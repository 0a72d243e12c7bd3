"""Timing: durations and moments as users write them, and as Redis and SAQ store them.

People hand in seconds or a ``timedelta``, and an aware ``datetime``; inside, a
duration is seconds as a float and a moment is milliseconds since 1970 as an int.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

Duration: TypeAlias = float | timedelta
"""Seconds, or a ``timedelta``."""


def seconds(duration: Duration) -> float:
    """Return a duration in seconds."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


def now_ms() -> int:
    """Return this machine's time in milliseconds since 1970."""
    return int(time.time() * 1000)


def epoch_seconds(moment: datetime) -> float:
    """Return a moment in seconds since 1970.

    Raises:
        ValueError: The moment has no timezone, so it names 24 different moments; use ``datetime.now(UTC)``.
    """
    if moment.tzinfo is None:
        msg = f"{moment!r} has no timezone"
        raise ValueError(msg)
    return moment.timestamp()


def from_ms(moment_ms: int) -> datetime:
    """Return milliseconds since 1970 as an aware UTC ``datetime``."""
    return datetime.fromtimestamp(moment_ms / 1000, UTC)
