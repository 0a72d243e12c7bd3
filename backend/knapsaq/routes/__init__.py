"""Routes: tasks named by their dotted paths, and workers built around them.

Where in the flow: a second way into the same registry. ``TaskRoutes`` collects paths,
queues and schedules without importing anything; when a worker or an application
starts, the registry asks it for the tasks. ``WorkerBuilder`` puts routes, broker and
time zone together into something that runs.

    routes = TaskRoutes().register("shop.tasks.send_email", queue="emails")
    worker = WorkerBuilder().set_redis("redis://localhost").set_task(routes).create()
    await worker.start()
"""

from __future__ import annotations

from knapsaq.routes.builder import RoutedWorker, WorkerBuilder
from knapsaq.routes.collection import TaskRoutes
from knapsaq.routes.instance import RedisInstance

__all__ = ["RedisInstance", "RoutedWorker", "TaskRoutes", "WorkerBuilder"]
