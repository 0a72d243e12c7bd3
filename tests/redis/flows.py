"""What tests of workflows share: taking their jobs by hand, and seeing how they stand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from tests.support import lists

from knapsaq import (
    Queue,
    WorkflowJob,
)
from knapsaq.claims import Claim
from knapsaq.nodes import place_of
from knapsaq.outcomes import Outcome, Succeeded


async def claim(queue: Queue) -> Claim:
    """Claim the one job that waits."""
    [claim] = await queue.claim(5, worker="w")
    return claim


async def give_results(queue: Queue, *results: Any) -> None:
    """Run the next jobs by hand."""
    for result in results:
        [claimed] = await queue.claim(1, worker="w")
        assert await queue.settle(claimed, Succeeded(result), worker="w")


async def waiting(queue: Queue) -> list[int]:
    """Return the numbers of the nodes that may run."""
    return [place.node for key in (await lists(queue))["queued"] if (place := place_of(key))]


async def states(flow: WorkflowJob) -> str:
    """Return the first letter of each node's state; an x for cancelled ones."""
    nodes = (await flow.status()).nodes
    return "".join("x" if state == "cancelled" else "A" if state == "aborted" else state[0] for state in nodes.values())


def told(outcome: Outcome) -> Callable[[Queue], Awaitable[None]]:
    async def end(queue: Queue) -> None:
        assert await queue.settle(await claim(queue), outcome, worker="w")

    return end
