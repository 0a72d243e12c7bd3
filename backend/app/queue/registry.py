"""The names that a domain's ``tasks.py`` imports."""

from __future__ import annotations

from knapsaq import INJECTED, Context, Discard, Retry, get_registry, scheduled_task, task

__all__ = ["INJECTED", "Context", "Discard", "Retry", "get_registry", "scheduled_task", "task"]
