"""A worker gives outcomes and gets jobs in one call, and while it is idle, one job ahead of its coming."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from tests.redis.conftest import Gate
from tests.support import Server, ended, eventually, left_behind, lists, working

from knapsaq import Client, OptionError, Queue, Registry, Settings, connect
from knapsaq.claims import Settlement
from knapsaq.exchange import BYTES_A_CALL, COMPARED_SECONDS, Exchange
from knapsaq.outcomes import Succeeded
from knapsaq.redis.line import Line
from knapsaq.redis.scripts import advance
from knapsaq.registry import AnyTask
from knapsaq.testing import ManualClock
from knapsaq.wakeup import Wakeup
from knapsaq.worker import Worker


@pytest.fixture
async def producer(client: Client, settings: Settings, registry: Registry) -> AsyncIterator[Queue]:
    """The queue, over connections of its own."""
    async with connect(settings, registry=Registry()) as other:
        other.queue().registry = registry
        yield other.queue()


@pytest.fixture
async def exchange(queue: Queue) -> AsyncIterator[Exchange]:
    """The exchange of a worker ``w`` that runs nothing."""
    wakeup = Wakeup(queue, asyncio.Event())
    yield Exchange(queue, "w", 4, {}, wakeup)
    await wakeup.close()


async def blocked(queue: Queue) -> list[dict[str, Any]]:
    """Return the connections that a blocking call holds."""
    clients: Any = await queue.redis.client_list()
    return [client for client in clients if "b" in client["flags"]]


async def is_armed(worker: Worker) -> bool:
    """Tell whether an idle worker waits with its claim on the server."""
    ahead = worker._exchange.ahead
    return ahead is not None and not ahead.done() and bool(await blocked(worker.queue))


class TestOutage:
    async def test_a_worker_hears_within_a_second_that_redis_is_back(
        self, exchange: Exchange, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However long it was away; at first it asks more often."""
        exchange._queue = Queue.from_url("unix:///nowhere/broker.sock", settings=settings)
        pauses: list[float] = []

        async def passes(seconds: float) -> None:
            pauses.append(seconds)

        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "sleep", passes)
            for _ in range(100):
                assert await exchange._advance([], 1) is None
        assert pauses == sorted(pauses)
        assert (pauses[0], pauses[-1]) == (0.1, 1.0)

    @pytest.mark.parametrize("grace", [0.0, 9.0])
    async def test_a_worker_that_ends_while_redis_is_away_keeps_outcomes_for_its_grace(  # noqa: PLR0917 - fixtures
        self,
        queue: Queue,
        echo: AnyTask,
        exchange: Exchange,
        settings: Settings,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        grace: float,
    ) -> None:
        """However long the outage lasts by then; after it, it says which jobs will run again."""
        job = await echo.enqueue(text="hi")
        [claim] = await queue.claim(1, worker="w")
        exchange._queue = Queue.from_url("unix:///nowhere/broker.sock", settings=settings)
        moved = 100.0
        loop = asyncio.get_running_loop()
        now = loop.time()

        async def passes(seconds: float) -> None:
            nonlocal moved
            moved += seconds

        monkeypatch.setattr(loop, "time", lambda: now + moved)
        exchange.post(queue.settlement(claim, Succeeded("done")))
        exchange.stop.set()
        exchange.stop_by = loop.time() + grace
        begun = moved
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "sleep", passes)
            while exchange._outbox:
                settlements, exchange._outbox = exchange._outbox, []
                await exchange._advance(settlements, 0)
        assert grace <= moved - begun <= grace + 1.0
        told = [text for text in caplog.messages if "will run again" in text]
        assert told == [
            f"worker w stops while Redis is away: how 1 jobs ended is not written, and they will run again: {job.id}"
        ]


class TestAhead:
    async def test_an_idle_worker_gets_a_job_without_asking_for_it(
        self, queue: Queue, producer: Queue, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the push and the task's first line the worker makes no call for jobs."""
        sent: list[object] = []
        execute = Line.execute
        at_start: list[list[object]] = []

        @registry.task
        async def look() -> None:
            at_start.append(list(sent))

        async def told(line: Line, *words: Any) -> Any:
            if line is not producer.line and advance.sha in words:
                sent.append(words[0])
            return await execute(line, *words)

        async with working(queue) as worker:
            await eventually(lambda: is_armed(worker))
            monkeypatch.setattr(Line, "execute", told)
            await ended(await producer.enqueue("look"))
        assert at_start == [[]]

    async def test_many_jobs_that_come_at_once_are_all_run(self, queue: Queue, echo: AnyTask) -> None:
        """The first by the claim that waited, the others by those that follow."""
        async with working(queue, concurrency=3) as worker:
            await eventually(lambda: is_armed(worker))
            jobs = await echo.enqueue_many([{"text": str(number)} for number in range(20)])
            await ended(*jobs)
        assert [job.result for job in jobs] == [str(number) for number in range(20)]
        assert [job.attempts for job in jobs] == [1] * 20

    async def test_a_worker_with_one_slot_takes_a_due_job_while_its_claim_waits(
        self, queue: Queue, echo: AnyTask
    ) -> None:
        """A job that becomes due reaches the waiting claim; nothing runs beside it."""
        async with working(queue, concurrency=1) as worker:
            await eventually(lambda: is_armed(worker))
            job = await echo.using(delay=0.2).enqueue(text="late")
            await ended(job)
        assert (job.result, job.attempts) == ("late", 1)

    async def test_a_worker_that_runs_a_job_leaves_the_next_to_others(
        self, queue: Queue, producer: Queue, gate: Gate
    ) -> None:
        """Its loop may be blocked by the first: a claim that waits would hold the second up."""
        async with working(queue, concurrency=2) as worker:
            await producer.enqueue("held")
            await gate.entered()
            await eventually(lambda: blocked(queue))
            assert worker._exchange.ahead is None
            gate.open()

    async def test_a_stopped_worker_claims_nothing_more(self, queue: Queue, producer: Queue, echo: AnyTask) -> None:
        """The claim that waited on the server is gone with it, at once."""
        async with working(queue) as worker:
            await eventually(lambda: is_armed(worker))
            asked = time.monotonic()
            await worker.stop()
            assert time.monotonic() - asked < 5  # the blocking call by itself takes 30 s
        await producer.enqueue("echo", text="hi")
        assert await blocked(queue) == []
        assert len((await lists(queue))["queued"]) == 1
        assert (await lists(queue))["active"] == []

    @pytest.mark.parametrize("seed", range(4))
    async def test_a_job_that_comes_as_the_worker_stops_is_run_or_waits(
        self, queue: Queue, producer: Queue, echo: AnyTask, seed: int
    ) -> None:
        """Whichever comes first, no job is left with a worker that is gone."""
        dice = Random(seed)  # noqa: S311 - not a secret
        for _ in range(8):
            async with working(queue) as worker:
                await eventually(lambda worker=worker: is_armed(worker))
                stopping = asyncio.create_task(worker.stop())
                await asyncio.sleep(dice.random() / 500)
                job = await producer.enqueue("echo", text="hi")
                await stopping
            assert job is not None
            await job.refresh()
            state = await lists(queue)
            assert state["active"] == []
            assert await queue.redis.exists(queue.keys.claims) == 0
            assert state["queued"] == ([] if job.ended else [job.key])
            assert job.attempts == (1 if job.ended else 0)
            await job.abort("end of the round")

    async def test_a_line_that_is_cut_while_the_claim_waits_costs_no_job(
        self, queue: Queue, producer: Queue, echo: AnyTask
    ) -> None:
        """The worker asks again, and what the lost answer may have claimed comes back."""
        async with working(queue) as worker:
            for _ in range(3):
                await eventually(lambda: is_armed(worker))
                for client in await blocked(queue):
                    await queue.redis.client_kill_filter(_id=client["id"])
                job = await producer.enqueue("echo", text="hi")
                await ended(job)
                assert job is not None
                assert job.attempts == 1
        assert await left_behind(queue) == []

    async def test_workers_that_share_a_loop_claim_nothing_ahead(
        self, client: Client, registry: Registry, echo: AnyTask
    ) -> None:
        """A task of one may block the loop, and what the other's claim brings would wait for that."""
        async with working(client.queue()) as worker, working(client.queue("mail")):
            await asyncio.sleep(0)
            await ended(await echo.enqueue(text="hi"))
            await eventually(lambda: blocked(client.queue()))
            assert worker._exchange.ahead is None

    async def test_a_worker_whose_hook_runs_claims_nothing_ahead(self, queue: Queue, echo: AnyTask) -> None:
        """As with a task: the hook may block the loop."""
        gate = asyncio.Event()

        async def wait(_ctx: Any) -> None:
            await gate.wait()

        async with working(queue, after_process=wait) as worker:
            await ended(await echo.enqueue(text="hi"))
            await eventually(lambda: blocked(queue))
            assert worker._exchange.ahead is None
            gate.set()

    async def test_a_claim_whose_line_is_dead_without_a_word_is_given_up(
        self, queue: Queue, producer: Queue, echo: AnyTask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The thread of the lease sees the job wait, and the worker asks over its other line."""
        async with working(queue) as worker:
            await eventually(lambda: is_armed(worker))
            wire = worker._wakeup._blocking._wire
            assert wire is not None
            monkeypatch.setattr(wire, "data_received", lambda _data: None)
            job = await producer.enqueue("echo", text="hi")
            for _ in range(2):
                worker._exchange.hear_of_work()
                await asyncio.sleep(0)
            await ended(job)

    @pytest.mark.parametrize("fault", ["hangs", "away"])
    async def test_an_idle_worker_stops_soon_where_redis_does_not_answer(
        self, tmp_path: Path, settings: Settings, registry: Registry, fault: str
    ) -> None:
        """It waits for the end of its claim no longer than for anything else."""
        server = Server(tmp_path / "server")
        own = settings.with_values(broker_url=server.start())
        async with connect(own, registry=registry) as client:
            queue = client.queue()
            queue.line._patience = 1.0
            async with working(queue) as worker:
                await eventually(lambda: is_armed(worker))
                pid = int((await queue.redis.info("server"))["process_id"])
                os.kill(pid, signal.SIGSTOP if fault == "hangs" else signal.SIGKILL)
                try:
                    worker.request_stop()
                    asked = time.monotonic()
                    await eventually(lambda: worker._exchange.ahead is None, within=8)
                    assert time.monotonic() - asked < 8
                finally:
                    if fault == "hangs":
                        os.kill(pid, signal.SIGCONT)
        server.stop()

    async def test_a_worker_can_be_started_again_after_it_was_cancelled_while_it_waited(
        self, queue: Queue, echo: AnyTask
    ) -> None:
        """The claim of its first life does not end the second."""
        worker = Worker(queue)
        worker.SIGNALS = []
        running = asyncio.create_task(worker.start())
        await eventually(lambda: is_armed(worker))
        running.cancel()
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        again = asyncio.create_task(worker.start())
        await ended(await echo.enqueue(text="hi"))
        await worker.stop()
        await again

    async def test_a_job_that_came_while_the_process_stood_still_is_not_begun(
        self, queue: Queue, producer: Queue, echo: AnyTask
    ) -> None:
        """Its lease had run out by then, and another worker may run the job: it is put back or left to that."""
        async with working(queue) as worker:
            await eventually(lambda: is_armed(worker))
            lapses = worker._exchange.lapses
            worker._exchange.lapses = lambda: lapses() + 1
            job = await producer.enqueue("echo", text="hi")
            await ended(job)
            assert job is not None
            assert job.attempts == 1
            assert worker._exchange._lapses_then > 0
        assert await left_behind(queue) == []

    async def test_a_worker_whose_lease_has_run_out_is_given_no_job_that_it_waited_for(
        self, queue: Queue, echo: AnyTask, clock: ManualClock
    ) -> None:
        """It has died without a word, or stands still; who asks by itself gets a new lease."""
        queue.clock = clock
        await echo.enqueue(text="hi")
        assert (await queue.advance("w", [], -1)).claims == []
        await queue.redis.zadd(queue.keys.leases, {"w": clock()})
        assert (await queue.advance("w", [], -1)).claims == []
        await queue.redis.zadd(queue.keys.leases, {"w": clock() + queue.settings.lease * 600})
        assert (await queue.advance("w", [], -1)).claims == []
        await queue.redis.zadd(queue.keys.leases, {"w": clock() + queue.settings.lease * 800})
        assert len((await queue.advance("w", [], -1)).claims) == 1


class TestDoubt:
    async def test_a_worker_in_doubt_claims_nothing(
        self, queue: Queue, echo: AnyTask, exchange: Exchange, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While it cannot look what lost replies gave, it does not take more and more."""
        await echo.enqueue_many([{"text": "hi"}] * 20)
        looked = 0

        async def refused(*_: object) -> list[Settlement]:
            nonlocal looked
            looked += 1
            raise RedisConnectionError("no connection is left")

        monkeypatch.setattr(queue, "unknown_claims", refused)
        exchange._doubtful = True
        for _ in range(3):
            assert (await exchange.next(4))[0] is None
        assert looked == 3
        assert (await lists(queue))["active"] == []
        exchange._doubtful = False

    async def test_a_claim_that_is_put_back_is_put_back_once(
        self, queue: Queue, echo: AnyTask, exchange: Exchange, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Though an outage comes in between, in which it is on its way already."""
        await echo.enqueue(text="hi")
        await queue.claim(1, worker="w")
        advance, failures = queue.advance, iter([True, True])

        async def cut(*args: Any) -> Any:
            if next(failures, False):
                raise RedisConnectionError("cut")
            return await advance(*args)

        monkeypatch.setattr(queue, "advance", cut)
        exchange._doubtful = True
        for _ in range(2):
            assert (await exchange.next(0))[0] is None
        assert len(exchange._outbox) == 1
        while exchange.pending:
            await exchange.next(0)

    async def test_claims_that_nobody_knows_of_are_put_back_after_a_while(
        self, queue: Queue, echo: AnyTask, exchange: Exchange
    ) -> None:
        """A call that was given up may be served later, by a proxy that had kept it."""
        await exchange.next(0)
        job = await echo.enqueue(text="hi")
        await queue.claim(1, worker="w")
        await exchange.next(0)
        assert (await lists(queue))["active"] == [job.key]

        exchange._compared_at -= COMPARED_SECONDS + 1
        while exchange.pending or (await lists(queue))["active"]:
            await exchange.next(0)
        assert (await lists(queue))["queued"] == [job.key]
        [claim] = await queue.claim(1, worker="another")
        assert (claim.crashes, claim.job.attempts) == (0, 0)

    async def test_a_stamp_that_is_sent_again_shows_the_job_as_it_is_now(
        self, queue: Queue, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the task has written since then is not undone by the older record."""
        advance = queue.advance
        failures = iter([False, True])
        written = asyncio.Event()
        seen: list[float] = []

        @registry.task
        async def slow(ctx: Any) -> None:
            await asyncio.sleep(0.02)  # the stamp is on its way
            await ctx.job.update(progress=0.5)
            written.set()
            await eventually(lambda: not worker._exchange.pending)
            stored = await queue.job(ctx.job.key)
            assert stored is not None
            seen.append(stored.progress)

        async def broken(worker: str, settlements: Any, want: int, *line: Line) -> Any:
            if any(each.verb == "stamp" for each in settlements) and not next(failures, False):
                step = await advance(worker, settlements, want, *line)
                await written.wait()
                raise RedisConnectionError(f"lost the reply to {step}")
            return await advance(worker, settlements, want, *line)

        monkeypatch.setattr(queue, "advance", broken)
        async with working(queue) as worker:
            await ended(await queue.enqueue("slow"))
        assert seen == [0.5]

    async def test_settlements_are_sent_by_weight(
        self, queue: Queue, exchange: Exchange, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Many large results do not make one call that blocks the server."""
        sizes: list[int] = []
        advance = queue.advance

        async def measured(worker: str, settlements: Any, want: int, *line: Line) -> Any:
            sizes.append(sum(len(each.payload) for each in settlements))
            return await advance(worker, settlements, want, *line)

        monkeypatch.setattr(queue, "advance", measured)
        large = b"x" * (BYTES_A_CALL // 3)
        exchange.post(*[Settlement(f"job-{n}", "w 1.1", "finish", large, 60, "complete") for n in range(10)])
        while exchange.pending:
            await exchange.next(0)
        assert sum(sizes) == 10 * len(large)
        assert max(sizes) <= BYTES_A_CALL


class TestNames:
    @pytest.mark.parametrize("name", ["two words", "", "line\nbreak", " blank"])
    async def test_a_worker_s_name_has_no_blanks(self, queue: Queue, name: str) -> None:
        """Claims tell workers apart by them: `a` would hand back the jobs of `a b`."""
        with pytest.raises(OptionError, match="blanks"):
            Exchange(queue, name, 1, {}, Wakeup(queue, asyncio.Event()))

    async def test_workers_with_similar_names_keep_their_claims(self, queue: Queue, echo: AnyTask) -> None:
        """A name that begins like another is another."""
        await echo.enqueue_many([{"text": "hi"}] * 2)
        [mine] = await queue.claim(1, worker="w")
        [other] = await queue.claim(1, worker="w2")
        assert [each.job_id for each in await queue.unknown_claims("w", [])] == [mine.job_id]
        assert await queue.settle(other, Succeeded(None), worker="w2")
