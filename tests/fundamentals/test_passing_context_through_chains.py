"""Seed: "Passing Context Through Chains". Headers and the root's id reach each step."""

from __future__ import annotations

from knapsaq import Client, Context, Registry, chain, group
from knapsaq.testing import running_worker


async def test_headers_persist_through_the_chain(client: Client, registry: Registry) -> None:
    """The seed's correlation id; a signature may have headers of its own."""

    @registry.task
    async def step_one(ctx: Context, data: str) -> str:
        return f"{data} [{ctx.headers.get('correlation_id')}]"

    @registry.task
    async def step_two(ctx: Context, data: str) -> list[str]:
        return [data, *ctx.headers.values()]

    async with running_worker(registry=registry):
        result = await chain(step_one.s("data"), step_two.s().set(headers={"own": "yes"})).apply_async(
            headers={"correlation_id": "abc-123"}
        )
        assert await result.wait(5) == ["data [abc-123]", "abc-123", "yes"]


async def test_each_step_knows_its_workflow_and_where_it_comes_from(client: Client, registry: Registry) -> None:
    """``root_id`` is the workflow's id, ``parent_id`` the job before; in the context and on the job."""
    seen: list[tuple[str, str, str | None]] = []

    @registry.task
    async def step(ctx: Context) -> None:
        seen.append((ctx.id, ctx.root_id, ctx.parent_id))

    async with running_worker(registry=registry):
        result = await (step.s() | group(step.si(), step.si()) | step.si()).enqueue()
        await result.wait(5)
    keys, roots, parents = zip(*seen, strict=True)
    assert set(roots) == {result.id}
    assert parents[:3] == (None, keys[0], keys[0])
    assert parents[3] in keys[1:3]
