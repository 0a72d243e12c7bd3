"""Every public name of SAQ's queue, job and worker, on our objects; ``tests/saq`` has what is better than SAQ's."""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import saq
from saq.job import CronJob, Status
from saq.job import Job as SaqJob
from saq.queue.base import JobError
from saq.queue.redis import RedisQueue
from saq.worker import async_check_health
from tests.support import ended, eventually, left_behind, lists, working

from knapsaq import Client, Job, Queue, Registry, Worker
from knapsaq.job import FIELDS

DISTANT = 4_000_000_000
"""A due time in the year 2096."""


@pytest.fixture(autouse=True)
def tasks(registry: Registry) -> None:
    """The tasks of these tests."""

    @registry.task
    async def add(a: int, b: int) -> int:
        return a + b

    @registry.task
    async def fail(reason: str) -> None:
        raise LookupError(reason)


@pytest.fixture
async def job(queue: Queue) -> Job[Any]:
    """A job that waits."""
    return await add(queue)


async def add(queue: Queue, key: str = "one", **fields: Any) -> Job[Any]:
    """Queue a job."""
    job = await queue.enqueue("add", **{"key": key, "a": 1, "b": 2, **fields})
    assert job is not None
    return job


class TestNames:
    @pytest.mark.parametrize(("saqs", "ours"), [(RedisQueue, Queue), (SaqJob, Job), (saq.Worker, Worker)])
    def test_each_is_there_takes_saqs_arguments_and_is_used_in_this_file(self, saqs: type, ours: type) -> None:
        """A name or an argument that a new version of SAQ brings is missed here."""
        text = Path(__file__).read_text()
        for name in (name for name in dir(saqs) if not name.startswith("_") and name not in FIELDS):
            assert re.search(rf"\b{name}\b", text), f"{saqs.__name__}.{name} is not tested"
            theirs, mine = getattr(saqs, name), getattr(ours, name)
            if callable(theirs) and mine is not theirs:
                wanted, taken = inspect.signature(theirs).parameters, inspect.signature(mine).parameters
                rest = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
                assert rest or list(wanted) == list(taken)[: len(wanted)], f"{name} takes other arguments"

    def test_the_constructors_take_saqs_arguments(self, queue: Queue) -> None:
        """Each by SAQ's name, with SAQ's default where none is given."""
        own = Queue(queue.redis, name="mail", dump=str, load=eval, max_concurrent_ops=3, swept_error_message="gone")
        assert (own.name, own.swept_error_message) == ("mail", "gone")
        options: dict[str, Any] = dict.fromkeys(inspect.signature(saq.Worker).parameters)
        options.update(functions=[], concurrency=3, timers={"abort": 2}, cron_jobs=(), cron_tz=None, burst=False)
        options.update(queue=queue, dequeue_timeout=0, poll_interval=0, cancellation_hard_deadline_s=2.5)
        assert Worker(**options).concurrency == 3


class TestAsking:
    async def test_job_jobs_and_iter_jobs(self, queue: Queue) -> None:
        """One, several with gaps, all of some states."""
        for key in ("a", "b"):
            await add(queue, key)
        b = await queue.job("b")
        assert b is not None
        await b.abort("enough")

        assert await queue.job("none") is None
        assert [job and job.key for job in await queue.jobs(["b", "none", "a"])] == ["b", None, "a"]
        assert await queue.jobs([]) == []
        assert {job.key async for job in queue.iter_jobs()} == {"a", "b"}
        assert [job.key async for job in queue.iter_jobs(statuses=[Status.QUEUED], batch_size=1)] == ["a"]

    async def test_info_and_count(self, queue: Queue) -> None:
        """The numbers of the page, and its jobs page by page: active, waiting, then by due time."""
        for number in range(9):
            await add(queue, str(number), scheduled=DISTANT - number if number > 5 else 0)
        await queue.claim(2, worker="w")
        assert [await queue.count(kind) for kind in ("queued", "active", "incomplete")] == [4, 2, 9]
        with pytest.raises(ValueError, match="unknown"):
            await queue.count("everything")
        info = await queue.info()
        assert (info["name"], info["queued"], info["active"], info["scheduled"]) == ("default", 4, 2, 3)
        assert info["jobs"] == []
        pages = [(await queue.info(jobs=True, offset=start, limit=4))["jobs"] for start in (0, 4, 8, 12)]
        assert [[job["key"] for job in page] for page in pages] == [list("0123"), list("4587"), ["6"], []]

    async def test_worker_info_is_shown_and_runs_out(self, queue: Queue) -> None:
        """The counters are those of the queue object: complete, failed, retried, aborted."""
        async with working(queue, metadata={"host": "here"}) as worker:
            await queue.apply("add", a=1, b=2)
            with pytest.raises(JobError):
                await queue.apply("fail", reason="no luck")
            told = await worker.worker_info(ttl=30)
            assert (told["queue_key"], told["metadata"]) == ("default", {"host": "here"})
            found = (await queue.info())["workers"][worker.id]
            assert {name: found["stats"][name] for name in ("complete", "failed")} == {"complete": 1, "failed": 1}
        assert (queue.complete, queue.failed, queue.retried, queue.aborted) == (1, 1, 0, 0)
        await queue.write_worker_info("other", told, ttl=30)
        assert list((await queue.info())["workers"]) == ["other"]
        assert await left_behind(queue) == []

    async def test_a_queue_knows_its_server_and_its_keys(self, queue: Queue, client: Client, job: Job[Any]) -> None:
        """And closes its connections when it is told to."""
        assert await queue.version() >= (6, 2)
        assert queue.namespace("active") == "saq:default:active"
        assert queue.job_id("one") == job.id == "saq:job:default:one"
        assert queue.job_key_from_id(job.id) == "one"
        own = Queue.from_url(client.settings.broker_url, settings=client.settings)
        await own.connect()
        assert own.loop is asyncio.get_running_loop()
        assert await own.count("queued") == 1
        await own.disconnect()

    async def test_records_are_read_and_written_by_dump_and_load(self, queue: Queue, job: Job[Any]) -> None:
        """``serialize``, ``deserialize`` and ``copy`` lose nothing."""
        again = queue.deserialize(queue.serialize(job))
        assert again is not None
        assert again.to_dict() == queue.copy(job).to_dict() == job.to_dict()
        assert queue.deserialize(None) is None

    async def test_the_health_check_counts_the_workers(self, client: Client) -> None:
        """``saq --check`` fails where there is none."""
        queues = [Queue.from_url(client.settings.broker_url, settings=client.settings) for _ in range(3)]
        assert await async_check_health(queues[0]) == 1
        async with working(queues[1]):
            await eventually(lambda: self._announced(queues[1]))
            assert await async_check_health(queues[2]) == 0
        await queues[1].disconnect()

    async def _announced(self, queue: Queue) -> bool:
        return bool((await queue.info())["workers"])


class TestSending:
    async def test_apply_and_map(self, queue: Queue) -> None:
        """Results in order; errors raised or returned; a time limit."""
        async with working(queue):
            assert await queue.apply("add", a=1, b=2) == 3
            assert await queue.map("add", [{"a": 1}, {"a": 3}], b=2) == [3, 5]
            with pytest.raises(JobError, match="no luck"):
                await queue.apply("fail", reason="no luck")
            mixed = await queue.map("fail", [{"reason": "a"}], return_exceptions=True)
            assert isinstance(mixed[0], JobError)
        with pytest.raises(TimeoutError):
            await queue.apply("add", a=1, b=2, timeout=0.05)

    async def test_batch_aborts_its_jobs_if_it_fails(self, queue: Queue) -> None:
        """And keeps them if it does not."""
        async with queue.batch():
            await add(queue, "kept")

        async def fail() -> None:
            async with queue.batch():
                await add(queue, "aborted")
                raise LookupError

        with pytest.raises(LookupError):
            await fail()
        assert (await lists(queue))["queued"] == ["kept"]

    async def test_before_enqueue_hooks_see_and_change_each_job(self, queue: Queue) -> None:
        """Until they are taken away."""
        seen: list[str] = []

        async def hook(job: SaqJob) -> None:
            seen.append(job.key)
            job.meta["traced"] = True

        queue.register_before_enqueue(hook)
        await add(queue, "first")
        queue.unregister_before_enqueue(hook)
        await add(queue, "second")
        assert seen == ["first"]
        assert [job.meta for job in await queue.jobs(["first", "second"]) if job] == [{"traced": True}, {}]

    async def test_a_job_that_was_built_by_hand(self, queue: Queue) -> None:
        """``enqueue``, ``get_queue``, ``update`` and ``refresh`` of a job of SAQ, which takes its key's record over."""
        job = SaqJob(function="add", kwargs={"a": 1, "b": 2}, key="one")
        with pytest.raises(TypeError, match="must be associated"):
            job.get_queue()
        await job.enqueue(queue)
        same = SaqJob(function="add", kwargs={"a": 5, "b": 5}, key="one")
        await same.enqueue(queue)
        assert same.kwargs == {"a": 1, "b": 2}
        await job.update(meta={"step": 1})
        await same.refresh()
        assert same.meta == {"step": 1}
        async with working(queue):
            await same.refresh(until_complete=5)
        assert same.result == 3

    async def test_refresh_says_so_if_the_job_is_gone_or_late(self, queue: Queue, job: Job[Any]) -> None:
        """As SAQ does: ``RuntimeError``, and ``TimeoutError`` after the seconds that it was given."""
        with pytest.raises(TimeoutError):
            await job.refresh(0.05)
        await queue.redis.delete(job.id)
        with pytest.raises(RuntimeError):
            await job.refresh()


class TestChanging:
    async def test_finish_and_retry_by_hand(self, queue: Queue, job: Job[Any]) -> None:
        """A program may end a job itself, and queue it again."""
        await job.finish(Status.COMPLETE, result=42)
        await job.refresh()
        assert (job.status, job.result, job.progress, queue.complete) == (Status.COMPLETE, 42, 1.0, 1)
        await queue.retry(job, "again")
        async with working(queue):
            await ended(job)
        assert job.result == 3

    async def test_a_job_of_a_worker_that_steps_by_hand_is_aborted_in_two_steps(self, queue: Queue) -> None:
        """``abort`` and ``finish_abort``, as SAQ's worker has it."""
        await add(queue)
        job = await queue.dequeue(timeout=1)
        assert job is not None
        await job.update(status=Status.ACTIVE)
        await job.abort("enough")
        assert (await queue.job("one")).status is Status.ABORTING  # type: ignore[union-attr]
        await queue.finish_abort(job)
        found = await queue.job("one")
        assert found is not None
        assert (found.status, found.error, queue.aborted) == (Status.ABORTED, "enough", 1)
        assert await queue.redis.exists(job.abort_id) == 0
        assert await left_behind(queue) == []

    async def test_listen_hears_every_change(self, queue: Queue, job: Job[Any]) -> None:
        """Until the callback, which may be a coroutine function, has heard enough; ``notify`` is a change."""
        heard: list[Status] = []

        async def callback(key: str, status: Status) -> bool:
            assert key == "one"
            heard.append(status)
            return status is Status.COMPLETE

        listening = asyncio.create_task(queue.listen(["one"], callback, timeout=10))
        await eventually(lambda: queue.redis.publish(job.id, "active"))
        await queue.notify(job)
        async with working(queue):
            await listening
        assert [heard[0], heard[1], heard[-1]] == [Status.ACTIVE, Status.QUEUED, Status.COMPLETE]
        with pytest.raises(TimeoutError):
            await queue.listen(["none"], callback, timeout=0.05)

    async def test_schedule_queues_what_is_due(self, queue: Queue) -> None:
        """And answers with the ids; whoever holds SAQ's lock is alone with it."""
        for key, scheduled in (("due", time.time() - 1), ("late", DISTANT)):
            await add(queue, key, scheduled=scheduled)
        assert await queue.schedule() == [queue.job_id("due")]
        assert await queue.schedule() == []
        assert (await lists(queue))["queued"] == ["due"]

    async def test_sweep_puts_back_what_a_dead_program_left(self, queue: Queue) -> None:
        """A job that is over its time, and that none of our workers has claimed."""
        await add(queue, retries=2, timeout=1)
        job = await queue.dequeue()
        assert job is not None
        await job.update(status=Status.ACTIVE, started=1)
        assert job.stuck
        assert job.retryable
        assert await queue.sweep(lock=1, abort=0.01) == [job.id]
        assert (await lists(queue))["queued"] == ["one"]

    async def test_nobody_sweeps_or_schedules_while_our_worker_does(self, queue: Queue, job: Job[Any]) -> None:
        """SAQ's own methods find its locks taken."""
        plain = RedisQueue(queue.redis, "default")
        async with working(queue):
            await ended(job)
            assert await plain.sweep() == await plain.schedule() == []


class TestFacts:
    async def test_of_a_job(self, queue: Queue, job: Job[Any]) -> None:
        """``info``, ``duration``, ``replace`` and the delay of the next attempt."""
        async with working(queue):
            await ended(job)
        assert job.info().startswith("Job<function: add, ")
        assert "kwargs" in job.info(full=True)
        assert job.duration("total") == job.duration("start") + job.duration("process")  # type: ignore[operator]
        assert job.duration("running") >= 0  # type: ignore[operator]
        other = Job("other", queue=queue)
        other.replace(job)
        assert other.to_dict() == job.to_dict()
        assert Job("f", retry_delay=2.5, attempts=3).next_retry_delay() == 2.5


async def note(ctx: dict[str, Any], *, number: int) -> int:
    """Give a number back, as a function that SAQ calls."""
    assert isinstance(ctx["worker"], Worker)
    return number


@pytest.fixture
async def plain_queue(queue: Queue) -> AsyncIterator[Queue]:
    """The same queue for a program that knows no tasks."""
    yield (own := Queue(queue.redis, "default", settings=queue.settings))
    await own.line.close()


class TestWorkers:
    async def test_one_that_is_stepped_by_hand(self, queue: Queue, plain_queue: Queue, job: Job[Any]) -> None:
        """``process`` takes one job and runs it to its end, as programs' own tests have it; tasks of ours too."""
        assert await Worker(queue).process()
        await job.refresh()
        assert job.result == 3
        worker = Worker(plain_queue, [note], dequeue_timeout=0.05)
        for number in (1, 2):
            await plain_queue.enqueue("note", key=str(number), number=number)
        assert [await worker.process() for _ in range(3)] == [True, True, False]
        assert [job.result for job in await plain_queue.jobs(["1", "2"]) if job] == [1, 2]
        assert await left_behind(plain_queue) == []

    async def test_its_duties_can_be_stepped_by_hand(self, plain_queue: Queue) -> None:
        """``schedule`` queues cron jobs, ``abort`` looks after running ones, ``upkeep`` starts all of it."""
        worker = Worker(plain_queue, cron_jobs=[CronJob(note, cron="0 0 1 1 *", kwargs={"number": 1})])
        await worker.schedule()
        assert (await lists(plain_queue))["incomplete"] == ["cron:note"]
        await worker.abort(1)
        duties = await worker.upkeep()
        await eventually(lambda: self._announced(plain_queue, worker))
        worker.event.set()
        for duty in duties:
            duty.cancel()
        await asyncio.gather(*duties, return_exceptions=True)

    async def _announced(self, queue: Queue, worker: Worker) -> bool:
        return worker.id in (await queue.info())["workers"]

    async def test_a_hook_that_fails_once_does_not_end_a_job_that_has_attempts_left(self, queue: Queue) -> None:
        """``before_process`` is part of the attempt."""

        async def before(ctx: dict[str, Any]) -> None:
            if ctx["job"].attempts == 1:
                raise LookupError

        job = await add(queue, retries=2, retry_delay=0)
        async with working(queue, before_process=before):
            await ended(job)
        assert (job.status, job.attempts) == (Status.COMPLETE, 2)

    async def test_start_stop_and_signals(self, plain_queue: Queue) -> None:
        """A subclass chooses its ``SIGNALS``; ``stop`` ends ``start``."""

        class Own(Worker):
            SIGNALS: ClassVar[list[Any]] = []

        worker = Own(plain_queue, [note])
        running = asyncio.create_task(worker.start())
        assert await plain_queue.apply("note", number=3) == 3
        await worker.stop()
        await running
