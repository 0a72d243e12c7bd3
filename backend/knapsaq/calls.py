"""Calls: what one call, or each of many, says of its own job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from knapsaq.codec import shown
from knapsaq.errors import InvalidArgumentsError
from knapsaq.job import HEADERS, META_KEY, Job
from knapsaq.options import CallOptions, TaskOptions
from knapsaq.timing import now_ms


def each_call(task: str, calls: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the arguments of each call of ``enqueue_many``; one that is no mapping is named by its number.

    Raises:
        InvalidArgumentsError: They are no mappings of names to values.
    """
    if isinstance(calls, (str, bytes, Mapping)) or not isinstance(calls, Iterable):
        raise InvalidArgumentsError(task, "*", "several mappings of argument names to values", shown(calls))
    given: Iterable[Any] = calls
    for number, kwargs in enumerate(given, start=1):
        if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
            expected = f"as call {number} a mapping of argument names to values"
            raise InvalidArgumentsError(task, "*", expected, shown(kwargs))
        yield kwargs


def apply_options(options: CallOptions, job: Job[Any], own: TaskOptions) -> None:
    """Set what a call says of its own job."""
    fields = vars(job)
    extras: dict[str, Any] = {HEADERS: dict(options.headers)} if options.headers else {}
    if options.retries is not None:
        job.retries = 1 + options.retries
        if options.retries:
            fields["retry_delay"], fields["retry_backoff"] = own.retry_delay, own.retry_backoff
        else:
            extras["retries"] = 0  # job.retries does not tell it from a call that says nothing
    if options.timeout is not None:
        fields["timeout"] = options.timeout
    if options.ttl is not None:
        fields["ttl"] = options.ttl
    if options.expires is not None:
        fields["expires"] = options.expires
    fields["scheduled"] = _due(options)  # SAQ stores whole seconds, we to the millisecond
    job.delay = options.delay or 0.0
    if extras:
        job.meta = {META_KEY: extras}


def _due(options: CallOptions) -> float:
    """Return the moment in seconds since 1970 before which the job may not run; 0 is at once."""
    if options.eta is not None:
        return max(0.0, options.eta)
    return now_ms() / 1000 + options.delay if options.delay else 0
