"""Lineage: what a job inherits from where it is enqueued: headers, its parent and its root.

Where in the flow: ``Queue`` asks here as it accepts a job. A worker names the job that it runs as the origin of what
is enqueued meanwhile, the Litestar plugin the request that it answers, and ``bound_headers`` whatever a program likes.
Outside of all three there is no origin, and nothing is stored.

Invariants, each a test in ``tests/redis/test_lineage.py``:

* a job has the headers of its origin, and its own win;
* a job that was enqueued by another knows it as its parent, and the first of them all as its root;
* a job without an origin is stored with no byte more.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

from saq.job import Job as SaqJob

from knapsaq.checks import check
from knapsaq.job import HEADERS, META_KEY, PARENT, ROOT, Job, extras_of
from knapsaq.options import CALL_CHECKS

CORRELATION = "correlation_id"
"""The header under which a request, the jobs that it enqueued and their followers are found in a log."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where jobs come from, other than a job itself: a request, or a block of a program.

    Attributes:
        headers: The text that travels with its jobs, by name.
        key: The key of the job that it is a part of.
        root_id: The key of the first job of that one's line.
    """

    headers: Mapping[str, str]
    key: str | None = None
    root_id: str = ""


AnyOrigin: TypeAlias = "Job[Any] | Origin | None"

origin: ContextVar[AnyOrigin] = ContextVar("origin", default=None)
"""What the running code enqueues comes from here."""


@contextmanager
def bound_headers(headers: Mapping[str, str]) -> Iterator[None]:
    """Have everything that the block enqueues carry some headers, and their followers too.

    Args:
        headers: Text by name, on top of what is bound already; those of a call itself win.

    Raises:
        OptionError: It is no text by name.
    """
    given = check("bound_headers()", {"headers": headers}, CALL_CHECKS).get("headers", {})
    outer = origin.get()
    inner = Origin({**outer.headers, **given}, outer.key, outer.root_id) if outer is not None else Origin(given)
    token = origin.set(inner)
    try:
        yield
    finally:
        origin.reset(token)


def inherit(job: SaqJob, source: Job[Any] | Origin) -> None:
    """Give a job that is about to be stored what it has from its origin; a second time changes nothing."""
    extras = {**extras_of(job)}
    if source.headers:
        own = extras.get(HEADERS)
        extras[HEADERS] = {**source.headers, **own} if isinstance(own, dict) else {**source.headers}
    if source.key is not None and source.key != job.key:
        extras.setdefault(PARENT, source.key)
        if source.root_id != source.key:  # else it is the parent
            extras.setdefault(ROOT, source.root_id)
    if extras:
        job.meta = {**job.meta, META_KEY: extras}


class LineageFilter(logging.Filter):
    """Adds ``job``, ``task`` and ``correlation_id`` to every record that passes, whichever logger it comes from.

    Put it on a handler. Each is empty text where there is none; what a record has already stays.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add to a record, and let it pass."""
        source = origin.get()
        facts = record.__dict__
        facts.setdefault("job", (source.key if source else None) or "")
        facts.setdefault("task", source.function if isinstance(source, Job) else "")
        facts.setdefault(CORRELATION, source.headers.get(CORRELATION, "") if source else "")
        return True
