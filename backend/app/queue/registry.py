"""The names that a domain's ``tasks.py`` imports."""

from __future__ import annotations

from knapsaq import (
    INJECTED,
    Concurrency,
    Context,
    Discard,
    Rate,
    Retry,
    Snooze,
    Unique,
    WorkflowError,
    WorkflowMissingError,
    get_registry,
    get_workflow,
    group,
    scheduled_task,
    task,
)

__all__ = [
    "INJECTED",
    "Concurrency",
    "Context",
    "Discard",
    "Rate",
    "Retry",
    "Snooze",
    "Unique",
    "WorkflowError",
    "WorkflowMissingError",
    "get_registry",
    "get_workflow",
    "group",
    "scheduled_task",
    "task",
]
