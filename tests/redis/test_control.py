"""Flow control by its guarantees, each in one scenario; ``test_control_model.py`` mixes them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
from saq.job import Status
from tests.support import ended, eventually, left_behind, lists, working

from knapsaq import Job, Queue
from knapsaq.claims import Claim
from knapsaq.liveness import LeaseKeeper
from knapsaq.outcomes import Retried, Succeeded
from knapsaq.redis import scripts
from knapsaq.registry import AnyTask
from knapsaq.steering import Tidier
from knapsaq.testing import ManualClock
from knapsaq.timing import now_ms
from knapsaq.upkeep import Rescuer

ONE_A_SECOND = {"rates": [["api", 1_000_000, 1]]}
ONE_AN_HOUR = {"rates": [["api", 3_600_000_000, 1]]}
ONE_SLOT = {"slots": [["db", 1]]}
TURNS = 100
"""Within so many turns of its tenant the first job of the lowest priority is taken."""


@pytest.fixture(autouse=True)
def stopped(queue: Queue, clock: ManualClock, echo: AnyTask) -> None:
    """The queue's time stands still, and it knows a task."""
    assert echo.name == "echo"
    queue.clock = clock


def built(key: str, control: Mapping[str, Any] | None = None, text: str = "hi", **extras: Any) -> Job[Any]:
    """Return a job with a control, not sent yet."""
    job: Job[Any] = Job("echo", key=key, kwargs={"text": text})
    job.note(**({"control": control} if control else {}), **extras)
    return job


async def send(
    queue: Queue, keys: str | Sequence[str], control: Mapping[str, Any] | None = None, **extras: Any
) -> None:
    """Send a job for each key."""
    await queue.submit_many([built(key, control, **extras) for key in keys])


async def take(queue: Queue, want: int = 10, worker: str = "w") -> dict[str, Claim]:
    """Claim jobs; returns them by their keys, in the order in which they came."""
    return {claim.job.key: claim for claim in await queue.claim(want, worker=worker)}


async def end(queue: Queue, *claims: Claim) -> None:
    """Settle jobs as done."""
    await queue.advance("w", [queue.settlement(claim, Succeeded("done")) for claim in claims], 0)


async def run_all(queue: Queue, clock: ManualClock, seconds: float = 0.0) -> list[str]:
    """Run whatever runs while so many seconds pass; returns the keys in their order."""
    order: list[str] = []
    until = clock() + int(seconds * 1000)
    while True:
        step = await queue.advance("w", [], 10)
        await queue.advance("w", step.unreadable, 0)
        order += [claim.job.key for claim in step.claims]
        if step.claims:
            await end(queue, *step.claims)
        elif step.unreadable:
            continue
        elif step.wait is None or clock() + step.wait * 1000 > until:
            return order
        else:
            clock.advance(step.wait + 0.001)


async def abort(queue: Queue, key: str) -> None:
    """End a job on purpose."""
    job = await queue.job(key)
    assert job is not None
    await queue.abort(job, "no more")


async def places(queue: Queue) -> dict[str, str]:
    """Return the lane of each parked job."""
    redis: Any = queue.redis
    found = await redis.hgetall(queue.keys.parked)
    return {queue.job_key_from_id(job_id.decode()): lane.decode() for job_id, lane in found.items()}


class TestLimits:
    async def test_a_worker_that_dies_gives_its_slot_back_and_the_next_job_runs(
        self, queue: Queue, clock: ManualClock
    ) -> None:
        """By rescue, with nobody else in between."""
        await send(queue, "ab", ONE_SLOT)
        assert list(await take(queue, worker="dead")) == ["a"]
        clock.advance(queue.settings.lease + 1)

        assert await Rescuer(queue).run_once() == 1

        assert list(await take(queue, worker="alive")) in (["a"], ["b"])
        assert len((await lists(queue))["active"]) == 1

    async def test_slots_that_nobody_holds_any_more_are_free(self, queue: Queue, clock: ManualClock) -> None:
        """However many they are, whoever has left them there."""
        redis: Any = queue.redis
        await redis.sadd("saq:default:slots:db", *(f"saq:job:default:gone{number}" for number in range(250)))
        await send(queue, "a", {"slots": [["db", 200]]})

        assert await run_all(queue, clock) == ["a"]
        await redis.delete("saq:default:slots:db")

    @pytest.mark.parametrize("lost", ["aborted", "without a record"])
    @pytest.mark.parametrize("control", [ONE_A_SECOND, {**ONE_A_SECOND, "fair": "x"}], ids=["plain", "tenant"])
    async def test_the_next_job_of_a_lane_goes_when_the_one_that_was_let_go_is_lost(
        self, queue: Queue, clock: ManualClock, lost: str, control: dict[str, Any]
    ) -> None:
        """It was on its way, and no worker ever took it."""
        await send(queue, "abc", control)
        await end(queue, *(await take(queue)).values())
        clock.advance(1)
        await queue.advance("w", [], 0)
        assert await places(queue) == {"b": ">r:api", "c": "r:api"}

        if lost == "aborted":
            await abort(queue, "b")
        else:
            await queue.redis.delete(queue.job_id("b"))

        assert list(await take(queue)) == ["c"]

    async def test_a_job_that_is_lost_while_it_is_parked_holds_up_nobody(
        self, queue: Queue, clock: ManualClock
    ) -> None:
        """Its record is gone, or somebody has aborted it."""
        await send(queue, "abcd", ONE_A_SECOND)
        await end(queue, *(await take(queue)).values())
        await queue.redis.delete(queue.job_id("b"))
        await abort(queue, "c")

        assert await run_all(queue, clock, 1.5) == ["d"]

    async def test_a_running_job_that_is_aborted_gives_its_slot_to_the_next(
        self, queue: Queue, clock: ManualClock
    ) -> None:
        """As it ends, however it does."""
        await send(queue, "ab", ONE_SLOT)
        [first] = (await take(queue)).values()
        await queue.abort(first.job, "no more")
        assert await take(queue) == {}

        await end(queue, first)

        assert await run_all(queue, clock) == ["b"]

    async def test_a_job_that_is_to_be_aborted_waits_for_no_limit(self, queue: Queue, clock: ManualClock) -> None:
        """Its worker died over it; the next one has to hear of the order at once, and it uses up nothing."""
        await send(queue, "ab", {**ONE_AN_HOUR, **ONE_SLOT})
        [first] = (await take(queue)).values()
        await queue.abort(first.job, "no more")
        await queue.strike("echo")
        clock.advance(queue.settings.lease + 1)
        await Rescuer(queue).run_once()

        step = await queue.advance("alive", [], 5)

        assert [claim.job.key for claim in step.claims] == ["a"]
        assert set(step.aborts) == {queue.job_id("a")}
        await end(queue, *step.claims)
        await queue.restore("echo")

    @pytest.mark.parametrize("extras", [{"expires_at": 1}, {"expires_in": 0.001}])
    async def test_a_job_that_has_expired_uses_up_no_rate(
        self, queue: Queue, clock: ManualClock, extras: dict[str, Any]
    ) -> None:
        """It is taken at once, only to be ended; also one of a workflow, whose time counts from its turn."""
        await send(queue, "old", ONE_AN_HOUR, **extras)
        await send(queue, "n", ONE_AN_HOUR)
        clock.advance(1)

        assert sorted(await take(queue)) == ["d", "l", "n", "o"]

    async def test_a_worker_whose_clock_is_behind_runs_no_expired_job_beside_its_limit(
        self, queue: Queue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Redis has counted it for nothing, so Redis' clock has the last word on it."""
        queue.clock = None
        monkeypatch.setattr("knapsaq.claims.now_ms", lambda: now_ms() - 5000)
        job = built("old", ONE_AN_HOUR, expires_at=now_ms() - 1000)
        await queue.submit(job)

        async with working(queue):
            await ended(job)

        assert job.status is Status.ABORTED

    async def test_a_job_with_two_limits_is_not_handed_from_lane_to_lane(
        self, queue: Queue, clock: ManualClock
    ) -> None:
        """It runs in its turn, though others wait for each of its limits all the time."""
        first, second = ["api", 1_000_000, 1], ["mail", 1_000_000, 1]
        for keys, rates in (("ab", [first, second]), ("cdghij", [first]), ("efklmn", [second])):
            await send(queue, keys, {"rates": rates})
        assert list(await take(queue)) == ["a"]

        assert "b" in await run_all(queue, clock, 2.1)

        assert len(await run_all(queue, clock, 10)) == 10

    async def test_a_slot_is_never_idle_behind_a_long_row_of_jobs_that_have_a_rate_too(
        self, queue: Queue, clock: ManualClock
    ) -> None:
        """And a call moves no more than some of them from lane to lane, however many wait."""
        await send(
            queue, [f"{number}" for number in range(1500)], {"rates": [["api", 100_000, 1]], "slots": [["db", 2]]}
        )
        held: list[tuple[int, Claim]] = []
        began, redis = 0, cast("Any", queue.redis)
        for _ in range(100):
            over = [queue.settlement(claim, Succeeded("done")) for end_ms, claim in held if end_ms <= clock()]
            held = [(end_ms, claim) for end_ms, claim in held if end_ms > clock()]
            before = {name: await redis.zcard(f"saq:default:lane:{name}") for name in ("c:db", "r:api")}
            step = await queue.advance("w", over, 10)
            if sum(before.values()) > 1000:  # the row has been looked at
                assert abs(before["c:db"] - await redis.zcard("saq:default:lane:c:db")) <= 60
            held += [(clock() + 250, claim) for claim in step.claims]
            began += len(step.claims)
            clock.advance(0.05)

        assert began >= 38  # two slots, four a second each, in the 5 s but for the beginning
        await queue.purge()
        await end(queue, *(claim for _, claim in held))

    async def test_a_program_with_other_limits_leaves_no_lane_behind(self, queue: Queue, clock: ManualClock) -> None:
        """A job that was replaced by one without the limit of its lane lets the others go all the same."""
        once = {"unique": ["u", "start", "replace"]}
        await send(queue, "a", ONE_A_SECOND)
        await send(queue, "b", {**ONE_A_SECOND, **once})
        await send(queue, "cd", ONE_A_SECOND)
        await end(queue, *(await take(queue)).values())

        job = built("e", once, text="new")
        assert await queue.submit(job) is job

        assert await run_all(queue, clock, 2.5) == ["b", "c", "d"]

    async def test_an_idle_worker_hears_of_a_limit_that_is_over(self, queue: Queue, clock: ManualClock) -> None:
        """The worker that met it may be busy, or dead."""
        await send(queue, "ab", ONE_A_SECOND)
        await end(queue, *(await take(queue, worker="busy")).values())
        told: list[str] = []
        keeper = LeaseKeeper(queue, "idle", on_work=lambda: told.append("work"))
        await asyncio.to_thread(keeper.renew)
        assert told == []

        clock.advance(1)
        await asyncio.to_thread(keeper.renew)
        await asyncio.to_thread(keeper.stop)

        assert told == ["work"]


class TestOrder:
    async def test_tenants_get_their_shares_to_the_job(self, queue: Queue) -> None:
        """Of a thousand jobs, by their weights; jobs without a tenant are one."""
        await queue.weigh("x", 3)
        await send(queue, [f"x{number}" for number in range(700)], {"fair": "x"})
        await send(queue, [f"y{number}" for number in range(300)], {"fair": "y"})
        await send(queue, [f"-{number}" for number in range(300)])

        got: Counter[str] = Counter()
        for _ in range(20):
            claims = await take(queue, 50)
            got.update(key[0] for key in claims)
            await end(queue, *claims.values())

        assert got.total() == 1000
        assert all(abs(got[tenant] - share) <= 1 for tenant, share in {"x": 600, "y": 200, "-": 200}.items()), got
        await queue.weigh("x", 1)

    @pytest.mark.parametrize("tenants", [[None], ["x"], ["x", "y"], [None, "x"]], ids=str)
    async def test_a_job_of_the_lowest_priority_among_endless_urgent_ones_is_taken_within_a_hundred_turns(
        self, queue: Queue, tenants: list[str | None]
    ) -> None:
        """Of its tenant; however turns of tenants fall."""
        controls = [{"priority": 9} | ({"fair": tenant} if tenant else {}) for tenant in tenants]
        await send(queue, ["low"], {"fair": tenants[0]} if tenants[0] else None)
        for turn in range(TURNS * len(tenants)):
            for number, control in enumerate(controls):
                await send(queue, [f"u{turn}.{number}"], control)
            [claim] = (await take(queue, 1)).values()
            await end(queue, claim)
            if claim.job.key == "low":
                break
        else:
            pytest.fail("it was never taken")

    async def test_a_job_that_stands_in_the_queue_to_be_seen_is_not_hidden_by_others_that_are_put_back(
        self, queue: Queue, clock: ManualClock
    ) -> None:
        """A rescued job goes before its own kind, not before what is more urgent."""
        await send(queue, "a")
        [first] = (await take(queue, worker="dead")).values()
        assert first.job.key == "a"
        await send(queue, "bc", {"priority": 9})
        clock.advance(queue.settings.lease + 1)
        await Rescuer(queue).run_once()

        assert list(await take(queue)) == ["b", "c", "a"]

    async def test_what_may_run_is_seen_when_the_job_that_was_seen_is_aborted(self, queue: Queue) -> None:
        """Idle workers look at the queue alone."""
        await send(queue, "ab", {"priority": 1})
        await abort(queue, "a")

        assert (await lists(queue))["queued"] == ["b"]

    async def test_nothing_is_left_of_tenants_and_turns(self, queue: Queue, clock: ManualClock) -> None:
        """Once all has ended."""
        await send(queue, "abc", {"fair": "x", "priority": 2, **ONE_A_SECOND})
        await send(queue, "d", {"fair": "y"})
        assert sorted(await run_all(queue, clock, 3)) == ["a", "b", "c", "d"]

        assert await left_behind(queue) == []


class TestUnique:
    async def test_a_job_that_is_replaced_keeps_its_place(self, queue: Queue, clock: ManualClock) -> None:
        """In the queue, among the urgent ones, and where it is parked."""
        for control in ({}, {"priority": 5}, ONE_A_SECOND):
            once = {**control, "unique": ["u", "start", "replace"]}
            await send(queue, "a", control)
            await send(queue, "b", once)
            await send(queue, "c", control)
            order = await run_all(queue, clock) if control is ONE_A_SECOND else []
            job = built("new", once, text="new")
            assert await queue.submit(job) is job
            assert job.key == "b"
            assert order + await run_all(queue, clock, 5) == ["a", "b", "c"]
            clock.advance(5)

    async def test_a_job_stands_until_it_starts_or_ends_or_its_period_is_over(
        self, queue: Queue, clock: ManualClock
    ) -> None:
        """And not a moment longer."""
        for until, key in (("start", "s"), ("end", "e"), (50, "p")):
            once = {"unique": [key, until, "existing"]}
            await send(queue, key, once)
            assert (await queue.submit(built(f"{key}1", once))).key == key
            [claim] = (await take(queue)).values()
            stands = key if until != "start" else "s2"
            assert (await queue.submit(built(f"{key}2", once))).key == stands
            await end(queue, claim)
            if until == 50:
                await eventually(lambda: _gone(queue, "saq:default:unique:p"))
            assert (await queue.submit(built(f"{key}3", once))).key == ("s2" if until == "start" else f"{key}3")
            await run_all(queue, clock)

    @pytest.mark.parametrize("until", ["start", "end", 60_000])
    @pytest.mark.parametrize("stale", ["record gone", "ended by hand", "wrong kind", "nonsense"])
    async def test_a_stale_mark_blocks_nobody(
        self, queue: Queue, clock: ManualClock, until: str | int, stale: str
    ) -> None:
        """Whatever has become of the job that stood."""
        redis: Any = queue.redis
        once = {"unique": ["u", until, "existing"]}
        await send(queue, "a", once)
        if stale == "record gone":
            await redis.delete(queue.job_id("a"))
        elif stale == "ended by hand":
            await redis.delete(queue.job_id("a"), queue.keys.queued, queue.keys.incomplete)
        elif stale == "wrong kind":
            await redis.delete("saq:default:unique:u")
            await redis.rpush("saq:default:unique:u", "wrong")
        else:
            await redis.set("saq:default:unique:u", b"\xff\x00")

        assert (await queue.submit(built("b", once))).key == "b"

        assert "b" in await run_all(queue, clock)
        await Tidier(queue).run_once()

    async def test_a_job_that_is_accepted_over_what_an_earlier_one_has_left_behind_stands(
        self, queue: Queue, clock: ManualClock
    ) -> None:
        """A program of SAQ has ended the earlier one; the new one has its key."""
        redis: Any = queue.redis
        once = {"unique": ["u", "end", "existing"]}
        await send(queue, "a", once)
        await redis.delete(queue.keys.queued, queue.keys.incomplete)

        await send(queue, "a", once)

        assert (await queue.submit(built("b", once))).key == "a"
        assert await run_all(queue, clock) == ["a"]

    async def test_a_job_that_is_retried_stands_again(self, queue: Queue, clock: ManualClock) -> None:
        """As it has not ended any more."""
        once = {"unique": ["u", "end", "existing"]}
        await send(queue, "a", once)
        await run_all(queue, clock)
        job = await queue.job("a")
        assert job is not None
        await job.retry()

        assert (await queue.submit(built("b", once))).key == "a"
        assert await run_all(queue, clock) == ["a"]


class TestSteering:
    async def test_a_paused_queue_gives_nothing_out_and_an_idle_worker_does_not_spin(self, queue: Queue) -> None:
        """Whatever may run, and whatever comes in meanwhile; all of it runs afterwards."""
        queue.clock = None
        await queue.pause()
        await send(queue, "abc", {"priority": 3})
        await send(queue, "def", ONE_SLOT)
        async with working(queue):
            assert await _asked_by_a_worker(queue, 1.5) <= 4
            assert (await lists(queue))["active"] == []
            await queue.resume()
            await eventually(lambda: _all_ended(queue))

    async def test_thousands_of_parked_jobs_cost_an_idle_worker_nothing(self, queue: Queue) -> None:
        """They wait in Redis, for a rate and for a strike."""
        queue.clock = None
        await queue.strike("other")
        await send(queue, [f"a{number}" for number in range(2_500)], ONE_AN_HOUR)
        struck: list[Job[Any]] = [Job("other", key=f"b{number}") for number in range(2_500)]
        await queue.submit_many(struck)
        redis: Any = queue.redis
        async with working(queue):
            await eventually(lambda: _is_parked(queue, 4_999))
            await asyncio.sleep(0.3)
            assert await _asked_by_a_worker(queue, 1.5) <= 4
        await redis.flushall()

    async def test_a_row_behind_a_full_limit_is_looked_at_once_a_turn(self, queue: Queue) -> None:
        """Not once for each of its jobs, as that would hold up Redis for seconds."""
        await send(queue, [f"{number}" for number in range(500)], {"slots": [["db", 5]]})
        held = await take(queue, 10)
        assert len(held) == 5
        await eventually(lambda: _has_parked(queue, 495))
        redis: Any = queue.redis
        await redis.config_resetstat()

        assert await Tidier(queue).run_once() == 0

        assert (await redis.info("commandstats"))["cmdstat_srandmember"]["calls"] == 1
        await queue.purge()
        await end(queue, *held.values())

    async def test_a_restore_that_was_cut_off_is_finished_by_the_workers(
        self, queue: Queue, clock: ManualClock
    ) -> None:
        """Who called it died between two of its steps."""
        await queue.strike("echo")
        await send(queue, "abcde")
        assert await run_all(queue, clock) == []
        [strike] = await queue.strikes()
        assert await scripts.restore(queue.line, [queue.keys.incomplete], [clock(), strike.id, 2]) == 1

        await Tidier(queue).run_once()

        assert sorted(await run_all(queue, clock)) == ["a", "b", "c", "d", "e"]

    async def test_a_struck_job_that_was_ended_by_hand_is_forgotten(self, queue: Queue, clock: ManualClock) -> None:
        """Also when its key belongs to a new job, which runs."""
        redis: Any = queue.redis
        await queue.strike("echo", text="bad")
        await queue.submit_many([built(key, text="bad") for key in "ab"])
        assert await take(queue) == {}
        await redis.delete(queue.keys.incomplete)

        await send(queue, "a")
        assert await run_all(queue, clock) == ["a"]
        assert await Tidier(queue).run_once() == 1

        assert await places(queue) == {}
        await queue.restore("echo", text="bad")


DAMAGE: list[bytes] = [
    b"",
    b"\xff\xfe\x00",
    b"7",
    b"7 ",
    b"7 [",
    b"x {}",
    b"7 null",
    b"7 [1]",
    b'7 {"rates":7}',
    b'7 {"slots":[["db"]]}',
    b'7 {"priority":"high","fair":{}}',
    b"9" * 400 + b" {}",
]
WRONG: list[Any] = [
    7, "text", [], [1, 2], {"rates": 7}, {"rates": [7, [], ["x"], ["x", "y", "z"], ["x", 0, 0], ["x", -1, 1]]},
    {"rates": [["x", 1e300, 1e300]]}, {"rates": {"a": 1}}, {"slots": [["s", 0]]}, {"slots": [["s", 1e999]]},
    {"slots": [[None, None]]}, {"priority": "high"}, {"priority": 1e999}, {"priority": [1]}, {"priority": -5},
    {"fair": 7}, {"fair": ""}, {"fair": "a b"}, {"unique": "u"}, {"unique": ["u"]}, {"unique": ["u", -1]},
    {"unique": ["u", 1e300]}, {"unique": ["u", {}]}, {"unique": [7, "end"]}, {"unique": ["u v", "end"]},
]  # fmt: skip


class TestDamage:
    @pytest.mark.parametrize("entry", DAMAGE)
    @pytest.mark.parametrize("where", ["queued", "ready", "parked"])
    async def test_an_entry_that_nobody_can_read_harms_no_other_job(
        self, queue: Queue, clock: ManualClock, entry: bytes, where: str
    ) -> None:
        """All run, and nothing is left behind."""
        redis: Any = queue.redis
        control = {"queued": ONE_A_SECOND, "ready": {"fair": "x", **ONE_A_SECOND}, "parked": ONE_A_SECOND}[where]
        await send(queue, "abc", control)
        ran = await run_all(queue, clock) if where == "parked" else []
        await redis.hset(queue.keys.controls, queue.job_id("b"), entry)

        ran += await run_all(queue, clock, 5)

        assert sorted(ran) == ["a", "b", "c"]
        assert await left_behind(queue) == []

    @pytest.mark.parametrize("control", WRONG, ids=str)
    async def test_a_control_of_a_wrong_shape_is_as_if_it_were_not_there(
        self, queue: Queue, clock: ManualClock, control: Any
    ) -> None:
        """The job and its neighbours of the same call are accepted, and run."""
        job = built("b")
        job.note(control=control)
        await asyncio.gather(*(queue.accept(one) for one in (built("a", ONE_SLOT), job, built("c", {"priority": 2}))))

        assert sorted(await run_all(queue, clock, 5)) == ["a", "b", "c"]
        assert await left_behind(queue) == []

    @pytest.mark.parametrize("meta", [7, "text", [], {"knapsaq": 7}, None], ids=str)
    async def test_a_record_that_was_rewritten_harms_nobody(self, queue: Queue, clock: ManualClock, meta: Any) -> None:
        """Its control stands beside it; what it says of its expiry is nonsense."""
        redis: Any = queue.redis
        await send(queue, "abc", ONE_SLOT)
        job = built("b")
        record = {**queue.load(await redis.get(queue.job_id("b"))), "kwargs": {"expires_at": 1}, "meta": meta}
        await redis.set(queue.job_id(job.key), queue.dump(record))

        ran = await run_all(queue, clock)

        assert [key for key in ran if key != "b"] == ["a", "c"]
        assert await left_behind(queue) == []

    @pytest.mark.parametrize("name", ["rate:api", "slots:db", "lane:r:api", "lane:c:db"])
    async def test_a_key_of_a_wrong_kind_holds_up_the_jobs_that_need_it_alone(
        self, queue: Queue, clock: ManualClock, name: str
    ) -> None:
        """Until somebody has put it right."""
        redis: Any = queue.redis
        other = {"rates": [["other", 1_000, 1]], "slots": [["another", 5]]}
        await redis.hset(f"saq:default:{name}", "wrong", "kind")
        await send(queue, "ab", {**ONE_A_SECOND, **ONE_SLOT})
        await send(queue, "cd", other)

        assert [key for key in await run_all(queue, clock, 1) if key in "cd"] == ["c", "d"]

        await redis.delete(f"saq:default:{name}")
        await Tidier(queue).run_once()
        await run_all(queue, clock, 20)
        assert (await lists(queue))["incomplete"] == []
        assert await left_behind(queue) == []

    async def test_weights_rates_and_strikes_that_make_no_sense_count_for_nothing(
        self, queue: Queue, clock: ManualClock
    ) -> None:
        """As if they were not there."""
        redis: Any = queue.redis
        for number, weight in enumerate([b"heavy", b"0", b"-1", b"nan", b"inf", b"\xff"]):
            await redis.hset(queue.keys.weights, f"t{number}", weight)
            await send(queue, [f"k{number}"], {"fair": f"t{number}", **ONE_A_SECOND})
        await redis.set("saq:default:rate:api", b"nonsense")
        await redis.hset(queue.keys.strikes, mapping={"a": b"\xff", "b": b"7", "c": b"[]", "d": b'{"task":7}'})

        assert len(await run_all(queue, clock, 10)) == 6

        await redis.delete(queue.keys.weights, queue.keys.strikes)
        assert await left_behind(queue) == []


class TestPlainJobs:
    async def test_plain_jobs_pay_one_look_for_flow_control(self, queue: Queue) -> None:
        """Whether there is any control, strike or pause: one command within the call that claims."""
        await send(queue, "ab")
        redis: Any = queue.redis
        await redis.config_resetstat()
        claims = await take(queue)
        stats = await redis.info("commandstats")
        assert stats["cmdstat_exists"]["calls"] == 1
        assert stats["cmdstat_lpop"]["calls"] == 1
        await queue.advance("w", [queue.settlement(one, Retried("x", 0)) for one in claims.values()], 0)

    async def test_debouncing_and_ending_a_delayed_job_search_no_queue(self, queue: Queue) -> None:
        """It is not there, and to look through 100,000 jobs takes Redis milliseconds each time."""
        redis: Any = queue.redis
        await redis.config_resetstat()
        for text in ("old", "new"):
            job = built(text, {"unique": ["u", "start", "replace"]}, text)
            job.scheduled = queue.now_ms() // 1000 + 60
            await queue.submit(job)
        await abort(queue, "old")

        assert (await lists(queue))["incomplete"] == []
        assert "cmdstat_lrem" not in await redis.info("commandstats")

    async def test_settling_and_sending_plain_jobs_pay_no_more(self, queue: Queue) -> None:
        """One look with each claim also where jobs are settled, and none at the time where nothing is delayed."""
        redis: Any = queue.redis
        queue.clock = None
        await redis.config_resetstat()
        await send(queue, "ab")
        assert "cmdstat_time" not in await redis.info("commandstats")
        claims = await take(queue)
        await redis.config_resetstat()
        await end(queue, *claims.values())
        assert (await redis.info("commandstats"))["cmdstat_exists"]["calls"] == 1


async def _gone(queue: Queue, key: str) -> bool:
    return not await queue.redis.exists(key)


async def _all_ended(queue: Queue) -> bool:
    return not (await lists(queue))["incomplete"]


async def _has_parked(queue: Queue, jobs: int) -> bool:
    await take(queue)
    return await _is_parked(queue, jobs)


async def _is_parked(queue: Queue, jobs: int) -> bool:
    redis: Any = queue.redis
    return bool(await redis.hlen(queue.keys.parked) == jobs)


async def _asked_by_a_worker(queue: Queue, seconds: float) -> int:
    """Return how many calls were made in so many seconds; what is left of a start does not count."""
    redis: Any = queue.redis
    await asyncio.sleep(0.5)
    before = await redis.info("commandstats")
    await asyncio.sleep(seconds)
    after = await redis.info("commandstats")
    calls = [
        info.get(f"cmdstat_{name}", {"calls": 0})["calls"] for info in (before, after) for name in ("evalsha", "blmove")
    ]
    return int(calls[2] + calls[3] - calls[0] - calls[1])
