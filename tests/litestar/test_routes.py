"""An application whose tasks are named by their routes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from litestar import post
from litestar.params import FromQuery
from litestar_saq import TaskQueues
from tests.litestar.conftest import Serve

from knapsaq import Client, Registry, RouteError
from knapsaq.routes import TaskRoutes
from knapsaq.testing import running_worker

PACK = """
async def pack(order_id: int) -> str:
    return f"order {order_id} is packed"
"""


@pytest.fixture
def warehouse() -> Iterator[ModuleType]:
    """A module with a plain function."""
    module = ModuleType("warehouse")
    exec(PACK, vars(module))  # noqa: S102 - our own text
    sys.modules["warehouse"] = module
    yield module
    del sys.modules["warehouse"]


@post("/pack")
async def pack_it(task_queues: TaskQueues, order_id: FromQuery[int]) -> dict[str, str]:
    job = await task_queues.get("orders").enqueue("warehouse.pack", order_id=order_id)
    return {"key": job.key}  # type: ignore[union-attr]


async def test_a_handler_enqueues_by_route_in_the_routes_queue(
    serve: Serve, client: Client, registry: Registry, warehouse: ModuleType
) -> None:
    """The application imports the routes as it starts; their queues are connected, and arguments checked."""
    registry.include(TaskRoutes().register("warehouse.pack", queue="orders"))
    async with serve(pack_it) as http:
        assert registry.names() == ("warehouse.pack",)
        answer = await http.post("/pack", params={"order_id": 7})
        async with running_worker(["orders"], registry=registry) as connected:
            job = await connected.queue("orders").job(answer.json()["key"])
            assert job is not None
            assert await job.wait(10) == "order 7 is packed"


async def test_an_application_with_a_wrong_route_does_not_start(
    serve: Serve, registry: Registry, warehouse: ModuleType
) -> None:
    """With the reason, as a worker."""
    registry.include(TaskRoutes().register("warehouse.unpack"))
    wrong = pytest.RaisesExc(RouteError, match="module 'warehouse' has no 'unpack'; did you mean 'pack'")
    with pytest.RaisesGroup(wrong):
        async with serve(pack_it):
            pytest.fail("it started")
