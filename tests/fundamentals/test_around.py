"""The manual as code: base tasks, context, headers and progress, as people who come from Celery know them."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any

import pytest

from knapsaq import Client, Context, Job, JobFailedError, Middleware, Registry, bound_headers
from knapsaq.middleware import CallNext
from knapsaq.testing import running_worker

logger = logging.getLogger("shop")
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class DatabaseTask(Middleware):
    """The seed's base task that ensures a connection."""

    def __init__(self) -> None:
        self.connected = 0

    async def around(self, ctx: Context, call_next: CallNext) -> Any:
        """Connect, and go on."""
        self.connected += 1
        return await call_next()


class LoggedTask(Middleware):
    """The seed's base task with automatic logging."""

    def on_success(self, ctx: Context, result: Any) -> None:
        """Log it."""
        logger.info("Task %s[%s] succeeded", ctx.task.name, ctx.id)

    def on_failure(self, ctx: Context, error: BaseException) -> None:
        """Log it."""
        logger.error("Task %s[%s] failed: %s", ctx.task.name, ctx.id, error)

    def on_retry(self, ctx: Context, error: BaseException, after: float) -> None:
        """Log it."""
        logger.warning("Task %s[%s] retrying: %s", ctx.task.name, ctx.id, error)


async def test_base_task_classes(client: Client, registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """What a base class does around a task's call, a middleware does; several go together."""
    database = DatabaseTask()
    logged_task = registry.task.preset(middleware=[database, LoggedTask()])

    @logged_task(retries=1, retry_delay=0)
    async def my_logged_task(*, data: str) -> str:
        if data == "bad":
            raise ValueError(data)
        return data

    with caplog.at_level(logging.INFO, "shop"):
        async with running_worker(registry=registry):
            assert await (await my_logged_task.using(key="a").enqueue(data="good")).wait(5) == "good"
            with pytest.raises(JobFailedError):
                await (await my_logged_task.using(key="b").enqueue(data="bad")).wait(5)
    assert database.connected == 3
    assert [record.message for record in caplog.records if record.name == "shop"] == [
        "Task my_logged_task[a] succeeded",
        "Task my_logged_task[b] retrying: bad",
        "Task my_logged_task[b] failed: bad",
    ]


async def test_abstract_base_tasks(client: Client, registry: Registry) -> None:
    """A mixin's defaults are a preset, its methods functions, and a preset of a preset is a subclass."""
    notification = registry.task.preset(retries=3, retry_delay=60)
    email_notification = notification.preset(queue="mail")

    def get_user(user_id: int) -> str:
        return f"user {user_id}"

    @email_notification
    async def send_email_notification(*, user_id: int, template: str) -> str:
        return f"{template} to {get_user(user_id)}"

    async with running_worker(registry=registry):
        job = await send_email_notification.enqueue(user_id=7, template="welcome")
        assert await job.wait(5) == "welcome to user 7"
    assert (job.retries, job.retry_delay, job.get_queue().name) == (4, 60, "mail")


async def test_accessing_task_properties(client: Client, registry: Registry) -> None:
    """All that the seed's task asks of ``self.request``."""

    @registry.task
    async def task_with_context(ctx: Context) -> dict[str, Any]:
        return {
            "id": ctx.id,
            "name": ctx.task.name,
            "retries": ctx.retries,
            "hostname": ctx.hostname,
            "queue": ctx.queue.name,
            "called_directly": ctx.called_directly,
            "parent_id": ctx.parent_id,
            "root_id": ctx.root_id,
            "header": ctx.headers.get("my_header"),
        }

    @registry.task
    async def parent() -> dict[str, Any]:
        return await (await task_with_context.using(key="child").enqueue()).wait(5)

    async with running_worker(registry=registry):
        found = await (await parent.using(key="parent", headers={"my_header": "x"}).enqueue()).wait(5)
    assert found.pop("hostname")
    assert found == {
        "id": "child",
        "name": "task_with_context",
        "retries": 0,
        "queue": "default",
        "called_directly": False,
        "parent_id": "parent",
        "root_id": "parent",
        "header": "x",
    }


async def test_headers_go_to_everything_that_a_block_enqueues(client: Client, registry: Registry) -> None:
    """And to what that enqueues in turn."""

    @registry.task
    async def correlated(ctx: Context) -> str:
        return ctx.headers["correlation_id"]

    async with running_worker(registry=registry):
        with bound_headers({"correlation_id": "abc-123"}):
            job = await correlated.enqueue()
        assert await job.wait(5) == "abc-123"


async def test_a_context_variable_goes_along_with_the_job(client: Client, registry: Registry) -> None:
    """A middleware takes it from the caller to the task."""

    class Tenancy(Middleware):
        def before_enqueue(self, job: Job[Any]) -> None:
            job.add_headers({"tenant": tenant.get()})

        async def around(self, ctx: Context, call_next: CallNext) -> Any:
            tenant.set(ctx.headers["tenant"])
            return await call_next()

    registry.use(Tenancy())

    @registry.task
    def bill() -> str:
        return f"bill of {tenant.get()}"

    async with running_worker(registry=registry):
        token = tenant.set("acme")
        job = await bill.enqueue()
        tenant.reset(token)
        assert await job.wait(5) == "bill of acme"


async def test_progress_tracking(client: Client, registry: Registry) -> None:
    """The seed's long-running task, and the page that asks how far it is."""
    items = list(range(5))

    @registry.task
    async def long_running_task(ctx: Context, *, items: list[int]) -> dict[str, Any]:
        for number, _item in enumerate(items, start=1):
            await ctx.set_progress(number, len(items))
        return {"status": "complete", "processed": len(items)}

    job = await long_running_task.enqueue(items=items)
    assert (job.status, job.progress) == ("queued", 0.0)
    async with running_worker(registry=registry):
        updates = [update async for update in job.updates()]
    assert (updates[-1].percent, dict(updates[-1].meta)) == (100, {"current": 5, "total": 5})
    assert job.result == {"status": "complete", "processed": 5}


async def test_a_plain_function_tells_its_progress_without_await(client: Client, registry: Registry) -> None:
    """From its thread."""

    @registry.task
    def threaded(ctx: Context) -> str:
        ctx.set_progress(1, 2, step="half")
        raise OSError("down")

    async with running_worker(registry=registry):
        job = await threaded.enqueue()
        with pytest.raises(JobFailedError):
            await job.wait(5)
    assert (job.progress, job.progress_meta["step"]) == (0.5, "half")


async def test_a_middleware_may_refuse_a_job(client: Client, registry: Registry) -> None:
    """The caller gets the error, and nothing is queued."""

    class Quota(Middleware):
        async def before_enqueue(self, job: Job[Any]) -> None:
            raise PermissionError("the quota is used up")

    @registry.task(middleware=Quota())
    async def expensive() -> None: ...

    with pytest.raises(PermissionError, match="used up"):
        await expensive.enqueue_many([{}, {}])
    assert await client.queue().count("incomplete") == 0
