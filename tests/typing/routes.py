"""What type checkers infer of routes and builders, and what they must refuse; read by mypy, never run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, assert_type

from knapsaq import Client, Job, Registry, Settings, connect, crontab
from knapsaq.routes import RedisInstance, RoutedWorker, TaskRoutes, WorkerBuilder

routes = TaskRoutes()


class OwnRoutes(TaskRoutes):
    """A chain of calls keeps the type."""


def right_routes() -> None:
    assert_type(OwnRoutes().register("a.b").bulk_register(["c.d"], queue="q"), OwnRoutes)
    assert_type(routes.register_periodic_task("a.b", crontab(hour=2), "q", "daily", 3), TaskRoutes)
    assert_type(routes.register_periodic_task(route="a.b", schedule=timedelta(1), args=["daily"]), TaskRoutes)
    assert_type(routes.bulk_register_periodic_task([("a.b", "@daily", []), ("c.d", timedelta(1), (1,))]), TaskRoutes)
    assert_type(routes.get_tasks(), list[str])
    assert_type(routes.get_tasks_routes(), dict[str, dict[str, str]])
    assert_type(routes.get_periodic_tasks(), dict[str, dict[str, Any]])


async def right_workers(settings: Settings) -> None:
    builder = WorkerBuilder().set_redis(RedisInstance(redis_host="db")).set_redis("embedded").set_task(routes)
    worker = builder.set_name("w").set_queues("a,b").set_queues(["a"]).set_settings(settings).create()
    assert_type(worker, RoutedWorker)
    assert_type(await worker.start(), None)
    assert_type(Registry().include(routes), Registry)
    assert_type(Registry.from_saq_settings("app.settings"), Registry)
    assert_type(Registry().prepare(settings), Settings)
    async with connect(worker.settings, registry=worker.registry) as client:
        assert_type(client, Client)
        assert_type(await client.enqueue("a.b", order_id=3), Job[Any] | None)


def wrong() -> None:
    routes.register(len)  # type: ignore[arg-type]
    routes.register_periodic_task("a.b", 300)  # type: ignore[arg-type]
    routes.register_periodic_task("a.b")  # type: ignore[call-arg]
    routes.bulk_register_periodic_task([("a.b", "@daily")])  # type: ignore[list-item]
    WorkerBuilder().set_task("a.b")  # type: ignore[arg-type]
    WorkerBuilder().set_redis(6379)  # type: ignore[arg-type]
    RedisInstance("localhost")  # type: ignore[call-arg]
    RedisInstance(redis_port="6379")  # type: ignore[arg-type]
    Registry().include("a.b")  # type: ignore[arg-type]
