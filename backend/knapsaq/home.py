"""Home: what a task asks of the registry that it belongs to, and of whoever sends its jobs."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

from knapsaq.canvas import Expression, FlowOptions
from knapsaq.job import Job
from knapsaq.workflow import WorkflowJob


class Sender(Protocol):
    """Whoever can accept jobs: a connected client."""

    def send(self, queue: str, job: Job[Any]) -> Awaitable[Job[Any]]:
        """Accept the job, or return the one that already has its key."""

    def send_many(self, queue: str, jobs: list[Job[Any]]) -> Awaitable[list[Job[Any]]]:
        """Accept jobs; for each the one that already has its key takes its place."""

    def start(self, expression: Expression, options: FlowOptions) -> Awaitable[WorkflowJob]:
        """Accept a workflow."""

    def extend(self, job: Job[Any], expression: Expression, *, replaces: bool) -> Awaitable[None]:
        """Add to the workflow of a job that runs, perhaps in that job's place."""


class Home(Protocol):
    """What a task asks of the registry that it belongs to."""

    @property
    def sender(self) -> Sender | None:
        """The connected client, if there is one."""

    @property
    def dependencies(self) -> Mapping[str, Any]:
        """The providers by parameter name."""
