"""WorkflowJob: a workflow that was sent, as its caller holds it.

Where in the flow: ``chain(...).enqueue()`` returns one, and ``get_workflow(id)`` finds it again, in any process. It
knows how to ask its queue about itself; it decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from knapsaq.reasons import Reason
from knapsaq.workflow_errors import NodeFailure

WorkflowState = Literal["running", "complete", "failed", "aborted"]
NodeState = Literal["waiting", "queued", "active", "complete", "failed", "aborted", "cancelled"]


@dataclass(frozen=True, slots=True)
class WorkflowStatus:
    """How a workflow stands.

    Attributes:
        state: ``running``, or how it ended: ``complete``, ``failed`` or ``aborted``.
        nodes: The state of each node by its name.
    """

    state: WorkflowState
    nodes: Mapping[str, NodeState]

    @property
    def counts(self) -> Mapping[NodeState, int]:
        """How many nodes are in each state; states without any are left out."""
        return Counter(self.nodes.values())


class WorkflowReader(Protocol):
    """What a workflow asks of the queue in which it is kept."""

    async def wait(self, timeout: float | None) -> Any:
        """Return its result once it has ended."""

    async def read(self) -> tuple[WorkflowStatus, dict[str, Any], list[NodeFailure]]:
        """Return how it stands, what its nodes have returned, and why some have not."""

    async def reasons(self, node: str) -> list[Reason]:
        """Return why a node does not run."""

    async def revoke(self, reason: str) -> bool:
        """End it."""

    async def retry_failed(self) -> int:
        """Run what failed again."""


@dataclass(frozen=True, slots=True)
class WorkflowJob:
    """A workflow that was sent.

    Attributes:
        id: Its id, with which ``get_workflow`` finds it: the name of a queue, a colon, and 22 letters and digits. Its
            jobs have it as their ``root_id``.
    """

    id: str
    _reader: WorkflowReader

    def __repr__(self) -> str:
        return f"<WorkflowJob {self.id}>"

    async def wait(self, timeout: float | None = None) -> Any:
        """Wait until the workflow has ended and return its result.

        Args:
            timeout: Seconds, above 0; ``None`` waits as long as it takes.

        Returns:
            What its last task returned, decoded to the annotated type; of a group a list of its members' results, in
            their order; of a ``Workflow`` a dict with the results of those nodes that nothing follows.

        Raises:
            WorkflowFailedError: It has failed; ``.failures`` names each node that did, with its task and error.
            WorkflowRevokedError: Somebody revoked it.
            WorkflowMissingError: It is not in Redis any more; keep it longer with ``ttl``.
            WorkflowNotEndedError: Not ended yet, a ``TimeoutError`` too. The workflow goes on; call again.
        """
        return await self._reader.wait(timeout)

    async def status(self) -> WorkflowStatus:
        """Return how it stands: as a whole, and each node.

        Raises:
            WorkflowMissingError: It is not in Redis.
        """
        return (await self._reader.read())[0]

    async def results(self) -> dict[str, Any]:
        """Return what the nodes that have succeeded so far returned, decoded, by their names.

        A node's name is the one given to ``Workflow.add``, else its task's and its number: ``"fetch#0"``.

        Raises:
            WorkflowMissingError: It is not in Redis.
        """
        return (await self._reader.read())[1]

    async def errors(self) -> list[NodeFailure]:
        """Return each node that has failed or was revoked so far: its name, task and error.

        Raises:
            WorkflowMissingError: It is not in Redis.
        """
        return (await self._reader.read())[2]

    async def why(self, node: str) -> list[Reason]:
        """Return what a node waits for, the most telling reason first: parents that have not ended, or see ``Job.why``.

        Args:
            node: Its name, as ``status()`` has it.

        Raises:
            WorkflowError: It has no such node.
            WorkflowMissingError: It is not in Redis.
        """
        return await self._reader.reasons(node)

    async def revoke(self, reason: str = "revoked") -> bool:
        """End it: what waits is cancelled, what is queued is aborted, what runs is interrupted.

        Returns:
            Whether it had not ended yet. It has ended once the tasks that run have; ``wait()`` tells when.

        Raises:
            WorkflowMissingError: It is not in Redis.
        """
        return await self._reader.revoke(reason)

    async def retry_failed(self) -> int:
        """Run the nodes again that have failed or were revoked or cancelled; what has succeeded keeps its result.

        Returns:
            How many nodes those are; those that follow from others count as well.

        Raises:
            WorkflowMissingError: It is not in Redis.
        """
        return await self._reader.retry_failed()
