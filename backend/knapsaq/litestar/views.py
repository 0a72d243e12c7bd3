"""Views: queues and jobs as the web page may show them.

SAQ's page takes an object or a list for instructions on how to draw; so each value
here is text, a number or a truth value, whatever the record in Redis holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from saq.types import QueueInfo

from knapsaq.codec import SECRET
from knapsaq.environment import HIDDEN, redact

SHOWN_IN_LISTS, SHOWN_ALONE = 200, 20_000  # characters of one value

STRUCTURED = ("kwargs", "result", "meta")
STATS = ("complete", "failed", "retried", "aborted", "uptime")
ESCAPED = str.maketrans({char: f"%{ord(char):02X}" for char in "%/\\?#"})
"""What a key may hold that a path may not; the page puts keys into its links as they are."""


def queue_view(info: QueueInfo) -> dict[str, Any]:
    """Return what SAQ says of a queue."""
    return {
        "name": str(info["name"]),
        "queued": _number(info["queued"]),
        "active": _number(info["active"]),
        "scheduled": _number(info["scheduled"]),
        "workers": {str(worker): _worker_view(seen) for worker, seen in info["workers"].items()},
        "jobs": [job_view(record, whole=False) for record in info["jobs"]],
    }


def job_view(record: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
    """Return a job's record.

    Args:
        record: As ``Job.to_dict`` gives it.
        whole: Whether the job is alone on its page, not one of a list, where its key becomes a link.
    """
    limit = SHOWN_ALONE if whole else SHOWN_IN_LISTS
    view = {name: _shown(name, value, limit) for name, value in record.items()}
    for name in ("kwargs", "result", "error"):
        view.setdefault(name, "")
    if not whole:
        view["key"] = str(record.get("key", "")).translate(ESCAPED)
    return view


def redacted(value: Any) -> Any:
    """Return JSON types with what looks like a secret hidden."""
    if isinstance(value, Mapping):
        return {name: HIDDEN if SECRET.search(str(name)) else redacted(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def _worker_view(seen: Any) -> dict[str, Any]:
    facts = seen if isinstance(seen, Mapping) else {}
    stats = facts.get("stats")
    numbers = stats if isinstance(stats, Mapping) else {}
    return {
        "stats": {name: _number(numbers.get(name)) for name in STATS},
        "queue_key": str(facts.get("queue_key", "")),
        "metadata": _text(facts.get("metadata"), SHOWN_IN_LISTS),
    }


def _shown(name: str, value: Any, limit: int) -> str | float | bool | None:
    if name in STRUCTURED:
        return _text(value, limit)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = str(value.value if isinstance(value, Enum) else value)
    return _cut(redact(text), limit)


def _text(value: Any, limit: int) -> str:
    return "" if value is None else _cut(repr(redacted(value)), limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]} ... ({len(text):,} characters)"


def _number(value: Any) -> float:
    return value if isinstance(value, (int, float)) else 0
