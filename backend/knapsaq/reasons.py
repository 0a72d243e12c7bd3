"""Reasons: why a job does not run, in words and as data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

ReasonKind = Literal[
    "ended",
    "running",
    "scheduled",
    "rate limit",
    "concurrency",
    "struck",
    "parent",
    "unknown task",
    "paused",
    "no worker",
    "queued",
]


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that a job waits for; ``str()`` of it says so in words.

    Attributes:
        kind: What it is.
        words: The same as a sentence's part.
        until: When that will be over, as far as it is known; an estimate where jobs are before it.
        ahead: How many jobs are before it there.
        jobs: The keys of the jobs that it waits for: holders of a concurrency's slots, or unfinished parents.
    """

    kind: ReasonKind
    words: str
    until: datetime | None = None
    ahead: int = 0
    jobs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.words
