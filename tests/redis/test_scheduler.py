"""Schedulers: each due time fires once, on a clock that stands still, and what they cost."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.exceptions import ResponseError
from tests.support import eventually, left_behind, lists, working

from knapsaq import Client, Queue, Registry, Settings, connect
from knapsaq.claims import Claim
from knapsaq.definitions import KEEP, Change, Record
from knapsaq.errors import CronError, InvalidArgumentsError
from knapsaq.outcomes import Succeeded
from knapsaq.registry import AnyTask
from knapsaq.scheduler import Scheduler
from knapsaq.schedules import timetable
from knapsaq.scheduling import ScheduleStore
from knapsaq.testing import ManualClock

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
HOUR = 3600
NOON_MS = int(NOON.timestamp() * 1000)


@pytest.fixture
def clock() -> ManualClock:
    """Noon, in the past of Redis' own clock or not."""
    return ManualClock(NOON)


@pytest.fixture
async def client(settings: Settings, registry: Registry, clock: ManualClock) -> AsyncIterator[Client]:
    """A connection that goes by the clock, with an empty server behind it."""
    async with connect(settings, registry=registry, clock=clock) as client:
        await client.queue().redis.flushall()
        yield client


Define = Callable[..., AnyTask]


@pytest.fixture
def define(registry: Registry) -> Define:
    """Define a scheduled task ``tick``, again and again, as the versions of a program do."""

    def define(**given: Any) -> AnyTask:
        registry.clear()

        @registry.scheduled_task(**given)
        async def tick(text: str = "tick") -> str:
            return text

        return tick

    return define


def hours(*numbers: float) -> list[int]:
    """Return the milliseconds of so many hours after noon."""
    return [NOON_MS + int(number * 3_600_000) for number in numbers]


async def fired(queue: Queue) -> list[int]:
    """Return the due times of the jobs that wait, in their order."""
    return [int(key.rpartition(":")[2]) for key in (await lists(queue))["queued"]]


async def history(queue: Queue, name: str = "tick") -> list[tuple[int, str]]:
    """Return what a schedule has fired, the oldest first: the due time, and the reason where there is no job."""
    return [(one.due_ms, one.reason) for one in reversed(await queue.schedules.history(name))]


async def take(queue: Queue) -> list[Claim]:
    return await queue.claim(100, worker="w")


async def end(queue: Queue, *claims: Claim) -> None:
    for claim in claims:
        assert await queue.settle(claim, Succeeded("done"), worker="w")


class TestFiring:
    async def test_several_schedulers_fire_one_job_for_each_due_time(
        self, queue: Queue, define: Define, clock: ManualClock
    ) -> None:
        """However many workers run, and however often they look."""
        tick = define(cron="0 * * * *", overlap=True)
        schedulers = [Scheduler(queue, [tick]) for _ in range(4)]
        counts = 0
        for _ in range(3 * 60):
            counts += sum(await asyncio.gather(*(scheduler.run_once() for scheduler in schedulers)))
            clock.advance(60)
        await schedulers[0].run_once()
        assert await fired(queue) == hours(1, 2, 3)
        assert counts == 2

    async def test_a_job_is_queued_at_its_time_and_not_before(
        self, queue: Queue, define: Define, clock: ManualClock
    ) -> None:
        """To the millisecond; its key has schedule and due time, its record the moment and the arguments."""
        scheduler = Scheduler(queue, [define(cron="0 * * * *", args=("hi",), timeout=9)])
        await scheduler.run_once()
        clock.advance(HOUR - 0.001)
        assert await scheduler.run_once() == 0
        clock.advance(0.001)
        assert await scheduler.run_once() == 1
        [claim] = await take(queue)
        job = claim.job
        assert (job.key, job.function, job.kwargs) == (f"cron:tick:{NOON_MS + 3_600_000}", "tick", {"text": "hi"})
        assert (job.scheduled, job.timeout, job.ttl) == (NOON_MS // 1000 + HOUR, 9, queue.settings.result_ttl)
        await end(queue, claim)
        assert await left_behind(queue) == []

    async def test_a_due_time_that_has_run_does_not_run_again(
        self, queue: Queue, define: Define, clock: ManualClock
    ) -> None:
        """Not for a worker that is late, nor for one that comes a second time, nor for one that has just started."""
        tick = define(cron="0 * * * *")
        prompt, late = Scheduler(queue, [tick]), Scheduler(queue, [tick])
        await prompt.run_once()
        await late.reconcile()
        clock.advance(HOUR)
        due = await queue.schedules.due()
        assert await prompt.run_once() == 1
        await end(queue, *await take(queue))
        assert await late._fire(due.now_ms, due.held) == 0
        assert await late.run_once() == 0
        assert await Scheduler(queue, [tick]).run_once() == 0
        assert await fired(queue) == []

    async def test_a_clock_that_is_set_back_repeats_nothing(
        self, queue: Queue, define: Define, clock: ManualClock
    ) -> None:
        """The times that come again have fired; after them it goes on, also for a worker that starts meanwhile."""
        scheduler = Scheduler(queue, [define(every=HOUR, overlap=True)])
        await scheduler.run_once()
        for _ in range(3):
            clock.advance(HOUR)
            await scheduler.run_once()
        clock.travel(NOON + timedelta(minutes=30))
        await queue.redis.delete(queue.keys.schedules_due)  # whoever starts reckons anew
        for _ in range(5):
            await Scheduler(queue, [define(every=HOUR, overlap=True)]).run_once()
            clock.advance(HOUR)
        assert await fired(queue) == hours(1, 2, 3, 4)

    async def test_a_clock_that_was_years_ahead_does_not_stop_a_schedule(
        self, queue: Queue, define: Define, clock: ManualClock
    ) -> None:
        """The due time that was reckoned then is reckoned anew by the next worker that starts."""
        tick = define(every=HOUR)
        clock.travel(NOON + timedelta(days=4000))
        await Scheduler(queue, [tick]).run_once()
        clock.advance(HOUR)
        assert await Scheduler(queue, [tick]).run_once() == 1
        await end(queue, *await take(queue))
        clock.travel(NOON)
        scheduler = Scheduler(queue, [tick])
        await scheduler.run_once()
        clock.advance(HOUR)
        assert await scheduler.run_once() == 1
        assert await fired(queue) == hours(1)

    async def test_an_outage_postpones_and_loses_nothing(
        self, queue: Queue, define: Define, clock: ManualClock, settings: Settings
    ) -> None:
        """A due time counts as fired when Redis has its job."""
        tick = define(every=HOUR)
        await Scheduler(queue, [tick]).run_once()
        away = Queue.from_url("unix:///nowhere/broker.sock", registry=queue.registry, settings=settings, clock=clock)
        scheduler = Scheduler(away, [tick])
        clock.advance(HOUR)
        with pytest.raises(Exception, match="broker"):
            await scheduler.run_once()
        scheduler._queue, scheduler._store = queue, queue.schedules
        assert await scheduler.run_once() == 1

    @pytest.mark.parametrize(
        "name",
        ["incomplete", "queued", "schedules:fires", "claims", "aborts", "crashes", "controls", "parked", "orders"],
    )
    async def test_a_spoilt_key_costs_no_due_time(
        self, queue: Queue, define: Define, clock: ManualClock, name: str
    ) -> None:
        """It stays due until somebody has put the key right."""
        scheduler = Scheduler(queue, [define(every=HOUR, priority=3)])
        await scheduler.run_once()
        redis: Any = queue.redis
        clock.advance(HOUR)
        key = f"saq:{queue.name}:{name}"
        before = await redis.dump(key)
        await redis.set(key, "spoilt")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await scheduler.run_once()
        await redis.delete(key)
        if before:
            await redis.restore(key, 0, before)
        assert await scheduler.run_once() == 1
        assert len(await take(queue)) == 1

    async def test_after_redis_has_lost_everything_the_code_is_stored_again(
        self, queue: Queue, define: Define, clock: ManualClock
    ) -> None:
        """By the next look, not by the next deployment."""
        scheduler = Scheduler(queue, [define(every=HOUR)])
        await scheduler.run_once()
        await queue.redis.flushall()
        await scheduler.run_once()
        clock.advance(HOUR)
        assert await scheduler.run_once() == 1

    async def test_a_schedule_that_cannot_be_read_harms_no_other(
        self, queue: Queue, define: Define, clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is told once, and left as it is: another program may understand it."""
        scheduler = Scheduler(queue, [define(every=HOUR, overlap=True)])
        await scheduler.run_once()
        redis: Any = queue.redis
        await redis.hset(queue.keys.schedules, "odd", b"{")
        await redis.zadd(queue.keys.schedules_due, {"odd": NOON_MS, "gone": NOON_MS})
        for _ in range(3):
            clock.advance(HOUR)
            assert await scheduler.run_once() == 1
        assert [record.levelname for record in caplog.records if "schedule odd" in record.message] == ["ERROR"]
        assert await redis.zrange(queue.keys.schedules_due, 0, -1) == [b"odd", b"tick"]
        assert await redis.hget(queue.keys.schedules, "odd") == b"{"

    async def test_a_hook_that_raises_costs_that_fire_alone(
        self, queue: Queue, define: Define, clock: ManualClock
    ) -> None:
        """The reason is among the schedule's fires."""

        async def refuse(job: Any) -> None:
            raise LookupError(f"not {job.function} today")

        queue.register_before_enqueue(refuse)
        scheduler = Scheduler(queue, [define(every=HOUR)])
        await scheduler.run_once()
        clock.advance(HOUR)
        assert await scheduler.run_once() == 0
        queue.unregister_before_enqueue(refuse)
        clock.advance(HOUR)
        assert await scheduler.run_once() == 1
        assert await history(queue) == [(hours(1)[0], "refused: not tick today"), (hours(2)[0], "")]

    async def test_too_few_arguments_stop_the_start(self, queue: Queue, registry: Registry) -> None:
        """A worker whose schedule cannot work does not begin."""

        @registry.scheduled_task(every=HOUR)
        async def report(day: int) -> None: ...

        place = rf"schedule 'report', defined at .*{Path(__file__).name}:\d+: task 'report', argument 'day'"
        with pytest.raises(InvalidArgumentsError, match=place):
            Scheduler(queue, [report])

    async def test_more_than_a_call_carries_all_fire(
        self, queue: Queue, registry: Registry, clock: ManualClock
    ) -> None:
        """In batches, so that no call keeps the server busy for long."""

        async def tick(number: int) -> None: ...

        task: Any = registry.task(tick)
        for number in range(1100):
            task = registry.scheduled_task(every=HOUR, schedule=f"tick-{number}", args=(number,))(task)
        scheduler = Scheduler(queue, [task])
        await scheduler.run_once()
        clock.advance(HOUR)
        assert await scheduler.run_once() == 1100
        assert len(await fired(queue)) == 1100


class TestOverlap:
    async def test_a_due_time_is_skipped_while_the_run_before_has_not_ended(
        self, queue: Queue, define: Define, clock: ManualClock
    ) -> None:
        """Waiting or running; the skipped ones are recorded, however many, and it goes on afterwards."""
        scheduler = Scheduler(queue, [define(every=60)])
        await scheduler.run_once()
        clock.advance(60)
        assert await scheduler.run_once() == 1
        clock.advance(60)
        assert await scheduler.run_once() == 0
        claims = await take(queue)
        for _ in range(20):
            clock.advance(60)
            assert await scheduler.run_once() == 0
        await end(queue, *claims)
        clock.advance(60)
        assert await scheduler.run_once() == 1
        found = await history(queue)
        assert len(found) == 10
        assert {reason for _, reason in found[:-1]} == {"skipped: the previous run has not ended"}
        assert found[-1] == (NOON_MS + 23 * 60_000, "")

    async def test_with_overlap_it_fires_all_the_same(self, queue: Queue, define: Define, clock: ManualClock) -> None:
        """Each due time has its job."""
        scheduler = Scheduler(queue, [define(every=60, overlap=True)])
        await scheduler.run_once()
        for _ in range(3):
            clock.advance(60)
            assert await scheduler.run_once() == 1
        assert len(await fired(queue)) == 3

    async def test_a_run_by_hand_is_no_previous_run(
        self, queue: Queue, define: Define, registry: Registry, clock: ManualClock
    ) -> None:
        """Somebody who tries a task does not cost a due time."""
        scheduler = Scheduler(queue, [define(every=60)])
        await scheduler.run_once()
        await registry.schedules.run("tick")
        clock.advance(60)
        assert await scheduler.run_once() == 1


class TestMisfire:
    async def test_only_who_fires_tells_what_was_missed(
        self, queue: Queue, define: Define, clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A fleet that starts again does not tell it once a worker."""
        tick = define(every=HOUR, misfire="skip")
        schedulers = [Scheduler(queue, [tick]) for _ in range(3)]
        for scheduler in schedulers:
            await scheduler.run_once()
        clock.advance(1.5 * HOUR)
        due = await queue.schedules.due()
        for scheduler in schedulers:
            await scheduler._fire(due.now_ms, due.held)
        assert caplog.text.count("give no job: no worker ran in time") == 1

    @pytest.mark.parametrize(
        ("given", "away", "expected"),
        [
            ({"misfire": "skip"}, 5.5, []),
            ({"misfire": "skip"}, 5 + 1 / 60, [5]),
            ({"misfire": "once"}, 5.5, [5]),
            ({"misfire": "once", "misfire_window": timedelta(minutes=29)}, 5.5, []),
            ({"misfire": "once", "misfire_window": 0}, 5 + 1 / 60, [5]),
            ({"misfire": "all", "overlap": True}, 5.5, [5]),
            ({"misfire": "all", "overlap": True, "misfire_window": timedelta(hours=3)}, 5.5, [3, 4, 5]),
            ({"misfire": "all", "overlap": True, "misfire_window": timedelta(days=9)}, 5.5, [1, 2, 3, 4, 5]),
        ],
    )
    async def test_what_passed_while_no_worker_ran(  # noqa: PLR0917 - fixtures and parameters
        self, queue: Queue, define: Define, clock: ManualClock, given: dict[str, Any], away: float, expected: list[int]
    ) -> None:
        """Dropped, made up for by the newest, or by each, within the window; then it goes on as ever."""
        await Scheduler(queue, [define(cron="0 * * * *", **given)]).run_once()
        clock.advance(away * HOUR)
        scheduler = Scheduler(queue, [define(cron="0 * * * *", **given)])
        assert await scheduler.run_once() == len(expected)
        assert await fired(queue) == hours(*expected)
        clock.travel(NOON + timedelta(hours=6))
        await end(queue, *await take(queue))
        assert await scheduler.run_once() == 1
        found = await history(queue)
        missed = [] if expected[:1] == [1] else [(found[0][0], "missed: no worker ran in time")]
        assert found == [*missed, *[(moment, "") for moment in hours(*expected, 6)]]

    async def test_a_thousand_at_once_are_the_most_and_the_rest_is_told(
        self, queue: Queue, define: Define, clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whoever was away for long does not drown the queue."""
        given = {"every": 1, "misfire": "all", "overlap": True}
        scheduler = Scheduler(queue, [define(**given)])
        await scheduler.run_once()
        clock.advance(1500)
        assert await scheduler.run_once() == 1000
        assert await fired(queue) == list(range(NOON_MS + 1000, NOON_MS + 1_001_000, 1000))
        assert [record.message for record in caplog.records if "too many at once" in record.message]


class TestJitter:
    async def test_each_job_is_delayed_by_a_part_that_next_shows(
        self, queue: Queue, define: Define, registry: Registry, clock: ManualClock
    ) -> None:
        """It waits as a delayed job, and runs at the very moment."""
        scheduler = Scheduler(queue, [define(every=HOUR, jitter=timedelta(minutes=10))])
        await scheduler.run_once()
        [moment] = await registry.schedules.next("tick", 1)
        due = NOON + timedelta(hours=1)
        assert due < moment <= due + timedelta(minutes=10)
        clock.travel(due)
        assert await scheduler.run_once() == 1
        clock.travel(moment - timedelta(milliseconds=1))
        assert await take(queue) == []
        clock.travel(moment)
        [claim] = await take(queue)
        assert claim.job.scheduled == moment.timestamp()


class TestClockChanges:
    @pytest.mark.parametrize(
        ("start", "expected"),
        [
            ("2026-03-28T12:00", ["2026-03-29T01:00", "2026-03-30T00:30"]),
            ("2026-10-24T12:00", ["2026-10-25T00:30", "2026-10-26T01:30"]),
        ],
    )
    async def test_a_local_time_fires_once_in_each_night(
        self, queue: Queue, define: Define, clock: ManualClock, start: str, expected: list[str]
    ) -> None:
        """Where it is missing at the gap's end, where it repeats in the first pass; a minute at a time."""
        clock.travel(datetime.fromisoformat(f"{start}+00:00"))
        scheduler = Scheduler(queue, [define(cron="30 2 * * *", timezone="Europe/Berlin", overlap=True)])
        for _ in range(48 * 12):
            await scheduler.run_once()
            clock.advance(300)
        assert [f"{datetime.fromtimestamp(due / 1000, UTC):%Y-%m-%dT%H:%M}" for due in await fired(queue)] == expected


async def records(queue: Queue) -> dict[str, Record]:
    _, held = await queue.schedules.read()
    return {one.name: Record.decode(one.raw) for one in held}


class TestDeployments:
    async def test_a_changed_schedule_counts_at_once(self, queue: Queue, define: Define, clock: ManualClock) -> None:
        """The old time does not fire any more, also for workers of the old version that still run."""
        old = Scheduler(queue, [define(cron="0 13 * * *")])
        await old.run_once()
        await Scheduler(queue, [define(cron="30 13 * * *")]).run_once()
        clock.advance(HOUR)
        assert await old.run_once() == 0
        clock.advance(HOUR / 2)
        assert await old.run_once() == 1

    async def test_a_changed_default_zone_counts_too(
        self, queue: Queue, define: Define, client: Client, settings: Settings, clock: ManualClock
    ) -> None:
        """It is part of what the code says, though no task names it."""
        await Scheduler(queue, [define(cron="0 13 * * *")]).run_once()
        moved = settings.with_values(timezone="Asia/Tokyo")
        tokyo = Queue(queue.redis, settings=moved, clock=clock)
        await Scheduler(tokyo, [define(cron="0 13 * * *")]).run_once()
        _, [held] = await queue.schedules.read()
        assert held.due_ms == hours(16)[0]

    async def test_what_is_the_same_keeps_its_due_time(self, queue: Queue, define: Define, clock: ManualClock) -> None:
        """Also with other arguments: what was missed during the deployment is made up for, with the new ones."""
        await Scheduler(queue, [define(cron="0 * * * *")]).run_once()
        clock.advance(1.25 * HOUR)
        scheduler = Scheduler(queue, [define(cron="0 * * * *", kwargs={"text": "new"}, retries=2)])
        assert await scheduler.run_once() == 1
        [claim] = await take(queue)
        assert (claim.job.kwargs, claim.job.retries) == ({"text": "new"}, 3)

    async def test_a_removed_schedule_fires_no_more(
        self, queue: Queue, define: Define, registry: Registry, clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """With what an operator had changed, which is told; nothing of it is left."""
        await Scheduler(queue, [define(every=HOUR)]).run_once()
        await registry.schedules.set("tick", jitter=5)
        registry.clear()
        await Scheduler(queue, []).run_once()
        [told] = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert "jitter" in told
        clock.advance(HOUR)
        assert await Scheduler(queue, []).run_once() == 0
        redis: Any = queue.redis
        assert await redis.exists(queue.keys.schedules, queue.keys.schedules_due, queue.keys.schedules_fires) == 0

    async def test_a_task_that_moves_to_another_queue_leaves_the_old_one(
        self, client: Client, define: Define, clock: ManualClock
    ) -> None:
        """As soon as a worker serves both."""
        await Scheduler(client.queue(), [define(every=HOUR)]).run_once()
        moved = define(every=HOUR, queue="mail")
        for queue in client.queues.values():
            await Scheduler(queue, [moved]).run_once()
        clock.advance(HOUR)
        counts = [await Scheduler(queue, [moved]).run_once() for queue in client.queues.values()]
        assert counts == [0, 1]

    @pytest.mark.parametrize("order", [("default", "mail"), ("mail", "default"), ("mail",), ("default",)])
    async def test_what_was_changed_by_hand_goes_with_a_task_to_its_new_queue(
        self, client: Client, define: Define, registry: Registry, clock: ManualClock, order: tuple[str, ...]
    ) -> None:
        """Whichever queue's worker starts first: it stays paused, and is in one queue alone."""
        await Scheduler(client.queue(), [define(every=HOUR)]).run_once()
        await registry.schedules.set("tick", jitter=5)
        await registry.schedules.pause("tick")
        moved = define(every=HOUR, queue="mail")
        assert (await registry.schedules.get("tick")).differs
        for name in order:
            await Scheduler(client.queue(name), [moved]).run_once()
        [entry] = await registry.schedules.list()
        assert (entry.queue, entry.enabled, entry.differs) == ("mail", False, False)
        assert set(entry.edited) == {"enabled", "jitter"}
        clock.advance(HOUR)
        assert [await Scheduler(queue, [moved]).run_once() for queue in client.queues.values()] == [0, 0]

    async def test_due_times_missed_while_a_task_changes_its_queue_are_made_up_for(
        self, client: Client, define: Define, clock: ManualClock
    ) -> None:
        """The due time goes with the schedule, and one that has fired does not fire again."""
        scheduler = Scheduler(client.queue(), [define(every=HOUR)])
        await scheduler.run_once()
        clock.advance(HOUR)
        assert await scheduler.run_once() == 1
        clock.advance(1.5 * HOUR)
        mail = client.queue("mail")
        moved = define(every=HOUR, queue="mail")
        assert await Scheduler(mail, [moved]).run_once() == 1
        assert await fired(mail) == hours(2)
        await mail.redis.zadd(mail.keys.schedules_due, {"tick": hours(1)[0]})
        assert await Scheduler(mail, [moved]).run_once() == 0

    async def test_the_schedule_of_another_task_in_another_queue_is_left_alone(
        self, client: Client, define: Define, registry: Registry
    ) -> None:
        """Two services may give their schedules the same name."""
        _ = define(every=HOUR)
        mail, tick = client.queue("mail"), define(every=HOUR)
        await Scheduler(client.queue(), [tick]).run_once()
        _, [held] = await client.queue().schedules.read()
        other = msgspec.structs.replace(Record.decode(held.raw), task="other", module="other_service.tasks")
        await client.queue().schedules.write([Change("tick", held.version, other, KEEP)])
        await Scheduler(mail, [define(every=HOUR, queue="mail")]).run_once()
        assert [(one.queue, one.task) for one in await registry.schedules.list()] == [
            ("default", "other"),
            ("mail", "tick"),
        ]

    async def test_what_an_operator_changed_survives(
        self, queue: Queue, define: Define, registry: Registry, clock: ManualClock
    ) -> None:
        """The new code lies below it, and counts where nothing was changed, and after a reset."""
        await Scheduler(queue, [define(cron="0 * * * *", jitter=1)]).run_once()
        await registry.schedules.set("tick", cron="30 * * * *")
        await Scheduler(queue, [define(cron="15 * * * *", jitter=2)]).run_once()
        entry = await registry.schedules.get("tick")
        assert (entry.cron, entry.jitter, entry.edited) == ("30 * * * *", timedelta(seconds=2), ("cron",))
        assert entry.next_due == NOON + timedelta(minutes=30)
        entry = await registry.schedules.reset("tick")
        assert (entry.cron, entry.edited, entry.next_due) == ("15 * * * *", (), NOON + timedelta(minutes=15))

    async def test_arguments_of_an_operator_that_fit_no_more_are_told(
        self, queue: Queue, define: Define, registry: Registry, caplog: pytest.LogCaptureFixture
    ) -> None:
        """When the new version starts, and not when the job fails in the night."""
        await Scheduler(queue, [define(every=HOUR)]).run_once()
        await registry.schedules.set("tick", kwargs={"text": "hi"})
        registry.clear()

        @registry.scheduled_task(every=HOUR)
        async def tick(number: int = 1) -> None: ...

        await Scheduler(queue, [tick]).run_once()
        assert "schedule tick of queue default: what was changed by hand does not fit: task 'tick'" in caplog.text

    async def test_a_paused_one_stays_paused(
        self, queue: Queue, define: Define, registry: Registry, clock: ManualClock
    ) -> None:
        """Whatever is deployed meanwhile."""
        await Scheduler(queue, [define(every=HOUR)]).run_once()
        await registry.schedules.pause("tick")
        scheduler = Scheduler(queue, [define(every=60)])
        await scheduler.run_once()
        clock.advance(HOUR)
        assert await scheduler.run_once() == 0
        assert (await registry.schedules.resume("tick")).next_due == NOON + timedelta(minutes=61)

    async def test_one_that_was_added_at_run_time_outlives_all_deployments_until_it_is_in_the_code(
        self, queue: Queue, define: Define, registry: Registry
    ) -> None:
        """Then the code's counts."""
        tick = define(every=HOUR)
        await registry.schedules.add("extra", tick, every=60)
        await Scheduler(queue, [tick]).run_once()
        assert (await registry.schedules.get("extra")).added
        await Scheduler(queue, [define(every=90, schedule="extra")]).run_once()
        entry = await registry.schedules.get("extra")
        assert (entry.every, entry.added, entry.edited) == (timedelta(seconds=90), False, ())

    @pytest.mark.parametrize(
        ("module", "goes"),
        [
            (__name__, True),
            ("knapsaq.no_such_module", True),
            ("knapsaq.litestar.gone.tasks", True),
            ("knapsaq.cli.__main__", False),
            ("another_service.tasks", False),
            ("", False),
            (f"file:{__file__}", True),
            ("file:/srv/another/worker.py", False),
        ],
    )
    async def test_services_that_share_a_queue_leave_each_others_schedules_alone(
        self, queue: Queue, define: Define, module: str, goes: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A schedule is this program's if its module is imported here, or has gone from a package that is here."""
        if module == __name__:
            monkeypatch.setitem(sys.modules, __name__, types.ModuleType(__name__))
        monkeypatch.delitem(sys.modules, "knapsaq.cli.__main__", raising=False)
        monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)
        tick = define(every=HOUR)
        await Scheduler(queue, [tick]).run_once()
        _, [held] = await queue.schedules.read()
        record = Record(task="other", module=module, code=Record.decode(held.raw).code)
        await queue.schedules.write([Change("other", "", record, KEEP)])
        await Scheduler(queue, [tick]).run_once()
        assert set(await records(queue)) == ({"tick"} if goes else {"tick", "other"})

    async def test_many_workers_that_start_at_once_agree(self, queue: Queue, define: Define) -> None:
        """Each stores what is missing; none undoes another."""
        tick = define(every=HOUR)
        await asyncio.gather(*(Scheduler(queue, [tick]).reconcile() for _ in range(8)))
        assert set(await records(queue)) == {"tick"}
        _, [held] = await queue.schedules.read()
        assert held.due_ms == hours(1)[0]


class TestUnusualMoments:
    async def test_a_worker_of_the_last_version_does_not_bring_removed_schedules_back(
        self, queue: Queue, define: Define, registry: Registry, clock: ManualClock
    ) -> None:
        """That there are none any more is no loss of data, whichever worker looks."""
        old = Scheduler(queue, [define(every=HOUR)])
        await old.run_once()
        registry.clear()
        await Scheduler(queue, []).run_once()
        clock.advance(2 * HOUR)
        assert await old.run_once() == 0
        assert await queue.redis.exists(queue.keys.schedules) == 0

    async def test_after_a_loss_of_data_each_service_stores_its_own_again(
        self, queue: Queue, registry: Registry, clock: ManualClock
    ) -> None:
        """Also the one that looks when the other has been faster."""
        schedulers = []
        for name in ("first_service", "second_service"):

            async def run() -> None: ...

            run.__module__ = f"a_package_elsewhere.{name}"
            task = registry.scheduled_task(every=HOUR, name=name)(run)
            schedulers.append(Scheduler(queue, [task]))
        for scheduler in schedulers:
            await scheduler.run_once()
        await queue.redis.flushall()
        for scheduler in schedulers:
            await scheduler.run_once()
        assert set(await queue.redis.hkeys(queue.keys.schedules)) == {b"first_service", b"second_service"}

    async def test_an_edit_in_a_zone_that_a_worker_does_not_know_survives_it(
        self, queue: Queue, define: Define, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As where one machine's zones are older than another's."""
        tick = define(cron="0 * * * *")
        await Scheduler(queue, [tick]).run_once()
        await registry.schedules.set("tick", timezone="Europe/Kyiv", enabled=False)
        before = await queue.redis.hget(queue.keys.schedules, "tick")

        def unknown(cron: str | None, every: float | None, zone: str) -> Any:
            if zone == "Europe/Kyiv":
                raise CronError("timezone", zone, "a zone that this machine knows")
            return timetable(cron, every, zone)

        monkeypatch.setattr("knapsaq.definitions.timetable", unknown)
        await Scheduler(queue, [tick]).run_once()
        assert await queue.redis.hget(queue.keys.schedules, "tick") == before

    async def test_a_clock_that_was_ahead_for_a_moment_silences_nothing(
        self, queue: Queue, define: Define, clock: ManualClock
    ) -> None:
        """What did not fire in the hours that were skipped fires when they come."""
        tick = define(cron="0 * * * *", overlap=True, misfire="skip")
        await Scheduler(queue, [tick]).run_once()
        clock.advance(5 * HOUR)
        await Scheduler(queue, [tick]).run_once()
        clock.advance(-5 * HOUR)
        late = Scheduler(queue, [tick])
        for _ in range(6):
            await late.run_once()
            clock.advance(HOUR)
        assert sorted(await fired(queue)) == hours(1, 2, 3, 4, 5)

    async def test_a_due_time_that_has_come_is_not_lost_to_a_change_of_the_moments(
        self, queue: Queue, define: Define, registry: Registry, clock: ManualClock
    ) -> None:
        """Neither to an operator's nor to the next version's."""
        await Scheduler(queue, [define(cron="0 13 * * *")]).run_once()
        clock.advance(HOUR)
        await registry.schedules.set("tick", cron="0 13,14 * * *")
        await Scheduler(queue, [define(cron="0 13 * * 0-6", overlap=True)]).run_once()
        assert await fired(queue) == hours(1)

    async def test_a_crowd_of_unreadable_records_starves_no_other(
        self, queue: Queue, define: Define, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They are passed over from the second look on."""
        monkeypatch.setattr("knapsaq.scheduling.DUE_A_CALL", 3)
        scheduler = Scheduler(queue, [define(every=HOUR)])
        await scheduler.run_once()
        for number in range(5):
            await queue.redis.hset(queue.keys.schedules, f"odd {number}", "?")
            await queue.redis.zadd(queue.keys.schedules_due, {f"odd {number}": 1})
        clock.advance(HOUR)
        for _ in range(3):
            await scheduler.run_once()
        assert await fired(queue) == hours(1)

    async def test_a_record_that_is_too_large_costs_its_own_schedule_alone(
        self, queue: Queue, registry: Registry, clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is told, and the others fire."""

        @registry.scheduled_task(every=HOUR, kwargs={"text": "x" * queue.settings.max_payload_bytes})
        async def huge(text: str) -> None: ...

        @registry.scheduled_task(every=HOUR)
        async def small() -> None: ...

        scheduler = Scheduler(queue, registry.get_all_tasks())
        await scheduler.run_once()
        clock.advance(HOUR)
        assert await scheduler.run_once() == 1
        assert "huge" in caplog.text


class TestWorkers:
    async def test_a_worker_fires_when_the_clock_is_moved(
        self, queue: Queue, define: Define, clock: ManualClock
    ) -> None:
        """Without anybody stepping it."""
        define(every=HOUR)
        async with working(queue):
            await eventually(lambda: records(queue))
            for number in (1, 2):
                clock.advance(HOUR)

                async def ran(number: int = number) -> bool:
                    return len([job async for job in queue.iter_jobs() if job.ended]) == number

                await eventually(ran)

    async def test_a_worker_hears_of_a_new_schedule_at_once(
        self, queue: Queue, define: Define, registry: Registry, clock: ManualClock
    ) -> None:
        """It slept, as there was none."""
        tick = define(every=10**6)
        async with working(queue) as worker:
            await eventually(lambda: worker._scheduler._earliest_ms)
            await registry.schedules.add("extra", tick, every=60)
            clock.advance(60)

            async def ran() -> bool:
                return any([job.ended async for job in queue.iter_jobs()])

            await eventually(ran)

    async def test_what_was_said_while_the_line_was_cut_is_looked_for(
        self, queue: Queue, define: Define, registry: Registry, clock: ManualClock
    ) -> None:
        """Not a minute later: as soon as the line is up again."""
        tick = define(every=10**6)
        redis: Any = queue.redis
        async with working(queue) as worker:
            scheduler = worker._scheduler
            await eventually(lambda: scheduler._earliest_ms and not scheduler._look)
            worker._wakeup._on_schedules = lambda message: Scheduler.hear(scheduler, message) if not message else None
            await registry.schedules.add("extra", tick, every=60)
            await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await eventually(lambda: scheduler._earliest_ms == NOON_MS + 60_000)


class TestCost:
    @pytest.fixture
    async def many(self, settings: Settings, registry: Registry) -> AsyncIterator[Queue]:
        """A queue by Redis' clock with ten thousand schedules, none of which is due soon."""

        async def tick(number: int) -> None: ...

        task: Any = registry.task(tick)
        yearly = datetime.now(UTC) + timedelta(days=180)
        for number in range(10_000):
            cron = f"{number % 60} {number // 60 % 24} {yearly.day % 28 + 1} {yearly.month} *"
            task = registry.scheduled_task(cron=cron, schedule=f"tick-{number}", args=(number,))(task)
        async with connect(settings, registry=registry) as client:
            await client.queue().redis.flushall()
            yield client.queue()
            await client.queue().redis.flushall()

    async def test_ten_thousand_schedules_cost_an_idle_worker_nothing(self, many: Queue) -> None:
        """Between fires the lease alone is renewed: less than a command a second, as the server counts."""
        redis: Any = many.redis

        async def stored() -> bool:
            return bool(await redis.hlen(many.keys.schedules) == 10_000)

        async with working(many, timers={"sweep": 60, "abort": 60, "worker_info": 60, "schedule": 60}):
            await eventually(stored, within=60)
            await asyncio.sleep(0.5)  # what follows on a start
            before = await redis.info("commandstats")
            await asyncio.sleep(4)
            after = await redis.info("commandstats")
        in_lease = {f"cmdstat_{name}" for name in ("zadd", "set", "zrangebyscore", "exists", "time")}
        asked = {
            name: stats["calls"] - before.get(name, {"calls": 0})["calls"]
            for name, stats in after.items()
            if name not in in_lease | {"cmdstat_info"}
        }
        assert sum(asked.values()) <= 4, asked

    async def test_a_fleet_makes_hardly_more_calls_for_a_fire_than_one_worker(
        self, settings: Settings, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who fired last goes at once, and the others hear of it in time to do nothing."""
        looks: list[int] = []
        shots: list[int] = []
        due, fire = ScheduleStore.due, ScheduleStore.fire

        async def counted_due(self: ScheduleStore, passed_over: int) -> Any:
            found = await due(self, passed_over)
            looks.append(found.now_ms)
            return found

        async def counted_fire(self: ScheduleStore, *given: Any) -> Any:
            shot = await fire(self, *given)
            shots.extend([shot.now_ms] * any(shot.answers))
            return shot

        monkeypatch.setattr(ScheduleStore, "due", counted_due)
        monkeypatch.setattr(ScheduleStore, "fire", counted_fire)

        @registry.scheduled_task(every=1, overlap=True)
        async def tick() -> None: ...

        async with connect(settings, registry=registry) as client, AsyncExitStack() as stack:
            await client.queue().redis.flushall()
            for _ in range(5):
                await stack.enter_async_context(working(client.queue()))
            await eventually(lambda: len(shots) >= 2)
            looked, shot = len(looks), len(shots)
            await eventually(lambda: len(shots) >= shot + 4, within=30)
            made, fired = len(looks) - looked, len(shots) - shot
        # All five look where everybody's loop is held up; here they share one.
        assert made <= 4 * fired
        assert len(shots) == len({now // 1000 for now in shots})
