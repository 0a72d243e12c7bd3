"""Calls that type checkers must refuse: mypy complains of each ``type: ignore`` that hides nothing. Never run."""

from __future__ import annotations

from typing import Any

import saq.types

from knapsaq import INJECTED, Batch, Concurrency, Context, Rate, Registry, Unique, Workflow, chain, scheduled_task, task

registry = Registry()


@task
async def send(ctx: Context, *, to: str, count: int = 1) -> dict[str, Any]:
    return {to: count}


@task
async def for_saq(ctx: saq.types.Context, *, user_id: int) -> dict[str, Any]:
    return {"user_id": user_id}


@task(retries=3)
def add(x: int, y: int) -> int:
    return x + y


@registry.task
async def process(payload: dict[str, Any]) -> list[Any]:
    return [payload]


@scheduled_task(cron="* * * * *")
async def clean(*, batch_size: int = 50) -> int:
    return batch_size


@task
async def store(*, user_id: int, db_session: bytes = INJECTED) -> None: ...


@task(batch=Batch(size=100, wait=0.5))
async def embed(ctx: Context, texts: list[str]) -> list[float | Exception]:
    return [float(text) for text in texts]


async def arguments() -> None:
    await send.enqueue()  # type: ignore[call-arg]
    await send.enqueue(to=1)  # type: ignore[arg-type]
    await send.enqueue("a")  # type: ignore[call-arg]
    await send.enqueue(to="a", subject="Hi")  # type: ignore[call-arg]
    await send.enqueue({}, to="a")  # type: ignore[arg-type, misc]
    await send.delay(to="a", count="2")  # type: ignore[arg-type]
    await for_saq.enqueue(user_id="1")  # type: ignore[arg-type]
    await for_saq.enqueue({}, user_id=1)  # type: ignore[arg-type, misc]
    await add.enqueue(1)  # type: ignore[call-arg]
    await add.enqueue(1, "2")  # type: ignore[arg-type]
    await process.enqueue([1])  # type: ignore[arg-type]
    await clean.enqueue(batch_size="all")  # type: ignore[arg-type]
    await store.enqueue()  # type: ignore[call-arg]
    await add.using(delay=1).enqueue(1, 2, 3)  # type: ignore[call-arg]
    await send.using(key="k").enqueue(to=b"a")  # type: ignore[arg-type]
    await add.apply_async(countdown="soon")  # type: ignore[arg-type]


async def batches() -> None:
    await embed.enqueue(1)  # type: ignore[arg-type]
    await embed.enqueue(["a"])  # type: ignore[arg-type]
    await embed.enqueue()  # type: ignore[call-arg]
    await embed.enqueue("a", "b")  # type: ignore[call-arg]
    _text: str = await (await embed.enqueue("a")).wait()  # type: ignore[assignment]
    await embed({}, "a")  # type: ignore[arg-type]
    await embed(["a"])  # type: ignore[call-arg, arg-type]
    Batch(size="100", wait=0.5)  # type: ignore[arg-type]
    Batch(size=100)  # type: ignore[call-arg]
    task(batch=100)  # type: ignore[call-overload]
    task.preset(batch=Batch(2, 1))  # type: ignore[call-arg]

    @task(batch=Batch(2, 1))  # type: ignore[call-overload]
    async def of_one(text: str) -> list[str]:
        return [text]

    @task(batch=Batch(2, 1))  # type: ignore[call-overload]
    async def with_one_result(texts: list[str]) -> int:
        return len(texts)

    @task(batch=Batch(2, 1))  # type: ignore[call-overload]
    async def by_name(*, texts: list[str]) -> list[str]:
        return texts


async def results() -> None:
    _number: int = await (await send.enqueue(to="a")).wait()  # type: ignore[assignment]
    _text: str = await (await add.using(key="k").enqueue(1, 2)).wait()  # type: ignore[assignment]
    await add(1, 2)  # type: ignore[misc]
    _missing_await: dict[str, Any] = send({}, to="a")  # type: ignore[assignment]


async def signatures() -> None:
    _number: int = await (await send.s(to="a").enqueue()).wait()  # type: ignore[assignment]
    chain(add)  # type: ignore[arg-type]
    add.s(1) | 5  # type: ignore[operator]
    await chain(add.s(1, 2)).enqueue(heads={})  # type: ignore[call-arg]
    Workflow().add("a", add.s(1, 2), on_failure="stop")  # type: ignore[arg-type]


async def in_place() -> None:
    await send(to="a")  # type: ignore[call-arg]
    await send({}, to=1)  # type: ignore[arg-type]
    add("1", 2)  # type: ignore[arg-type]


def definitions() -> None:
    task("a name")  # type: ignore[call-overload]
    scheduled_task("0 2 * * *")  # type: ignore[arg-type]
    scheduled_task(cron=5)  # type: ignore[arg-type]
    scheduled_task(every="1 h")  # type: ignore[arg-type]
    scheduled_task(cron="* * * * *", misfire="twice")  # type: ignore[arg-type]
    task(retires=3)  # type: ignore[call-overload]
    task(timeout="5 s")  # type: ignore[call-overload]
    task.preset(retires=3)  # type: ignore[call-arg]
    task.preset(timeout="5 s")  # type: ignore[arg-type]
    scheduled_task(cron="0 2 * * *", retires=3)  # type: ignore[call-arg]
    add.using(prio=3)  # type: ignore[call-arg]
    add.using(delay="soon")  # type: ignore[arg-type]
    task(rate_limit=10)  # type: ignore[call-overload]
    task(concurrency="3")  # type: ignore[arg-type]
    task(priority="high")  # type: ignore[call-overload]
    add.using(unique="end")  # type: ignore[arg-type]
    add.using(fair_key=5)  # type: ignore[arg-type]
    add.using(throttle="5 s")  # type: ignore[arg-type]
    Rate(10)  # type: ignore[arg-type]
    Rate("10/m", key=lambda: 5)  # type: ignore[arg-type, misc]
    Concurrency("3")  # type: ignore[arg-type]
    Unique(clash="ignore")  # type: ignore[arg-type]
    Unique(until="never")  # type: ignore[arg-type]
    add.no_such_method()  # type: ignore[attr-defined]
