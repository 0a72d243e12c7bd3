"""Checks of settings: what a single one may be, in words that help whoever has to correct it.

Where in the flow: ``settings`` names one beside a field, and ``environment`` calls it, with a value of the field's type
unless it reads. Each returns the value to keep, or raises ``ValueError`` with what would be right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from zoneinfo import ZoneInfo

from knapsaq.environment import SecretStr
from knapsaq.shards import is_cluster, seeds_of

EMBEDDED = "embedded"
"""The ``broker_url`` that means: run a private server for this project."""

QUEUE_NAME = re.compile(r"[A-Za-z0-9_.{}-]{1,64}")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def broker_url(value: str) -> str:
    """Refuse what redis-py would not understand, or would take for something else."""
    if value != EMBEDDED and (problem := _url_problem(value)):
        raise ValueError(problem)
    return value


def directory(value: Path) -> Path:
    """Return a directory with the home directory that `~` means."""
    try:
        return value.expanduser()
    except RuntimeError:
        raise ValueError("a directory; the home directory that it begins with is not known here") from None


def split_names(value: Any) -> Any:
    """Return names that are one text, with commas between them or as JSON; anything else as it is."""
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith("["):
        return tuple(name for part in value.split(",") if (name := part.strip()))
    try:
        return tuple(json.loads(value))
    except ValueError:
        raise ValueError('names with commas between them, or a JSON list such as ["default", "mail"]') from None


def queue_names(value: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse names that are none, are there twice, or are no names."""
    if not value or len(set(value)) != len(value):
        raise ValueError("at least one name of a queue, and each name once")
    for name in value:
        if not QUEUE_NAME.fullmatch(name):
            raise ValueError(f"names of 1 to 64 of the characters A-Z a-z 0-9 _ . - {{ }}, which {name!r} is not")
    return value


def read_routes(value: Any) -> Any:
    """Return routes that may be JSON as a dictionary of texts."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, Mapping):
        raise ValueError(  # noqa: TRY004 - a wrong value, wherever it comes from
            'a JSON object of patterns and queues, such as {"shop.payments.*": "payments"}'
        )
    for pattern, queue in value.items():
        if not isinstance(pattern, str) or not isinstance(queue, str):
            raise ValueError(f"names of queues, which for {pattern!r} {queue!r} is not")  # noqa: TRY004 - likewise
    return dict(value)


def routes(value: dict[str, str]) -> dict[str, str]:
    """Refuse patterns that are empty and queues that are no names."""
    for pattern, queue in value.items():
        if not pattern.strip() or not QUEUE_NAME.fullmatch(queue):
            raise ValueError(f"patterns that are not empty and names of queues, which {pattern!r}: {queue!r} is not")
    return value


def timezone(value: str) -> str:
    """Refuse a name that the system knows no time zone for."""
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise ValueError(
            "a time zone's IANA name such as 'UTC' or 'Europe/Berlin' "
            "(a system without time-zone data needs `pip install tzdata`)"
        ) from None
    return value


def token(value: SecretStr | None) -> SecretStr | None:
    """Refuse a secret of blanks alone."""
    if value is not None and not value.get_secret_value().strip():
        raise ValueError("a secret of at least one character, or none at all")
    return value


def stall_limit(value: float) -> float:
    """Refuse a limit that the watchdog's own turns would reach."""
    if 0 < value < 1:
        msg = "0 for no limit, or at least 1 second"
        raise ValueError(msg)
    return value


def log_level(value: str) -> str:
    """Return a level in capitals."""
    if value.upper() not in LOG_LEVELS:
        raise ValueError(f"one of {', '.join(LOG_LEVELS)}")
    return value.upper()


def _url_problem(url: str) -> str | None:
    """Return what a broker URL has to be, if it is something else."""
    if is_cluster(url):
        return _cluster_problem(url)
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "a URL whose port is a number up to 65535 (percent-encode / ? # @ : in a password)"
    if parts.scheme in ("redis", "rediss"):
        return _tcp_problem(parts)
    if parts.scheme == "unix":
        fits = len(parts.path) > 1 and parts.netloc.rpartition("@")[2] == ""
        return None if fits else "unix:// and the socket's absolute path, so three slashes: unix:///run/redis.sock"
    return (
        "'embedded', or a URL that starts with redis://, rediss:// or unix://, of a cluster with redis+cluster:// or "
        "rediss+cluster://"
    )


def _cluster_problem(url: str) -> str | None:
    scheme, seeds = url.partition("://")[0], seeds_of(url)
    if any(_url_problem(seed) for seed in seeds):
        example = f"{scheme}://one:6379,two:6379"
        return f"{scheme}:// and hosts with commas between them, each one's port is a number up to 65535: {example}"
    if urlsplit(seeds[0]).path not in ("", "/", "/0"):
        return "a URL without a database's number, as a cluster has database 0 alone"
    return None


def _tcp_problem(parts: SplitResult) -> str | None:
    if not parts.hostname:
        return f"{parts.scheme}:// and a host, such as {parts.scheme}://localhost:6379"
    # redis-py takes a path that is not a number for database 0.
    if not re.fullmatch(r"/?|/\d+/?", parts.path):
        return "a URL with the database's number after the slash, such as redis://localhost:6379/1, or nothing"
    return None
