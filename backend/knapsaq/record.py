"""Record: the fields of a job as Redis has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from saq.job import Job as SaqJob
from saq.job import Status


class Record(msgspec.Struct, omit_defaults=True):
    """A job's fields as they are stored: their kinds, and SAQ's defaults, which are left out."""

    function: str
    key: str
    queue: Any = None
    kwargs: dict[str, Any] | None = None
    timeout: int | float | None = 10
    heartbeat: int | float = 0
    retries: int = 1
    ttl: int | float | None = 600
    retry_delay: int | float = SaqJob.retry_delay
    retry_backoff: bool | float = False
    scheduled: int | float = 0
    progress: int | float = SaqJob.progress  # the same object, as only that is left out
    attempts: int = 0
    completed: int = 0
    queued: int = 0
    started: int = 0
    touched: int = 0
    result: Any = None
    error: str | None = None
    status: Any = Status.NEW
    priority: int = 0
    group_key: str | None = None
    meta: dict[Any, Any] = {}
    worker_id: str | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Record:
        """Return checked fields; what SAQ does not know is left out.

        Raises:
            msgspec.ValidationError: Naming the field, what it has to be and what it is.
        """
        return msgspec.convert(fields, cls)
