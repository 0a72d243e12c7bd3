"""Schedules as operators see and change them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from knapsaq import Client, Concurrency, Queue, Registry, Schedules, Settings, connect
from knapsaq.definitions import KEEP, Change, Record
from knapsaq.errors import (
    InvalidArgumentsError,
    KnapsaqError,
    NotConnectedError,
    OptionError,
    PayloadTooLargeError,
    ScheduleError,
    UnknownQueueError,
    UnknownScheduleError,
    UnknownTaskError,
)
from knapsaq.outcomes import Failed, Succeeded
from knapsaq.registry import AnyTask
from knapsaq.scheduler import Scheduler
from knapsaq.testing import ManualClock

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.fixture
def clock() -> ManualClock:
    """Noon."""
    return ManualClock(NOON)


@pytest.fixture
async def client(settings: Settings, registry: Registry, clock: ManualClock) -> AsyncIterator[Client]:
    """A connection that goes by the clock, with an empty server behind it."""
    async with connect(settings, registry=registry, clock=clock) as client:
        await client.queue().redis.flushall()
        yield client


@pytest.fixture
def report(registry: Registry) -> AnyTask:
    """A task that runs each hour."""

    @registry.scheduled_task(cron="0 * * * *", kwargs={"day": datetime(2026, 1, 1, tzinfo=UTC)}, timeout=9)
    async def report(day: datetime, copies: int = 1) -> str:
        return f"{day} {copies}"

    return report


@pytest.fixture
async def schedules(queue: Queue, report: AnyTask, registry: Registry) -> Schedules:
    """What the first worker has stored."""
    await Scheduler(queue, registry.get_all_tasks()).run_once()
    return registry.schedules


async def raw(queue: Queue) -> Any:
    """Return everything that is stored of schedules."""
    redis: Any = queue.redis
    due = await redis.zrange(queue.keys.schedules_due, 0, -1, withscores=True)
    return await redis.hgetall(queue.keys.schedules), due, await redis.hgetall(queue.keys.schedules_fires)


class TestLooking:
    async def test_an_entry_says_all_that_counts(self, schedules: Schedules) -> None:
        """Expression, words, zone, arguments as they are stored, policies, and the next due time."""
        [entry] = await schedules.list()
        assert entry == await schedules.get("report")
        assert (entry.name, entry.task, entry.queue) == ("report", "report", "default")
        assert (entry.cron, entry.every, entry.timezone) == ("0 * * * *", None, "UTC")
        assert entry.words == "at minute 0 of each hour (UTC)"
        assert entry.kwargs == {"day": "2026-01-01T00:00:00Z"}
        assert (entry.jitter, entry.misfire, entry.misfire_window) == (timedelta(0), "once", timedelta(hours=1))
        assert (entry.overlap, entry.enabled, entry.edited, entry.added) == (False, True, (), False)
        assert entry.next_due == NOON + timedelta(hours=1)
        assert not entry.differs

    async def test_schedules_of_all_queues_are_listed_by_name(
        self, client: Client, registry: Registry, report: AnyTask
    ) -> None:
        """Each is found in the queue that holds it."""

        @registry.scheduled_task(every=60, queue="mail", schedule="a.mail")
        async def mail() -> None: ...

        for queue in client.queues.values():
            await Scheduler(queue, registry.get_all_tasks()).run_once()
        assert [(one.name, one.queue) for one in await registry.schedules.list()] == [
            ("a.mail", "mail"),
            ("report", "default"),
        ]
        assert (await registry.schedules.pause("a.mail")).queue == "mail"

    async def test_it_tells_where_this_program_s_code_is_another_one(
        self, schedules: Schedules, registry: Registry
    ) -> None:
        """As on the machine of somebody who has not deployed yet."""
        registry.clear()
        assert not (await schedules.get("report")).differs

        @registry.scheduled_task(cron="30 * * * *", schedule="report")
        async def report() -> None: ...

        assert (await schedules.get("report")).differs

    async def test_the_next_fires_are_shown(self, schedules: Schedules) -> None:
        """In UTC, from now on, also of a paused one; not more than a thousand."""
        expected = [NOON + timedelta(hours=number) for number in (1, 2, 3)]
        assert await schedules.next("report", 3) == expected
        await schedules.pause("report")
        assert await schedules.next("report", n=3) == expected
        for n in (0, 1001, True, 2.0, "3"):
            with pytest.raises(OptionError, match="1 to 1,000"):
                await schedules.next("report", n)  # type: ignore[arg-type]

    async def test_the_last_fires_have_the_outcomes_of_their_jobs(
        self, schedules: Schedules, queue: Queue, report: AnyTask, clock: ManualClock
    ) -> None:
        """Done, failed, still waiting, expired, or none at all; the newest first."""
        scheduler = Scheduler(queue, [report])
        assert await schedules.fires("report") == []
        await scheduler.run_once()
        for outcome in (Succeeded("done"), Failed("no luck"), Succeeded("gone"), None):
            clock.advance(3600)
            assert await scheduler.run_once() == 1
            if outcome is not None:
                [claim] = await queue.claim(1, worker="w")
                await queue.settle(claim, outcome, worker="w")
                if outcome == Succeeded("gone"):
                    await queue.redis.delete(claim.job_id)
        clock.advance(3600)
        assert await scheduler.run_once() == 0
        skipped, waiting, gone, failed, done = await schedules.fires("report")
        assert (done.due, done.key) == (NOON + timedelta(hours=1), f"cron:report:{clock() - 4 * 3_600_000}")
        assert [one.status for one in (done, failed, gone, waiting, skipped)] == [
            "complete",
            "failed",
            None,
            "queued",
            None,
        ]
        assert done.completed is not None
        assert (failed.error, done.reason) == ("no luck", None)
        assert (skipped.key, skipped.reason) == (None, "skipped: the previous run has not ended")

    async def test_one_that_cannot_be_read_is_told_and_the_others_are_shown(
        self, schedules: Schedules, queue: Queue, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its name alone is no use to anybody."""
        redis: Any = queue.redis
        await redis.hset(queue.keys.schedules, "odd", b"{")
        assert [entry.name for entry in await schedules.list()] == ["report"]
        assert "schedule odd of queue default cannot be read" in caplog.text
        with pytest.raises(ScheduleError, match="cannot be read here"):
            await schedules.pause("odd")


class TestPausing:
    async def test_a_paused_schedule_does_not_fire_and_makes_up_for_nothing(
        self, schedules: Schedules, queue: Queue, report: AnyTask, clock: ManualClock
    ) -> None:
        """Resumed, it goes on with its next due time."""
        scheduler = Scheduler(queue, [report])
        entry = await schedules.pause("report")
        assert (entry.enabled, entry.edited, entry.next_due) == (False, ("enabled",), None)
        assert await schedules.pause("report") == entry
        clock.advance(2.5 * 3600)
        assert await scheduler.run_once() == 0
        entry = await schedules.resume("report")
        assert (entry.enabled, entry.edited, entry.next_due) == (True, (), NOON + timedelta(hours=3))
        assert await schedules.resume("report") == entry
        clock.advance(0.5 * 3600)
        assert await scheduler.run_once() == 1

    async def test_one_that_the_code_does_not_enable_waits_for_somebody_who_does(
        self, queue: Queue, registry: Registry
    ) -> None:
        """It is listed, and fires once it was resumed."""

        @registry.scheduled_task(every=60, enabled=False)
        async def ping() -> None: ...

        await Scheduler(queue, [ping]).run_once()
        assert (await registry.schedules.get("ping")).next_due is None
        entry = await registry.schedules.resume("ping")
        assert (entry.next_due, entry.edited) == (NOON + timedelta(minutes=1), ("enabled",))

    async def test_one_whose_edit_no_longer_goes_with_the_code_can_be_paused(
        self, queue: Queue, registry: Registry
    ) -> None:
        """What an operator set together stays together, whatever the next version says."""

        async def many() -> None: ...

        registry.scheduled_task(every=60, overlap=True)(many)
        await Scheduler(queue, registry.get_all_tasks()).run_once()
        await registry.schedules.set("many", misfire="all")
        registry.clear()
        registry.scheduled_task(every=60)(many)
        await Scheduler(queue, registry.get_all_tasks()).run_once()
        entry = await registry.schedules.pause("many")
        assert not entry.enabled

    async def test_moments_end_with_the_calendar(self, queue: Queue, registry: Registry) -> None:
        """Those that are left are given, and no error."""

        @registry.scheduled_task(every=315_360_000)
        async def rare() -> None: ...

        await Scheduler(queue, registry.get_all_tasks()).run_once()
        moments = await registry.schedules.next("rare", 1000)
        assert 700 < len(moments) < 1000
        assert moments[-1].year > 9980


class TestChanging:
    async def test_a_new_time_counts_at_once(
        self, schedules: Schedules, queue: Queue, report: AnyTask, clock: ManualClock
    ) -> None:
        """An interval instead of an expression, and back to the code's."""
        scheduler = Scheduler(queue, [report])
        entry = await schedules.set("report", every=timedelta(minutes=5))
        assert (entry.cron, entry.every, entry.edited) == (None, timedelta(minutes=5), ("cron", "every"))
        assert entry.next_due == NOON + timedelta(minutes=5)
        clock.advance(300)
        assert await scheduler.run_once() == 1
        entry = await schedules.set("report", cron="0 18 * * *", timezone="Europe/Berlin")
        assert (entry.next_due, entry.every) == (NOON + timedelta(hours=5), None)
        entry = await schedules.reset("report")
        assert (entry.cron, entry.timezone, entry.next_due) == ("0 * * * *", "UTC", NOON + timedelta(hours=1))

    async def test_other_arguments_are_those_of_the_next_job(
        self, schedules: Schedules, queue: Queue, report: AnyTask, clock: ManualClock
    ) -> None:
        """They replace all; the due time stays, also one that has come already."""
        clock.advance(3600)
        entry = await schedules.set("report", args=[datetime(2027, 1, 1, tzinfo=UTC)], kwargs={"copies": 3})
        assert entry.kwargs == {"day": "2027-01-01T00:00:00Z", "copies": 3}
        assert entry.next_due == clock.now
        assert await Scheduler(queue, [report]).run_once() == 1
        [claim] = await queue.claim(1, worker="w")
        assert claim.job.kwargs == entry.kwargs

    async def test_other_arguments_have_other_keys(self, queue: Queue, registry: Registry, clock: ManualClock) -> None:
        """Limits and tenant go by the arguments that count, also of a run by hand, and are no edit of their own."""

        @registry.scheduled_task(every=60, kwargs={"shop": 1}, fair_key="shop", concurrency=Concurrency(1, key="shop"))
        async def restock(shop: int) -> None: ...

        scheduler, schedules = Scheduler(queue, [restock]), registry.schedules
        await scheduler.run_once()
        entry = await schedules.set("restock", kwargs={"shop": 2})
        assert (entry.edited, entry.differs) == (("kwargs",), False)
        clock.advance(60)
        assert await scheduler.run_once() == 1
        [claim] = await queue.claim(1, worker="w")
        assert claim.job.control == {"fair": "2", "slots": [["restock/shop=2", 1]]}
        assert (await schedules.run("restock", shop=3)).control == {"fair": "3", "slots": [["restock/shop=3", 1]]}
        newer = Registry()
        newer.scheduled_task(every=60, kwargs={"shop": 1}, fair_key="shop", priority=5)(restock.function)
        await Scheduler(queue, newer.get_all_tasks()).run_once()
        assert (await schedules.get("restock")).edited == ("kwargs",)
        [stored] = await queue.redis.hvals(queue.keys.schedules)
        assert Record.decode(stored).job("k").control == {"priority": 5, "fair": "2"}
        await Scheduler(queue, [restock]).run_once()
        await schedules.reset("restock")
        assert (await schedules.run("restock")).control["fair"] == "1"
        await schedules.add("by.hand", restock, every=60, kwargs={"shop": 4})
        assert (await schedules.run("by.hand")).control["fair"] == "4"

    async def test_what_is_set_to_what_the_code_says_is_no_change(self, schedules: Schedules) -> None:
        """It would else outlive the next version of the code."""
        await schedules.set("report", jitter=5)
        assert (await schedules.set("report", jitter=0)).edited == ()

    @pytest.mark.parametrize(
        ("changes", "error", "text"),
        [
            ({}, OptionError, "one of the fields"),
            ({"cron": None}, OptionError, "one of the fields"),
            ({"cron": "61 * * * *"}, OptionError, "expected as minute 0 to 59"),
            ({"cron": "* * * * *", "every": 5}, OptionError, "not both"),
            ({"every": 5, "timezone": "UTC"}, OptionError, "the same in every zone"),
            ({"every": 0}, OptionError, "from 1 second"),
            ({"timezone": "Berlin"}, OptionError, "an IANA zone"),
            ({"jitter": -1}, OptionError, "from 0"),
            ({"misfire": "all"}, OptionError, "overlap=True"),
            ({"color": "red"}, OptionError, "one of the options"),
            ({"name": "other"}, TypeError, "name"),
            ({"kwargs": {"copies": 2}}, InvalidArgumentsError, "'day'"),
            ({"kwargs": {"day": "today"}}, InvalidArgumentsError, "'day'"),
            ({"args": "today"}, OptionError, "a list or tuple"),
        ],
    )
    async def test_a_wrong_change_is_refused_and_changes_nothing(
        self, schedules: Schedules, queue: Queue, changes: dict[str, Any], error: type[Exception], text: str
    ) -> None:
        """With what was wrong with it."""
        before = await raw(queue)
        with pytest.raises(error, match=text):
            await schedules.set("report", **changes)
        assert await raw(queue) == before

    async def test_arguments_that_are_too_large_are_refused(self, queue: Queue, registry: Registry) -> None:
        """The jobs could not be queued."""

        @registry.scheduled_task(every=60)
        async def ping(text: str = "") -> None: ...

        await Scheduler(queue, [ping]).run_once()
        with pytest.raises(PayloadTooLargeError):
            await registry.schedules.set("ping", kwargs={"text": "x" * queue.settings.max_payload_bytes})
        assert (await registry.schedules.get("ping")).edited == ()

    async def test_operators_at_the_same_moment_do_not_lose_each_others_changes(self, schedules: Schedules) -> None:
        """Each change is made of what the others have left."""
        changes: list[dict[str, Any]] = [
            {"jitter": 5},
            {"misfire": "skip"},
            {"misfire_window": 60},
            {"kwargs": {"day": "2028-01-01T00:00:00Z"}},
            {"cron": "5 * * * *"},
        ]
        await asyncio.gather(*(schedules.set("report", **change) for change in changes), schedules.pause("report"))
        entry = await schedules.get("report")
        assert set(entry.edited) == {"jitter", "misfire", "misfire_window", "kwargs", "cron", "enabled"}

    async def test_a_change_beside_a_fire_loses_neither(
        self, schedules: Schedules, queue: Queue, report: AnyTask, clock: ManualClock
    ) -> None:
        """A worker that has looked before the change does not fire what it has seen."""
        scheduler = Scheduler(queue, [report])
        clock.advance(3600)
        due = await queue.schedules.due()
        await schedules.set("report", kwargs={"day": "2028-01-01T00:00:00Z"})
        assert await scheduler._fire(due.now_ms, due.held) == 0
        assert await scheduler.run_once() == 1
        [claim] = await queue.claim(1, worker="w")
        assert claim.job.kwargs == {"day": "2028-01-01T00:00:00Z"}

    async def test_an_unknown_task_s_arguments_are_given_by_name(
        self, schedules: Schedules, registry: Registry
    ) -> None:
        """An operator's program need not have the task; nothing is checked then but that JSON can carry it."""
        registry.clear()
        with pytest.raises(ScheduleError, match="'report' is not known here; give its arguments by name"):
            await schedules.set("report", args=[1])
        with pytest.raises(ScheduleError, match="by name"):
            await schedules.run("report", 1)
        with pytest.raises(InvalidArgumentsError, match="JSON"):
            await schedules.run("report", day=object())
        assert (await schedules.set("report", kwargs={"anything": [1]})).kwargs == {"anything": [1]}


class TestRunning:
    async def test_a_run_by_hand_merges_its_arguments_by_name(
        self, schedules: Schedules, queue: Queue, clock: ManualClock
    ) -> None:
        """Paused or not, and beside the schedule's own due time; with the options of the task."""
        await schedules.pause("report")
        first = await schedules.run("report", copies=2)
        second = await schedules.run("report", "2030-01-01T00:00:00Z")
        assert (first.kwargs, first.timeout) == ({"day": "2026-01-01T00:00:00Z", "copies": 2}, 9)
        assert second.kwargs == {"day": "2030-01-01T00:00:00Z"}
        assert {claim.job.key for claim in await queue.claim(5, worker="w")} == {first.key, second.key}
        assert await schedules.fires("report") == []

    @pytest.mark.parametrize(("args", "kwargs"), [((1, 2, 3), {}), ((), {"pages": 1}), ((), {"copies": "x"})])
    async def test_wrong_arguments_queue_nothing(
        self, schedules: Schedules, queue: Queue, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """As at any other call."""
        with pytest.raises(InvalidArgumentsError):
            await schedules.run("report", *args, **kwargs)
        assert await queue.count("incomplete") == 0


class TestAdding:
    async def test_one_that_is_added_at_run_time_fires_like_any_other(
        self, schedules: Schedules, queue: Queue, report: AnyTask, clock: ManualClock
    ) -> None:
        """Changed, paused, resumed and removed too."""
        entry = await schedules.add("extra", "report", every=60, args=["2026-01-01T00:00:00Z"], overlap=True)
        assert (entry.added, entry.edited, entry.queue, entry.task) == (True, (), "default", "report")
        scheduler = Scheduler(queue, [report])
        clock.advance(60)
        assert await scheduler.run_once() == 1
        entry = await schedules.set("extra", every=90)
        assert (entry.next_due, entry.added) == (NOON + timedelta(seconds=90), True)
        await schedules.pause("extra")
        clock.advance(90)
        assert await scheduler.run_once() == 0
        await schedules.resume("extra")
        clock.advance(90)
        assert await scheduler.run_once() == 1
        await schedules.remove("extra")
        clock.advance(90)
        assert await scheduler.run_once() == 0
        with pytest.raises(UnknownScheduleError):
            await schedules.get("extra")
        assert [claim.job.timeout for claim in await queue.claim(5, worker="w")] == [9, 9]

    async def test_its_task_may_be_another_programs(self, schedules: Schedules, client: Client) -> None:
        """Then the queue has to be given."""
        entry = await schedules.add("far", "elsewhere.task", queue="mail", cron="@daily", kwargs={"n": 1})
        assert (entry.task, entry.queue, entry.kwargs) == ("elsewhere.task", "mail", {"n": 1})
        with pytest.raises(UnknownTaskError):
            await schedules.add("further", "elsewhere.task", cron="@daily")

    @pytest.mark.parametrize(
        ("name", "given", "error", "text"),
        [
            ("report", {"every": 60}, ScheduleError, "code has one of this name"),
            ("taken", {"every": 60}, ScheduleError, "one of this name already"),
            ("with spaces", {"every": 60}, OptionError, "letters"),
            ("new", {}, OptionError, "neither"),
            ("new", {"every": 60, "queue": "nowhere"}, UnknownQueueError, "nowhere"),
            ("new", {"every": 60, "kwargs": {"copies": 1}}, InvalidArgumentsError, "'day'"),
            ("new", {"every": 60, "color": "red"}, OptionError, "color"),
        ],
    )
    async def test_a_wrong_one_is_refused(  # noqa: PLR0917 - fixtures and parameters
        self, schedules: Schedules, queue: Queue, name: str, given: dict[str, Any], error: type[Exception], text: str
    ) -> None:
        """Nothing is stored."""
        await schedules.add("taken", "elsewhere", queue="mail", every=60)
        before = await raw(queue)
        given = {"kwargs": {"day": "2026-01-01T00:00:00Z"}} | given
        with pytest.raises(error, match=text):
            await schedules.add(name, "report", **given)
        assert await raw(queue) == before

    async def test_of_two_who_add_one_name_one_is_refused(self, schedules: Schedules) -> None:
        """Neither overwrites the other."""
        calls = (schedules.add("new", "elsewhere", queue="mail", every=60 + number) for number in range(5))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(answer, ScheduleError) for answer in answers) == 4

    async def test_what_is_in_the_code_is_not_removed_nor_what_is_not_in_it_reset(self, schedules: Schedules) -> None:
        """The error says what to do instead."""
        with pytest.raises(ScheduleError, match=f"it is defined in {__name__}; pause it"):
            await schedules.remove("report")
        await schedules.add("new", "elsewhere", queue="mail", every=60)
        with pytest.raises(ScheduleError, match="added at run time"):
            await schedules.reset("new")

    async def test_what_has_left_the_code_can_be_removed(
        self, schedules: Schedules, registry: Registry, queue: Queue
    ) -> None:
        """Also where no worker can tell that it was this program's, as its module is not imported any more."""
        registry.clear()
        await schedules.remove("report")
        assert await raw(queue) == ({}, [], {})

    async def test_a_task_is_a_task_or_a_name(self, schedules: Schedules) -> None:
        """A function that is none is told."""
        wrong: Any = len
        with pytest.raises(OptionError, match="a task, or the name of one"):
            await schedules.add("new", wrong, every=60)


CALLS: dict[str, Callable[[Schedules], Awaitable[Any]]] = {
    "get": lambda schedules: schedules.get("reprot"),
    "pause": lambda schedules: schedules.pause("reprot"),
    "resume": lambda schedules: schedules.resume("reprot"),
    "set": lambda schedules: schedules.set("reprot", every=5),
    "reset": lambda schedules: schedules.reset("reprot"),
    "run": lambda schedules: schedules.run("reprot"),
    "next": lambda schedules: schedules.next("reprot"),
    "fires": lambda schedules: schedules.fires("reprot"),
    "remove": lambda schedules: schedules.remove("reprot"),
}


class TestNames:
    @pytest.mark.parametrize("call", CALLS)
    async def test_an_unknown_name_is_told_with_the_nearest(self, schedules: Schedules, call: str) -> None:
        """Whatever was asked."""
        with pytest.raises(UnknownScheduleError, match="'reprot'; did you mean 'report'"):
            await CALLS[call](schedules)

    @pytest.mark.parametrize("call", [*CALLS, "list", "add"])
    async def test_outside_of_a_connection_it_says_how_to_open_one(self, registry: Registry, call: str) -> None:
        """Instead of an empty list."""
        calls = CALLS | {
            "list": lambda schedules: schedules.list(),
            "add": lambda schedules: schedules.add("new", "elsewhere", queue="mail", every=60),
        }
        with pytest.raises(NotConnectedError, match="schedules cannot be looked at or changed: no queue is connected"):
            await calls[call](registry.schedules)

    async def test_of_two_queues_with_one_name_this_programs_is_meant(
        self, schedules: Schedules, client: Client, registry: Registry, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Which is told; without one in the code it is not guessed."""
        _, [held] = await client.queue().schedules.read()
        record = Record(task="other", code=Record.decode(held.raw).code)
        await client.queue("mail").schedules.write([Change("report", "", record, KEEP)])
        assert (await schedules.get("report")).queue == "default"
        assert "report is in queue mail too; this is about queue default" in caplog.text
        registry.clear()
        with pytest.raises(ScheduleError, match="queues 'default' and 'mail' have one each"):
            await schedules.get("report")

    async def test_all_its_errors_are_of_one_tree(self) -> None:
        """A program catches them by one name."""
        assert issubclass(ScheduleError, KnapsaqError)
        assert issubclass(UnknownScheduleError, KnapsaqError)
