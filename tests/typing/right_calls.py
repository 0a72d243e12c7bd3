"""What type checkers infer of tasks; read by mypy, never run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, assert_type

import saq.types

from knapsaq import (
    INJECTED,
    Batch,
    Client,
    Concurrency,
    Context,
    Debounce,
    Job,
    Queue,
    Rate,
    Registry,
    Retry,
    Schedule,
    ScheduleEntry,
    ScheduleFire,
    Sig,
    Snooze,
    Throttle,
    Unique,
    Update,
    Workflow,
    WorkflowJob,
    chain,
    chord,
    connect,
    group,
    scheduled_task,
    task,
)
from knapsaq.signatures import Chain, Group
from knapsaq.workflow_errors import NodeFailure

registry = Registry()


class Session:
    """Something that a provider makes."""


@task
async def with_context(ctx: Context, *, to: str, count: int = 1) -> dict[str, int]:
    return {to: count}


@task
async def with_saqs_context(ctx: saq.types.Context, *, user_id: int) -> dict[str, Any]:
    return {"user_id": user_id, "worker": ctx["worker"].id}


@task
async def with_a_dictionary(ctx: Mapping[str, Any], *, user_id: int) -> int:
    return user_id


@task
async def with_another_name(context: Context, user_id: int) -> dict[str, Any]:
    return {"user_id": user_id, "id": context.id}


@task
async def without_a_look_at_it(_ctx: Context, user_id: int) -> list[Any]:
    return [user_id]


@task
async def without_context(payload: dict[str, Any], count: int = 1) -> str:
    return str(payload) * count


@task
def plain(x: int, y: int) -> int:
    return x + y


@task
def plain_with_context(ctx: Context, *, x: int) -> tuple[int, str]:
    return x, ctx.id


@task(run="process", soft_timeout=timedelta(seconds=30), expires=3600)
def in_a_process(ctx: Context, *, x: int) -> int | Snooze:
    return Snooze(after=60) if ctx.is_aborted() else x


@task(name="mail.send", queue="mail", retries=3, retry_on=(OSError,), timeout=timedelta(minutes=1), run="async")
async def with_options(ctx: Context, *, to: str) -> None: ...


@task(
    priority=5,
    rate_limit=["10/m", Rate("1/s", key="user_id", burst=1)],
    concurrency=Concurrency(1, key=lambda arguments: arguments["user_id"]),
    unique=Unique(by=["user_id"], until=timedelta(hours=1), clash="raise"),
    fair_key=lambda arguments: arguments["user_id"] % 10,
)
async def limited(user_id: Annotated[int, Rate("100/h"), Concurrency(2)]) -> int:
    return user_id


@task(rate_limit="10/m", concurrency=3, debounce=Debounce(5, by="x"), throttle=False, unique=False, fair_key="x")
async def limited_in_short(x: int) -> None: ...


notification = task.preset(queue="mail", retries=3)


@notification
async def from_a_preset(ctx: Context, *, to: str) -> int:
    return len(to)


@notification.preset(ttl=60)(timeout=5)
def from_a_nested_preset(x: int) -> str:
    return str(x)


@registry.task(queue="mail")
async def of_a_registry(*, to: str) -> bytes:
    return to.encode()


@scheduled_task(cron="0 2 * * *", timezone="Europe/Berlin", timeout=900, kwargs={"batch_size": 100})
async def scheduled(ctx: Context, *, batch_size: int = 50) -> dict[str, int]:
    return {"deleted": batch_size}


@registry.scheduled_task(cron="* * * * *")
def scheduled_and_plain() -> int:
    return 1


@scheduled_task(every=timedelta(minutes=5), schedule="often", jitter=2, misfire="skip", enabled=False)
@scheduled_task(cron="0 2 * * *", schedule="nightly", args=(1,), kwargs={"y": 2}, overlap=True, misfire="all")
@task(retries=3)
async def scheduled_twice(x: int, y: int) -> str:
    return str(x + y)


@task
async def with_injected(ctx: Context, *, user_id: int, db_session: Session = INJECTED) -> int:
    return user_id


@task(batch=Batch(size=100, wait=0.5))
async def batched(ctx: Context, texts: list[str]) -> list[dict[str, Any]]:
    return [{"job": job.key, "text": text} for job, text in zip(ctx.jobs, texts, strict=True)]


@task(batch=Batch(size=100, wait=timedelta(seconds=1)), retries=3, queue="mail")
async def batched_with_errors(texts: Sequence[str]) -> list[float | Exception]:
    return [len(text) / 2 if text else ValueError("empty") for text in texts]


@registry.task(batch=Batch(2, 1))
def batched_in_a_thread(payloads: list[dict[str, Any]]) -> list[int | Retry]:
    return [len(payload) or Retry() for payload in payloads]


@notification(batch=Batch(2, 1))
def batched_from_a_preset(context: Context, ids: list[int], *, db_session: Session = INJECTED) -> list[list[Any]]:
    return [[number] for number in ids]


@registry.task(batch=Batch(2, 1))
async def batched_without_a_look(_ctx: Context, ids: list[int]) -> list[Any]:
    return [*ids]


@scheduled_task(cron="0 2 * * *", args=["a"])
@task(batch=Batch(2, 1))
async def batched_and_scheduled(texts: list[str]) -> Sequence[str]:
    return texts


async def enqueuing() -> None:
    assert_type(await with_context.enqueue(to="a"), Job[dict[str, int]])
    assert_type(await with_context.delay(to="a", count=2), Job[dict[str, int]])
    assert_type(await with_context.apply_async(kwargs={"to": "a"}, countdown=60), Job[dict[str, int]])
    assert_type(await with_saqs_context.enqueue(user_id=1), Job[dict[str, Any]])
    assert_type(await with_a_dictionary.enqueue(user_id=1), Job[int])
    assert_type(await with_another_name.enqueue(1), Job[dict[str, Any]])
    assert_type(await without_a_look_at_it.enqueue(1), Job[list[Any]])
    assert_type(await without_context.enqueue({"a": 1}, count=2), Job[str])
    assert_type(await plain.enqueue(1, y=2), Job[int])
    assert_type(await plain_with_context.enqueue(x=1), Job[tuple[int, str]])
    assert_type(await with_options.enqueue(to="a"), Job[None])
    assert_type(await in_a_process.using(expires=datetime.now(UTC)).enqueue(x=1), Job[int | Snooze])
    assert_type(await from_a_preset.enqueue(to="a"), Job[int])
    assert_type(await from_a_nested_preset.enqueue(1), Job[str])
    assert_type(await of_a_registry.enqueue(to="a"), Job[bytes])
    assert_type(await scheduled.enqueue(), Job[dict[str, int]])
    assert_type(await scheduled_and_plain.enqueue(), Job[int])
    assert_type(await scheduled_twice.enqueue(1, y=2), Job[str])
    assert_type(await scheduled_twice(1, 2), str)
    assert_type(await with_injected.enqueue(user_id=1), Job[int])


async def batching(ctx: Context) -> None:
    assert_type(await batched.enqueue("a"), Job[dict[str, Any]])
    assert_type(await batched_with_errors.enqueue("a"), Job[float])
    assert_type(await (await batched_with_errors.using(delay=1).enqueue("a")).wait(), float)
    assert_type(await batched_in_a_thread.enqueue({"a": 1}), Job[int])
    assert_type(await batched_from_a_preset.enqueue(1), Job[list[Any]])
    assert_type(await batched_without_a_look.enqueue(1), Job[Any])
    assert_type(await batched_and_scheduled.enqueue("a"), Job[str])
    assert_type(await batched.enqueue_many([{"texts": "a"}]), list[Job[dict[str, Any]]])
    assert_type(batched.s("a"), Sig[dict[str, Any]])
    assert_type(await batched({}, ["a", "b"]), list[Any])
    assert_type(batched_in_a_thread([{"a": 1}]), list[Any])
    assert_type(batched_from_a_preset({}, [1], db_session=Session()), list[Any])
    assert_type(ctx.jobs, Sequence[Job[Any]])


async def waiting() -> None:
    job = await with_context.enqueue(to="a")
    assert_type(await job.wait(), dict[str, int])
    assert_type(await job.wait(5), dict[str, int])
    assert_type(await (await plain.enqueue(1, 2)).wait(timeout=5), int)
    assert_type(job.headers, Mapping[str, str])
    assert_type(job.parent_id, str | None)
    assert_type(job.root_id, str)
    async for update in job.updates():
        assert_type(update, Update)
        assert_type(update.percent, int)
    assert_type(job.ended, bool)
    assert_type(await job.revoke(terminate=True, reason="enough"), bool)


async def using() -> None:
    bound = plain.using(delay=60, key="k", headers={"trace": "1"}).using(eta=datetime.now(UTC))
    assert_type(await bound.enqueue(1, y=2), Job[int])
    assert_type(await limited.using(priority=9, rate_limit="1/s", concurrency=[1, 2]).enqueue(1), Job[int])
    assert_type(await limited.using(throttle=Throttle(60)).using(debounce=timedelta(1)).enqueue(1), Job[int])
    assert_type(await limited.using(unique=True, fair_key="user_id").enqueue(user_id=1), Job[int])
    assert_type(await limited.apply_async([1], priority=9), Job[int])
    assert_type((await limited_in_short.enqueue(1)).control, Mapping[str, Any])
    assert_type(limited.control_of(limited.using().options, {"user_id": 1}), dict[str, Any] | None)
    assert_type(await with_context.using(queue="mail").enqueue(to="a"), Job[dict[str, int]])


async def signing() -> None:
    assert_type(plain.s(1), Sig[int])
    assert_type(with_context.si(to="a").set(countdown=60), Sig[dict[str, int]])
    assert_type(await plain.s(1, 2).enqueue(), Job[int])
    assert_type(await (await plain.s(1, 2).delay()).wait(), int)
    assert_type(plain.s(1, 2) | plain.s(3), Chain)
    assert_type(plain.map([1, 2]), Group)
    assert_type(group(plain.s(n) for n in range(3)), Group)
    assert_type(chain([plain.s(1, 2), plain.s(3)]), Chain)
    assert_type(chord([plain.s(1, 2)], without_context.s()), Chain)
    flow = await chain(plain.s(1, 2), plain.s(3)).enqueue(headers={"a": "b"}, on_failure=plain.si(1, 2))
    assert_type(flow, WorkflowJob)
    assert_type(await flow.errors(), list[NodeFailure])
    assert_type(Workflow().add("a", plain.s(1, 2)).add("b", plain.s(1), after="a"), Workflow)


async def calling_in_place() -> None:
    assert_type(await with_context({}, to="a"), dict[str, int])
    assert_type(await with_context(Context(), to="a", count=2), dict[str, int])
    assert_type(await with_saqs_context({"queue": None}, user_id=1), dict[str, Any])
    assert_type(await without_context({"a": 1}), str)
    assert_type(plain(1, 2), int)
    assert_type(plain_with_context({}, x=1), tuple[int, str])
    assert_type(await of_a_registry(to="a"), bytes)
    assert_type(await with_injected({}, user_id=1, db_session=Session()), int)


async def looking_things_up(ctx: Context) -> None:
    async with connect("embedded", registry=registry) as client:
        assert_type(client, Client)
        assert_type(client.queue("mail"), Queue)
        assert_type(await client.queue().revoke(["key"]), list[str])
        assert_type(await client.queue().job("key"), Job[Any] | None)
        assert_type(await client.queue().enqueue("mail.send", to="a"), Job[Any] | None)
    assert_type(plain.name, str)
    assert_type(await registry.schedules.list(), list[ScheduleEntry])
    assert_type(await registry.schedules.set("nightly", cron="0 3 * * *", kwargs={"y": 3}), ScheduleEntry)
    assert_type(await registry.schedules.run("nightly", 1, y=3), Job[Any])
    assert_type(await registry.schedules.next("nightly", 3), list[datetime])
    assert_type(await registry.schedules.fires("nightly"), list[ScheduleFire])
    assert_type(scheduled.schedules, tuple[Schedule, ...])
    assert_type(ctx.job, Job[Any])
    assert_type(ctx.retries, int)
    assert_type(ctx.is_aborted(), bool)
    assert_type(await ctx.set_progress(1, 2.5, file="a"), None)
