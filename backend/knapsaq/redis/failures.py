"""Failures: what Redis' errors mean to somebody who wanted to queue a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import AuthenticationError, OutOfMemoryError, ReadOnlyError, RedisError

from knapsaq.errors import BrokerError

REMEDIES: tuple[tuple[type[RedisError], str], ...] = (
    (OutOfMemoryError, "its memory is full: raise maxmemory, or let results expire sooner with KNAPSAQ_RESULT_TTL"),
    (ReadOnlyError, "it is a read-only replica: point KNAPSAQ_BROKER_URL at the primary"),
    (AuthenticationError, "check the user and password in KNAPSAQ_BROKER_URL"),
)


@contextmanager
def broker_errors(url: str) -> Iterator[None]:
    """Raise Redis' errors as ``BrokerError`` with what to do; ``url`` is shown and holds no password."""
    try:
        yield
    except (RedisError, OSError) as error:
        remedy = next((text for kind, text in REMEDIES if isinstance(error, kind)), None)
        remedy = remedy or "check that it runs and that KNAPSAQ_BROKER_URL is right; `knapsaq doctor` tells more"
        raise BrokerError(url, str(error) or type(error).__name__, remedy) from error
