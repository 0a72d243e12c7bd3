"""The manual as code: headers and context variables go along with a job, and a middleware may refuse it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import pytest

from knapsaq import Client, Context, Job, Middleware, Registry, bound_headers
from knapsaq.middleware import CallNext
from knapsaq.testing import running_worker

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


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
