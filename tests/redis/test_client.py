"""An open connection: its queues, its tasks, and what is left when it closes."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from tests.support import answers

from knapsaq import (
    BrokerError,
    Client,
    NotConnectedError,
    Registry,
    Settings,
    SettingsError,
    UnknownQueueError,
    connect,
)
from knapsaq.registry import AnyTask
from knapsaq.testing import ManualClock


class TestConnect:
    async def test_tasks_send_through_the_open_connection(self, settings: Settings, registry: Registry) -> None:
        """Not before it is open, not after it was closed; the job goes to its task's queue or to that of the call."""

        @registry.task(queue="mail")
        async def note(text: str) -> str:
            return text

        with pytest.raises(NotConnectedError):
            await note.enqueue("hi")
        async with connect(settings, registry=registry) as client:
            await client.queue().redis.flushall()
            own = await note.enqueue("hi")
            other = await note.using(queue="default").enqueue("hi")
            assert await client.queue("mail").job(own.key) is not None
            assert await client.queue().job(other.key) is not None
        with pytest.raises(NotConnectedError):
            await note.enqueue("hi")

    async def test_the_newest_of_several_connections_is_used(
        self, client: Client, settings: Settings, registry: Registry, echo: AnyTask
    ) -> None:
        """When it closes, the one before serves again."""
        async with connect(settings, registry=registry) as newest:
            assert registry.sender is newest
            await echo.enqueue(text="hi")
        assert registry.sender is client
        await echo.enqueue(text="hi")

    async def test_a_queue_that_is_not_in_the_settings_is_refused(self, client: Client, echo: AnyTask) -> None:
        """The error lists those that are."""
        with pytest.raises(UnknownQueueError, match=r"known: default, mail|did you mean 'mail'"):
            client.queue("mial")
        with pytest.raises(UnknownQueueError):
            await echo.using(queue="nowhere").enqueue(text="hi")

    async def test_a_url_is_enough(self, broker_url: str, registry: Registry) -> None:
        """Everything else is as the environment says."""
        async with connect(broker_url, registry=registry) as client:
            assert client.settings.broker_url == broker_url

    async def test_an_unreachable_broker_says_what_to_do(self, registry: Registry) -> None:
        """Nothing stays bound."""
        with pytest.raises(BrokerError, match="KNAPSAQ_BROKER_URL"):
            async with connect("unix:///nowhere/broker.sock", registry=registry):
                pass
        with pytest.raises(SettingsError):
            async with connect("http://example.org", registry=registry):
                pass
        assert registry.sender is None

    async def test_the_embedded_broker_lives_as_long_as_its_connections(
        self, settings: Settings, registry: Registry, echo: AnyTask
    ) -> None:
        """It is started by the first and stopped by the last, and keeps the jobs meanwhile."""
        own = settings.with_values(broker_url="embedded")
        async with connect(own, registry=registry) as first:
            url = f"unix://{first.queue().redis.connection_pool.connection_kwargs['path']}"
            async with connect(own, registry=registry):
                job = await echo.enqueue(text="hi")
            assert await asyncio.to_thread(answers, url)
        assert not await asyncio.to_thread(answers, url)
        async with connect(own, registry=registry) as again:
            assert await again.queue().job(job.key) is not None

    async def test_a_clock_is_everybodys(self, settings: Settings, registry: Registry, clock: ManualClock) -> None:
        """Every queue of the connection goes by it."""
        async with connect(settings, registry=registry, clock=clock) as client:
            assert {queue.clock for queue in client.queues.values()} == {clock}


class TestCancellation:
    async def test_a_cancellation_is_never_lost_in_a_command(self, client: Client) -> None:
        """At whatever moment it comes; redis-py's way to send forgets it, and a task would run on for ever."""
        redis = client.queue().redis

        async def endless() -> None:
            while True:
                await redis.mget("a", "b")

        for turns in range(60):
            task = asyncio.create_task(endless())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=2)
            if not done:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            assert done, f"cancelled after {turns} turns of the loop, and still running"

    async def test_a_cancelled_command_leaves_no_reply_for_the_next(self, client: Client) -> None:
        """Each reply goes to who asked."""
        redis = client.queue().redis

        async def ask(number: int) -> bytes | None:
            return await redis.echo(f"{number}")  # type: ignore[no-any-return]

        for turns in range(40):
            lost = asyncio.create_task(ask(-1))
            for _ in range(turns):
                await asyncio.sleep(0)
            lost.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await lost
            assert await ask(turns) == f"{turns}".encode()
