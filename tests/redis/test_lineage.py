"""What jobs inherit from where they are enqueued."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest
from saq.job import Job as SaqJob
from tests.support import ended, eventually, working

from knapsaq import Context, Job, LineageFilter, OptionError, Queue, Registry, Task, bound_headers
from knapsaq.job import META_KEY
from knapsaq.lineage import Origin, origin
from knapsaq.testing import make_context, running_worker


async def stored(queue: Queue, key: str) -> Job[Any]:
    job = await queue.job(key)
    assert job is not None
    return job


@pytest.fixture
def seen() -> dict[str, tuple[str | None, str, dict[str, str]]]:
    """Parent, root and headers of each job that has run, by its key."""
    return {}


@pytest.fixture
def family(registry: Registry, seen: dict[str, Any]) -> Task[..., Any, Any]:
    """A task whose job enqueues one with a digit less, in each way that there is, down to 0."""

    @registry.task
    async def family(ctx: Context, *, left: int) -> None:
        seen[ctx.id] = (ctx.parent_id, ctx.root_id, dict(ctx.headers))
        if left == 4:
            await family.using(key="3", headers={"own": "yes"}).enqueue(left=3)
        elif left == 3:
            await ctx.queue.enqueue("family", left=2, key="2")
        elif left == 2:
            await ctx.queue.enqueue(SaqJob("family", {"left": 1}, key="1"))
        elif left == 1:
            [job] = await family.enqueue_many([{"left": 0}])
            seen["last"] = (job.key, "", {})

    return family


class TestFromJobToJob:
    async def test_headers_parent_and_root_go_down_the_line_however_a_job_enqueues(
        self, queue: Queue, registry: Registry, family: Task[..., Any, Any], seen: dict[str, Any]
    ) -> None:
        """Typed, by name, built by hand, and many at once; what a call says itself wins, and goes on from there."""
        async with running_worker(registry=registry):
            await family.using(key="4", headers={"tenant": "acme", "own": "no"}).enqueue(left=4)
            await eventually(lambda: len(seen) == 6)
        last = seen.pop("last")[0]
        given, later = {"tenant": "acme", "own": "no"}, {"tenant": "acme", "own": "yes"}
        assert seen == {
            "4": (None, "4", given),
            "3": ("4", "4", later),
            "2": ("3", "4", later),
            "1": ("2", "4", later),
            last: ("1", "4", later),
        }
        assert (await stored(queue, last)).root_id == "4"

    async def test_they_outlive_a_retry(self, queue: Queue, registry: Registry) -> None:
        """The second attempt is the same job, with the same line."""
        seen: list[tuple[str | None, str, str]] = []

        @registry.task(retries=1, retry_delay=0)
        async def flaky(ctx: Context) -> None:
            seen.append((ctx.parent_id, ctx.root_id, ctx.headers["tenant"]))
            if ctx.retries == 0:
                raise OSError

        async with running_worker(registry=registry):
            token = origin.set(Origin({"tenant": "acme"}, "parent", "root"))
            job = await flaky.enqueue()
            origin.reset(token)
            await ended(job)
        assert seen == [("parent", "root", "acme")] * 2

    async def test_a_plain_function_and_its_thread_know_the_line_too(self, queue: Queue, registry: Registry) -> None:
        """Context variables go along into threads."""

        @registry.task
        def threaded() -> str:
            source = origin.get()
            return source.key or "" if source else ""

        async with running_worker(registry=registry):
            assert await (await threaded.using(key="k").enqueue()).wait(5) == "k"

    async def test_two_jobs_at_once_do_not_share_a_line(self, queue: Queue, registry: Registry) -> None:
        """Each runs in a context of its own, also beside what the worker's starter had bound."""
        children: list[Job[Any]] = []

        @registry.task
        async def parent(ctx: Context) -> None:
            children.append(await child.enqueue())

        @registry.task
        async def child() -> None: ...

        with bound_headers({"of": "the starter"}):
            async with running_worker(registry=registry):
                origin.set(None)
                await ended(*await parent.enqueue_many({} for _ in range(5)))
                await ended(*children)
        assert len({job.parent_id for job in children}) == 5
        assert all(job.headers == {} for job in children)

    async def test_what_a_worker_queues_by_the_clock_is_nobodys_follower(
        self, queue: Queue, registry: Registry
    ) -> None:
        """Whoever starts a worker in a block with headers does not put them on scheduled jobs."""

        @registry.scheduled_task(cron="* * * * * *")
        async def tick(ctx: Context) -> tuple[str | None, dict[str, str]]:
            seen.append((ctx.parent_id, dict(ctx.headers)))
            return seen[-1]

        seen: list[tuple[str | None, dict[str, str]]] = []
        with bound_headers({"of": "the starter"}):
            async with working(queue):
                await eventually(lambda: seen)
        assert seen[0] == (None, {})


class TestBoundHeaders:
    async def test_a_program_binds_headers_for_a_block(self, queue: Queue, echo: Task[..., Any, Any]) -> None:
        """Blocks nest, the inner one wins, and none is bound any more behind them."""
        with bound_headers({"tenant": "acme", "level": "1"}):
            with bound_headers({"level": "2"}):
                inner = await echo.enqueue(text="a")
            outer = await echo.enqueue(text="b")
        none = await echo.enqueue(text="c")
        assert inner.headers == {"tenant": "acme", "level": "2"}
        assert outer.headers == {"tenant": "acme", "level": "1"}
        assert (none.headers, none.parent_id, none.root_id) == ({}, None, none.key)

    async def test_inside_a_job_they_add_to_its_line(self, queue: Queue, registry: Registry) -> None:
        """The children have the block's headers, and the job as their parent."""

        @registry.task
        async def parent(ctx: Context) -> str:
            with bound_headers({"step": "2"}):
                return (await child.using(key="c").enqueue()).key

        @registry.task
        async def child(ctx: Context) -> None: ...

        async with running_worker(registry=registry):
            await (await parent.using(key="p", headers={"tenant": "acme"}).enqueue()).wait(5)
            found = await stored(queue, "c")
        assert (found.headers, found.parent_id, found.root_id) == ({"tenant": "acme", "step": "2"}, "p", "p")

    @pytest.mark.parametrize("wrong", [{"n": 1}, {1: "n"}, "text", ["a"]])
    def test_what_is_no_text_by_name_is_refused(self, wrong: Any) -> None:
        """And nothing is bound."""
        with pytest.raises(OptionError, match="expected text by name"), bound_headers(wrong):
            pytest.fail("the block must not run")
        assert origin.get() is None
        with pytest.raises(OptionError, match="expected text by name"):
            Job(function="f").add_headers(wrong)


class TestWhatIsStored:
    async def test_without_an_origin_not_a_byte_more_is_stored(self, queue: Queue, echo: Task[..., Any, Any]) -> None:
        """A plain job's record has no meta at all."""
        job = await echo.enqueue(text="hi")
        record = msgspec.json.decode(await queue.redis.get(job.id))
        assert record.keys() == {"function", "key", "queue", "kwargs", "timeout", "queued", "ttl", "status"}

    async def test_other_peoples_meta_stays_beside_it(self, queue: Queue, registry: Registry) -> None:
        """Programs written for SAQ keep things there; the caller's dictionary is not changed."""
        meta = {"mine": 1}
        with bound_headers({"tenant": "acme"}):
            job: Job[Any] = Job(function="f", meta=meta)
            await Queue(queue.redis, "free").enqueue(job)
        assert job.meta == {"mine": 1, META_KEY: {"headers": {"tenant": "acme"}}}
        assert meta == {"mine": 1}
        await queue.redis.flushall()

    async def test_a_job_that_writes_meta_of_its_own_keeps_its_line(self, queue: Queue, registry: Registry) -> None:
        """As programs of SAQ tell their state."""

        @registry.task
        async def parent(ctx: Context) -> None:
            await ctx.job.update(meta={"step": 2})
            await child.using(key="c").enqueue()

        @registry.task
        async def child() -> None: ...

        async with running_worker(registry=registry):
            job = await parent.using(key="p", headers={"tenant": "acme"}).enqueue()
            await job.wait(5)
        assert job.meta == {"step": 2, META_KEY: {"headers": {"tenant": "acme"}}}
        assert (await stored(queue, "c")).headers == {"tenant": "acme"}

    async def test_a_job_that_enqueues_itself_again_is_not_its_own_parent(self, queue: Queue) -> None:
        """As programs of SAQ do; its line stays what it was."""
        job: Job[Any] = Job(function="f", key="k", meta={META_KEY: {"parent": "p", "root": "r"}})
        token = origin.set(job)
        await Queue(queue.redis, "free").enqueue(job)
        origin.reset(token)
        assert (job.parent_id, job.root_id) == ("p", "r")
        first: Job[Any] = Job(function="f", key="first")
        token = origin.set(first)
        await Queue(queue.redis, "free").enqueue(first)
        origin.reset(token)
        assert (first.parent_id, first.root_id, first.meta) == (None, "first", {})
        await queue.redis.flushall()

    @pytest.mark.parametrize("forged", [5, None, "text", {"headers": 5, "parent": 5, "root": [1]}, {"headers": ["a"]}])
    async def test_a_record_with_anything_in_its_place_is_read_as_if_nothing_were_there(
        self, queue: Queue, forged: Any
    ) -> None:
        """Whatever somebody has written, a job of that record can still enqueue others."""
        job: Job[Any] = Job(function="f", key="k", meta={META_KEY: forged})
        assert (job.headers, job.parent_id, job.root_id) == ({}, None, "k")
        token = origin.set(job)
        child = await Queue(queue.redis, "free").enqueue("g")
        origin.reset(token)
        assert child is not None
        assert (child.headers, child.parent_id, child.root_id) == ({}, "k", "k")
        await queue.redis.flushall()


class TestLog:
    async def test_a_tasks_records_have_its_job_and_the_correlation_id(
        self, queue: Queue, registry: Registry, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Of the context's logger by itself, of any other where the filter is on the handler, in threads too."""
        caplog.handler.addFilter(LineageFilter())

        @registry.task
        def threaded(ctx: Context) -> None:
            ctx.logger.warning("its own")
            logging.getLogger("elsewhere").warning("another")

        logging.getLogger("elsewhere").warning("outside")
        async with running_worker(registry=registry):
            await (await threaded.using(key="k", headers={"correlation_id": "c1"}).enqueue()).wait(5)
        facts = {
            record.message: (record.__dict__["job"], record.__dict__["task"], record.__dict__["correlation_id"])
            for record in caplog.records
            if record.message in ("outside", "its own", "another")
        }
        assert facts == {
            "outside": ("", "", ""),
            "its own": ("k", "threaded", "c1"),
            "another": ("k", "threaded", "c1"),
        }

    def test_a_direct_call_has_neither(self) -> None:
        """And nothing fails."""
        ctx = make_context()
        assert (ctx.parent_id, ctx.root_id) == (None, "")
        assert ctx.logger.extra == {"job": "", "task": "task", "correlation_id": ""}
