"""Workflow errors: what is wrong with an expression, and what a workflow can end with; their place is in ``errors``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from knapsaq.errors import LISTED_NAMES, ConfigurationError, KnapsaqError


class WorkflowDefinitionError(ConfigurationError):
    """The parts of a workflow do not fit together; nothing was queued."""

    def __init__(self, step: str, part: str, expected: str, given: str) -> None:
        super().__init__(step, part, expected, given)
        self.step, self.part, self.expected, self.given = step, part, expected, given

    def __str__(self) -> str:
        return f"workflow step {self.step!r}, {self.part}: expected {self.expected}, given {self.given}"


class NodeFailure(NamedTuple):
    """Why a node of a workflow has no result.

    Attributes:
        node: Its name.
        task: Its task's name.
        error: The end of its traceback, or the reason why it was revoked.
    """

    node: str
    task: str
    error: str


class WorkflowError(KnapsaqError):
    """A workflow has no result, or cannot do what was asked."""

    def __init__(self, workflow: str, reason: str) -> None:
        super().__init__(workflow, reason)
        self.workflow, self.reason = workflow, reason

    def __str__(self) -> str:
        return f"workflow {self.workflow}: {self.reason}"


class WorkflowFailedError(WorkflowError):
    """One of a workflow's last nodes has failed or was cancelled; ``failures`` names each node that failed."""

    def __init__(self, workflow: str, reason: str, failures: tuple[NodeFailure, ...]) -> None:
        super().__init__(workflow, reason)
        self.failures = failures
        self.args = (workflow, reason, failures)

    @classmethod
    def of(cls, workflow: str, failures: Iterable[NodeFailure]) -> WorkflowFailedError:
        """Return the error that names each failed node; its text names at most ten."""
        every = tuple(failures)
        named = [f"{one.node} ({one.task}): {one.error.strip().rpartition(chr(10))[2]}" for one in every]
        more = f"; and {len(named) - LISTED_NAMES} more" if len(named) > LISTED_NAMES else ""
        return cls(workflow, "; ".join(named[:LISTED_NAMES]) + more, every)

    def __str__(self) -> str:
        return f"workflow {self.workflow} failed: {self.reason}"


class WorkflowRevokedError(WorkflowError):
    """Somebody ended the workflow on purpose."""

    def __str__(self) -> str:
        return f"workflow {self.workflow} was revoked: {self.reason}"


class WorkflowNotEndedError(KnapsaqError, TimeoutError):
    """The workflow was waited for in vain; ``known`` tells whether Redis says that it goes on."""

    def __init__(self, workflow: str, seconds: float, known: bool) -> None:
        super().__init__()  # an OSError would make an error's number of the first
        self.workflow, self.seconds, self.known = workflow, seconds, known
        self.args = (workflow, seconds, known)

    def __str__(self) -> str:
        stands = "it goes on" if self.known else "Redis does not say how it stands"
        return (
            f"workflow {self.workflow} has not ended within {self.seconds:g} s: {stands}. Wait for it again; its "
            f"status() tells how each node stands, and why(node) what one waits for"
        )


class WorkflowMissingError(WorkflowError):
    """The workflow is not in Redis (any more)."""

    def __str__(self) -> str:
        return f"workflow {self.workflow} is not in Redis: {self.reason}"
