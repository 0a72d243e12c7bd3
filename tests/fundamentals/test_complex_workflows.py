"""Seed: "Complex Workflows". Anything inside anything, and graphs that are neither chain nor chord."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support import eventually

from knapsaq import Client, Registry, Workflow, WorkflowFailedError, chain, chord, get_workflow, group
from knapsaq.testing import running_worker


async def test_a_chain_with_a_chord_inside(client: Client, registry: Registry) -> None:
    """The seed's order: as in Celery each member gets the result of the step before the chord."""

    @registry.task
    async def validate_order(order_id: int) -> dict[str, int]:
        return {"order": order_id}

    @registry.task
    async def process_item(order: dict[str, int], item_id: int) -> str:
        return f"{order['order']}/{item_id}"

    @registry.task
    async def finalize_order(items: list[str], order_id: int) -> dict[str, Any]:
        return {"order": order_id, "items": items}

    @registry.task
    async def send_confirmation(order: dict[str, Any]) -> str:
        return f"order {order['order']}: {', '.join(order['items'])}"

    order_id, item_ids = 7, [1, 2]
    workflow = chain(
        validate_order.s(order_id),
        chord([process_item.s(item_id) for item_id in item_ids], finalize_order.s(order_id)),
        send_confirmation.s(),
    )
    async with running_worker(registry=registry):
        assert await (await workflow.delay()).wait(5) == "order 7: 7/1, 7/2"


async def test_groups_in_a_row(client: Client, registry: Registry) -> None:
    """Each member of the second gets the list of the first's results."""

    @registry.task
    async def number(n: int) -> int:
        return n

    @registry.task
    async def total(ns: list[int], plus: int) -> int:
        return sum(ns) + plus

    async with running_worker(registry=registry):
        flow = await (number.map([1, 2]) | group(total.s(0), total.s(10)) | total.s(100)).enqueue()
        assert await flow.wait(5) == 116


async def test_a_graph_names_what_each_node_comes_after(client: Client, registry: Registry) -> None:
    """Each of ``after`` gives one argument; the result has what the last nodes return, by name."""

    @registry.task
    async def load(name: str) -> int:
        return len(name)

    @registry.task
    async def compare(left: int, right: int, *, unit: str = "") -> str:
        return f"{left} to {right}{unit}"

    @registry.task
    async def archive(size: int) -> str:
        return f"kept {size}"

    graph = (
        Workflow()
        .add("old", load.s("abc"))
        .add("new", load.s("abcde"))
        .add("difference", compare.s(unit=" letters"), after=["old", "new"])
        .add("archive", archive.s(), after="old")
    )
    async with running_worker(registry=registry):
        flow = await graph.enqueue()
        assert await flow.wait(5) == {"difference": "3 to 5 letters", "archive": "kept 3"}
        assert await flow.results() == {
            "old": 3,
            "new": 5,
            "difference": "3 to 5 letters",
            "archive": "kept 3",
        }


async def test_an_edge_says_what_a_failure_means(client: Client, registry: Registry) -> None:
    """Cancel what follows, or go on; and the whole may have an end for each case."""
    heard: list[str] = []

    @registry.task
    async def upload() -> str:
        raise ConnectionError("the line is down")

    @registry.task
    async def publish(_name: str) -> None:
        heard.append("published")

    @registry.task
    async def clean_up() -> None:
        heard.append("cleaned up")

    @registry.task
    async def alarm(failures: list[dict[str, str]]) -> None:
        heard.extend(failure["node"] for failure in failures)

    graph = (
        Workflow()
        .add("upload", upload.s())
        .add("publish", publish.s(), after="upload")
        .add("clean up", clean_up.si(), after="publish", on_failure="continue")
        .add("publish elsewhere", publish.s(), after="upload")
    )
    async with running_worker(registry=registry):
        flow = await graph.enqueue(on_failure=alarm.s())
        with pytest.raises(WorkflowFailedError, match=r"upload \(upload\): ConnectionError: the line is down"):
            await flow.wait(5)
        again = get_workflow(flow.id, registry=registry)  # in any process
        nodes = (await again.status()).nodes
        names = ("upload", "publish", "clean up", "publish elsewhere")
        assert [nodes[name] for name in names] == ["failed", "cancelled", "complete", "cancelled"]
        assert [failure.node for failure in await again.errors()] == ["upload"]
        await eventually(lambda: heard == ["cleaned up", "upload"])
