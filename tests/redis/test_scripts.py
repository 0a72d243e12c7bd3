"""Every script's header against what its Python callers send."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from typing import Any, NamedTuple
from unittest.mock import ANY

import msgspec
import pytest
from saq.job import Status
from tests.support import ended, working

from knapsaq import Job, Queue, Registry, Unique, WorkflowJob, group
from knapsaq.definitions import KEEP, Change, Record
from knapsaq.flows import inputs
from knapsaq.liveness import LeaseKeeper
from knapsaq.nodes import node_key
from knapsaq.options import CallOptions
from knapsaq.outcomes import Dead, Retried, Succeeded
from knapsaq.redis import scripts
from knapsaq.redis.keys import FlowKeys
from knapsaq.redis.scripts import Script
from knapsaq.registry import AnyTask
from knapsaq.relay import Relay, drop, leave_word
from knapsaq.scheduler import Scheduler
from knapsaq.steering import Tidier
from knapsaq.upkeep import Rescuer

SOURCES = {
    path.name.removesuffix(".lua"): path.read_text(encoding="utf-8")
    for path in files("knapsaq.redis").joinpath("lua").iterdir()
    if path.name.endswith(".lua")
}
LOADED = {name: value for name, value in vars(scripts).items() if isinstance(value, Script)}
TOKENS = re.compile(r"w[12] \d+\.\d+")
MOMENT = re.compile(r"^(|\d{13})$")


class Header(NamedTuple):
    """One line of a header: the names that come once, and those that repeat."""

    once: list[str]
    repeated: list[str]

    @classmethod
    def of(cls, source: str, kind: str) -> Header:
        """Parse the line of that kind, ``keys`` or ``args``."""
        [line] = re.findall(rf"^-- {kind}: (.+)$", source, re.MULTILINE)
        once, _, repeated = line.partition("|")
        return cls(once.split(), repeated.split())

    def named(self, values: Sequence[Any]) -> dict[str, list[Any]]:
        """Return the values by name; fails if their number does not fit the header."""
        rest = len(values) - len(self.once)
        rounds, left = divmod(rest, len(self.repeated)) if self.repeated else (0, rest)
        assert rest >= 0, f"{self} got only {len(values)}"
        assert left == 0, f"{self} got {len(values)}"
        found: dict[str, list[Any]] = {}
        for name, value in zip([*self.once, *self.repeated * rounds], values, strict=True):
            found.setdefault(name, []).append(value)
        return found


class Call(NamedTuple):
    """One call of a script, by the names of its header."""

    script: str
    keys: dict[str, list[Any]]
    args: dict[str, list[Any]]


def call_of(script: Script, keys: Sequence[Any], args: Sequence[Any]) -> Call:
    source = script.source
    return Call(script.name, Header.of(source, "keys").named(keys), Header.of(source, "args").named(args))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every call of a script from now on, by names; the scripts run as ever."""
    recorded: list[Call] = []
    run = Script.__call__

    async def recording(self: Script, line: Any, keys: Sequence[str], args: Sequence[Any]) -> Any:
        recorded.append(call_of(self, keys, args))
        return await run(self, line, keys, args)

    monkeypatch.setattr(Script, "__call__", recording)
    return recorded


class Check(NamedTuple):
    """What the value of a name looks like."""

    fits: Callable[[Any], bool]
    meaning: str


def one_of(*texts: str) -> Check:
    return Check(lambda value: value in texts, f"one of {texts}")


def number(*, least: float = 0) -> Check:
    return Check(lambda value: isinstance(value, (int, float)) and value >= least, f"a number from {least}")


def text(pattern: str) -> Check:
    def fits(value: object) -> bool:
        return re.fullmatch(pattern, value.decode() if isinstance(value, bytes) else str(value)) is not None

    return Check(fits, pattern)


RECORD = Check(lambda value: isinstance(value, bytes) and value.startswith(b'{"'), "a job's record")
MILLISECOND = text(r"\d{13}")
KEYS = {
    "queued": text("saq:default:queued"),
    "active": text("saq:default:active"),
    "incomplete": text("saq:default:incomplete"),
    "claims": text("saq:default:claims"),
    "aborts": text("saq:default:aborts"),
    "crashes": text("saq:default:crashes"),
    "dead": text("saq:default:dead"),
    "records": text("saq:default:dead:records"),
    "reasons": text("saq:default:dead:reasons"),
    "leases": text("saq:default:leases"),
    "stats": text("saq:default:stats"),
    "info": text("saq:default:worker_info:w1"),
    "saq_sweep_lock": text("saq:default:sweep"),
    "saq_schedule_lock": text("saq:default:schedule"),
    "schedules": text("saq:default:schedules"),
    "due": text("saq:default:schedules:due"),
    "fires": text("saq:default:schedules:fires"),
    "schedules_to": text("saq:mail:schedules"),
    "due_to": text("saq:mail:schedules:due"),
    "fires_to": text("saq:mail:schedules:fires"),
    "job": text("saq:job:default:.+"),
    "flow": text("saq:(default|mail):flow:[^:]+"),
    "states": text("saq:default:flow:[^:]+:states"),
    "results": text("saq:default:flow:[^:]+:results"),
    "flows": text("saq:default:flows"),
    "mark": text("saq:abort:.+|saq:default:(fired|run):.+"),
    "relay": text("saq:(default|mail):relay"),
    "lock": text("saq:(default|mail):relay:lock"),
}
ARGS = {
    "now": text(MOMENT.pattern),
    "want": number(),
    "last_chance": one_of(2),  # type: ignore[arg-type]
    "claim": text(TOKENS.pattern),
    "token": text(f"({TOKENS.pattern})?"),
    "head": text(
        r"(stamp|retry|release|snooze|(finish|bury)(/[dfa]\d+)?) -?[\d.]+ "
        rf"(queued|active|complete|failed) {TOKENS.pattern}"
    ),
    "payload": RECORD,
    "number": number(least=-1),
    "status": one_of("queued", "active", "complete", "failed", "aborted"),
    "channel": text("saq:default:wake"),
    "score": number(),
    "once": one_of(0, 1),  # type: ignore[arg-type]
    "worker": text("w[12]"),
    "lease_ms": number(least=1000),
    "reason": text("enough"),
    "terminate": one_of(0, 1),  # type: ignore[arg-type]
    "running": one_of(0, 1),  # type: ignore[arg-type]
    "places": text("[aqps]+"),
    "offset": number(),
    "most": number(least=1000),
    "aborted_payload": RECORD,
    "aborting_payload": RECORD,
    "ttl": number(least=-1),
    "ended": one_of(0, 1),  # type: ignore[arg-type]
    "id": text("(default|mail):[^:]+"),
    "state": one_of("d", "f", "a"),
    "value": Check(lambda value: isinstance(value, bytes) and value.startswith((b'"', b"[")), "JSON"),
    "node": number(),
    "first": text(r"\d+(-\d+)?"),
    "nodes": number(),
    "shape": text(r"\[\d+\]"),
    "ends": number(),
    "count": number(),
    "lock_ms": number(least=1000),
    "after": text(r"-|\d+-\d+"),
    "bytes": number(least=1),
    "entry": text(r"\d+-\d+"),
    "queue": text("default"),
    "run": text("1"),
    "record": RECORD,
    "due": text(""),
    "sent": text("sent"),
    "field": Check(lambda value: isinstance(value, (str, bytes, int)), "a name or a value"),
}

INFO_ARGS = {"payload": text(r"\{.*\}")}
CONTROL_ARGS = {
    "what": text(r"echo/[\w-]{22}"),
    "id": text("[0-9a-f]{16}"),
    "limit": number(least=1),
    "cursor": number(),
    "count": number(least=1),
}
SCHEDULE_ARGS = {
    "limit": number(least=1),
    "pushes": text("saq:default:schedules:wake"),
    "pushes_to": text("saq:mail:schedules:wake"),
    "name": text("hourly"),
    "due": MILLISECOND,
    "version": text("([0-9a-f]{40})?"),
    "record": text(r"(\{.+\})?"),
    "next": text(r"\d{13}|keep|"),
    "overlap": one_of(0, 1),  # type: ignore[arg-type]
    "moment": MILLISECOND,
    "note": text("(missed: .+)?"),
    "payload": text(r"(\{.+\})?"),
}
OWN_ARGS = (
    {"worker_info": INFO_ARGS}
    | dict.fromkeys(("replace", "restore", "tidy", "page"), CONTROL_ARGS)
    | dict.fromkeys(("schedules_due", "schedules_fire", "schedules_write", "schedules_move"), SCHEDULE_ARGS)
)


async def enqueue_jobs(queue: Queue) -> None:
    await queue.enqueue("echo", key="a", text="hi")
    await queue.enqueue("echo", key="b", text="hi", scheduled=4_000_000_000)


async def advance_jobs(queue: Queue) -> None:
    await enqueue_jobs(queue)
    [claim] = await queue.claim(3, worker="w1")
    settlements = [queue.stamp(claim), queue.settlement(claim, Retried("no luck", 0.0))]
    assert (await queue.advance("w1", settlements, 0)).settled == [1, 1]
    [again] = await queue.claim(1, worker="w2")
    assert await queue.settle(again, Succeeded("hi"), worker="w2")


async def rescue_jobs(queue: Queue) -> None:
    await queue.enqueue("echo", text="hi")
    await queue.claim(1, worker="w1")
    redis: Any = queue.redis
    await redis.zadd(queue.keys.leases, {"w1": 1})
    assert await Rescuer(queue).run_once() == 1


async def abort_job(queue: Queue) -> None:
    job = await queue.enqueue("echo", text="hi")
    assert job is not None
    await job.abort("enough")


async def retry_job(queue: Queue) -> None:
    job = await queue.enqueue("echo", text="hi")
    assert job is not None
    [claim] = await queue.claim(1, worker="w1")
    await queue.settle(claim, Succeeded("hi"), worker="w1")
    await claim.job.retry("once more")


async def update_job(queue: Queue) -> None:
    job = await queue.enqueue("echo", text="hi")
    assert job is not None
    await job.update(progress=0.5)


async def look_at_jobs(queue: Queue) -> None:
    await enqueue_jobs(queue)
    assert (await queue.counts()).incomplete == len(await queue.open_jobs()) == 2
    assert await queue.stranded() == {}


async def tell_of_worker(queue: Queue) -> None:
    await queue.write_worker_info("w1", {"queue_key": "default", "stats": None, "metadata": None}, ttl=30)
    assert "w1" in (await queue.info())["workers"]


async def replay_job(queue: Queue) -> None:
    job = await queue.enqueue("echo", text="hi")
    assert job is not None
    [claim] = await queue.claim(1, worker="w1")
    assert await queue.settle(claim, Dead("enough"), worker="w1")
    assert await queue.replay(job.key) == 1


async def replace_job(queue: Queue) -> None:
    task = queue.registry.get("echo") if queue.registry else None
    assert task is not None
    newest = task.using(unique=Unique(by=(), clash="replace"))
    first, second = await newest.enqueue(text="a"), await newest.enqueue(text="b")
    assert first.key == second.key
    await second.abort("enough")


async def restore_task(queue: Queue) -> None:
    await queue.strike("echo")
    assert await queue.restore("echo")


async def tidy_up(queue: Queue) -> None:
    assert await Tidier(queue).run_once() == 0


async def explain_job(queue: Queue) -> None:
    job = await queue.enqueue("echo", text="hi")
    assert job is not None
    assert [reason.kind for reason in await job.why()] == ["queued", "no worker"]


async def fire_schedule(queue: Queue) -> None:
    registry = Registry()

    @registry.scheduled_task(cron="0 * * * *")
    async def hourly() -> None: ...

    scheduler = Scheduler(queue, [hourly], "w1")
    await scheduler.reconcile()
    redis: Any = queue.redis
    await redis.zadd(queue.keys.schedules_due, {"hourly": int(time.time() // 3600 - 2) * 3_600_000})
    assert await scheduler.run_once() == 1


async def write_schedules(queue: Queue) -> None:
    await fire_schedule(queue)
    _, [held] = await queue.schedules.read("hourly")
    record = Record.decode(held.raw)
    kept = Change("hourly", held.version, msgspec.structs.replace(record, edit={"jitter": 1.0}), KEEP)
    paused = Change("hourly", held.version, record, None)
    assert await queue.schedules.write([kept, paused]) == [True, False]
    _, [held] = await queue.schedules.read("hourly")
    assert await queue.schedules.write([Change("hourly", held.version, None, None)]) == [True]
    assert await queue.schedules.read() == (ANY, [])


async def move_schedule(queue: Queue) -> None:
    await fire_schedule(queue)
    _, [held] = await queue.schedules.read("hourly")
    change = Change("hourly", held.version, Record.decode(held.raw), KEEP)
    assert await queue.schedules.move("default", "mail", change)
    assert not await queue.schedules.move("default", "mail", change)
    assert await queue.schedules.read_in("mail", ["hourly"]) == [held]
    assert await queue.schedules.read() == (ANY, [])


async def start_flow(queue: Queue) -> WorkflowJob:
    task = queue.registry.get("echo") if queue.registry else None
    assert task is not None
    return await (task.s("a") | task.s()).enqueue()


async def retry_flow(queue: Queue) -> None:
    flow = await start_flow(queue)
    await flow.revoke()
    assert await flow.retry_failed() == 2


async def tell_flow(queue: Queue) -> None:
    flow = await start_flow(queue)
    job = await queue.job(node_key(flow.id, 0))
    assert job is not None
    await job.finish(Status.FAILED, error="by hand")


async def read_flow(queue: Queue) -> None:
    await start_flow(queue)
    [claim] = await queue.claim(1, worker="w1")
    await queue.settle(claim, Succeeded("a"), worker="w1")
    [claim] = await queue.claim(1, worker="w1")
    assert await inputs(claim.job) == {"text": "a"}


async def extend_flow(queue: Queue) -> None:
    await start_flow(queue)
    [claim] = await queue.claim(1, worker="w1")
    assert queue.registry is not None
    task = queue.registry.get("echo")
    await task.extend(claim.job, group(task.s("b")), replaces=True)


async def relay_node(queue: Queue) -> None:
    """As in a cluster where the two queues are in different slots, which the mark before the workflow's key says."""
    mail, flow = queue.sibling("mail"), "mail:~key"
    keys = FlowKeys.of(flow)
    task = queue.registry.get("echo") if queue.registry else None
    assert task is not None
    job = task.build_job(CallOptions(), ("a",), {})
    job.key = node_key(flow, 0)
    fields = ["r0", await queue.record(job), "q0", queue.name, "left", 1, "ttl", 60]
    await scripts.flow_start(mail.line, [keys.flow, keys.states, keys.flows], ["", flow, 1, *fields, 0])
    await Relay(mail, "w1").run_once()
    [claim] = await queue.claim(1, worker="w1")
    entry, run = await leave_word(queue, claim.job.key, claim.token, b"sent", (flow, 0))
    assert run == b"1"
    await drop(queue, entry)
    await queue.settle(claim, Succeeded("a"), worker="w1")
    await Relay(queue, "w1").run_once()
    assert await mail.line.execute("HGET", keys.flow, "state") == b"complete"


OPERATIONS: dict[str, Callable[[Queue], Awaitable[Any]]] = {
    "enqueue": enqueue_jobs,
    "advance": advance_jobs,
    "rescue": rescue_jobs,
    "abort": abort_job,
    "retry": retry_job,
    "update": update_job,
    "replay": replay_job,
    "replace": replace_job,
    "restore": restore_task,
    "tidy": tidy_up,
    "why": explain_job,
    "counts": look_at_jobs,
    "page": look_at_jobs,
    "stranded": look_at_jobs,
    "worker_info": tell_of_worker,
    "schedules_due": fire_schedule,
    "schedules_fire": fire_schedule,
    "schedules_write": write_schedules,
    "schedules_move": move_schedule,
    "flow_start": start_flow,
    "flow_retry": retry_flow,
    "flow_tell": tell_flow,
    "flow_results": read_flow,
    "flow_extend": extend_flow,
    **dict.fromkeys(("relay_take", "relay_drop", "relay_begin", "relay_end", "relay_extend"), relay_node),
}


class TestHeaders:
    def test_what_several_scripts_share_has_a_header_of_its_own(self) -> None:
        """It is no script: it has neither keys nor arguments, and its first lines say what it is for."""
        for path in files("knapsaq.redis").joinpath("lua", "shared").iterdir():
            source = path.read_text(encoding="utf-8")
            assert re.match(r"-- [A-Z].+", source)
            assert "KEYS" not in source
            assert "ARGV" not in source

    def test_each_script_is_loaded_and_each_loaded_script_exists(self) -> None:
        """A Lua file that nobody loads is dead, and a script's name in Python is its file's name."""
        assert set(LOADED) == set(SOURCES)
        assert all(name == script.name for name, script in LOADED.items())

    @pytest.mark.parametrize("name", sorted(SOURCES))
    def test_a_header_says_what_the_script_does_takes_and_returns(self, name: str) -> None:
        """The first lines are all that a caller has to read."""
        lines = SOURCES[name].splitlines()
        assert re.fullmatch(r"-- [A-Z].+", lines[0])
        assert lines[1].startswith("-- keys: ")
        assert lines[2].startswith("-- args: ")
        assert any(line.startswith("-- Returns ") for line in lines[:8])

    @pytest.mark.parametrize("name", sorted(SOURCES))
    def test_a_script_gives_its_keys_and_arguments_the_names_of_its_header(self, name: str) -> None:
        """The names on the left of ``unpack`` are those of the header, in its order."""
        source = SOURCES[name]
        for kind, table in (("keys", "KEYS"), ("args", "ARGV")):
            header = Header.of(source, kind)
            named = re.search(rf"^local ([\w, ]+) = (?:unpack\({table}|{table}\[1\])", source, re.MULTILINE)
            assert named is not None, f"{name}.lua takes {table} apart without names"
            given = named[1].split(", ")
            assert given == header.once, f"{kind} of {name}.lua"

    @pytest.mark.parametrize("name", sorted(OPERATIONS))
    async def test_what_python_sends_fits_the_header(
        self, queue: Queue, echo: AnyTask, calls: list[Call], name: str
    ) -> None:
        """Number and order: each value looks like what the header calls it."""
        await OPERATIONS[name](queue)

        sent = [call for call in calls if call.script == name]
        assert sent
        for call in sent:
            self._check(call)

    async def test_the_lease_threads_call_fits_the_header(self, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
        """The lease is renewed from a thread with a client of its own, which sends the command itself."""
        keeper = LeaseKeeper(queue, "w1", lambda: None)
        sent: list[Call] = []
        run: Any = keeper._redis.execute_command

        def recording(command: str, *words: Any, **options: Any) -> Any:
            if command == "EVALSHA":
                sha, count, *values = words
                assert sha == scripts.lease.sha
                sent.append(call_of(scripts.lease, values[:count], values[count:]))
            return run(command, *words, **options)

        monkeypatch.setattr(keeper._redis, "execute_command", recording)
        keeper.renew()
        keeper.stop()

        [call] = sent
        self._check(call)

    def _check(self, call: Call) -> None:
        own = {**ARGS, **OWN_ARGS.get(call.script, {})}
        for kind, values, checks in (("key", call.keys, KEYS), ("argument", call.args, own)):
            for name, given in values.items():
                for value in given:
                    assert checks[name].fits(value), f"{call.script}.lua, {kind} {name}: {value!r}"


class TestReplies:
    async def test_enqueue_returns_an_answer_for_each_job(self, queue: Queue) -> None:
        """1 if it was accepted, 0 if its key was taken."""
        own = queue.keys
        keys = [own.incomplete]
        for key in ("a", "a", "b"):
            keys += [queue.job_id(key), f"saq:abort:default:{key}"]
        answer = await scripts.enqueue(queue.line, keys, ["", *("{}", 0, 0) * 3])
        assert answer == [1, 0, 1]

    async def test_advance_returns_what_its_header_lists(self, queue: Queue, echo: AnyTask) -> None:
        """Now, the next due time, an answer for each settlement, claims in threes, aborts in twos, if paused."""
        await enqueue_jobs(queue)
        keys = queue.keys
        shared = [keys.queued, keys.active, keys.incomplete, keys.leases, keys.claims, keys.aborts, keys.crashes]
        shared += [keys.dead, keys.dead_records, keys.dead_reasons]
        job = queue.job_id("a")
        reply = await scripts.advance(queue.line, shared, ["", "w1", 5, "w1 t1", 9000, 2])
        now, due, settled, claimed, aborts, paused, more = reply
        assert MOMENT.fullmatch(str(now))
        assert float(due) == 4_000_000_000
        assert (settled, claimed[0], claimed[2], aborts, paused, more) == ([], job.encode(), b"", [], 0, 0)

        stored = await queue.job("a")
        assert stored is not None
        await stored.abort("enough")
        stale = ("finish 5 complete other", "{}")
        ours = ("stamp 0 active w1 t1", claimed[1])
        reply = await scripts.advance(queue.line, [*shared, job, job], ["", "w1", 0, "w1 t2", 9000, 2, *stale, *ours])
        assert reply[2:] == [[0, 1], [], [job.encode(), b"1 enough"], 0, 0]
        await queue.pause()
        assert (await scripts.advance(queue.line, shared, ["", "w1", 5, "w1 t3", 9000, 2]))[5] == 1
        await queue.resume()

    async def test_due_returns_what_is_due_and_when_the_next_one_is(self, queue: Queue) -> None:
        """Now, name, due time and record of each; then the first that is later, or that the limit has left out."""
        redis: Any = queue.redis
        keys = [queue.keys.schedules, queue.keys.schedules_due]
        assert await scripts.schedules_due(queue.line, keys, [1_000, 500]) == [1_000, [], b""]
        await redis.hset(queue.keys.schedules, mapping={"a": "A", "b": "B"})
        await redis.zadd(queue.keys.schedules_due, {"a": 900, "gone": 950, "b": 1_001})
        assert await scripts.schedules_due(queue.line, keys, [1_000, 1]) == [1_000, [b"a", b"900", b"A"], b"950"]
        assert await scripts.schedules_due(queue.line, keys, [1_000, 9]) == [1_000, [b"a", b"900", b"A"], b"1001"]
        assert await redis.zrange(queue.keys.schedules_due, 0, -1) == [b"a", b"b"]

    async def test_fire_returns_an_answer_for_each_row(self, queue: Queue) -> None:
        """1 done, 0 refused as due time or record is another or has fired, 2 skipped; and the next due time."""
        redis: Any = queue.redis
        await redis.hset(queue.keys.schedules, mapping={"a": "A", "b": "B"})
        await redis.zadd(queue.keys.schedules_due, {"a": 900, "b": 900})
        a, b = (hashlib.sha1(record, usedforsecurity=False).hexdigest() for record in (b"A", b"B"))
        words = ["w1", queue.keys.schedules_wake]

        async def fire(*rows: tuple[Any, ...]) -> Any:
            ids = [queue.job_id(f"{row[0]}:{row[5]}") for row in rows]
            args = [field for row in rows for field in row]
            return await scripts.schedules_fire(queue.line, [*queue.keys.of_fire, *ids], [1_000, *words, *args])

        first = ("a", 900, a, 1_100, 0, 800, "missed", "", 0), ("a", 900, a, 1_100, 0, 900, "", "{}", 0.9)
        other = ("b", 900, a, 1_200, 0, 900, "", "{}", 0.9)
        assert await fire(*first, other) == [1_000, b"900", [1, 1, 0]]
        assert await fire(first[1], ("b", 900, b, 1_200, 0, 900, "", "{}", 1.5)) == [1_000, b"1100", [0, 1]]
        assert await fire(("a", 1_100, a, 1_300, 0, 900, "", "{}", 0.9)) == [1_000, b"1200", [0]]
        assert await fire(("a", 1_300, a, 1_400, 0, 950, "", "{}", 0.9)) == [1_000, b"1200", [2]]
        assert await redis.zrange(queue.keys.incomplete, 0, -1, withscores=True) == [
            (b"saq:job:default:a:900", 0.0),
            (b"saq:job:default:b:900", 1.5),
        ]
        assert await redis.lrange(queue.keys.queued, 0, -1) == [b"saq:job:default:a:900"]
        assert [fired.due_ms for fired in await queue.schedules.history("a")] == [950, 900, 800]

    async def test_lease_returns_the_workers_whose_lease_ran_out(self, queue: Queue, echo: AnyTask) -> None:
        """A lease has run out at the very millisecond at which it ends; and it tells of work that is due."""
        keys = queue.keys
        names = [keys.leases, keys.saq_sweep_lock, keys.saq_schedule_lock, keys.queued, keys.incomplete]
        assert await scripts.lease(queue.line, names, [1_000, "w1", 500]) == [[], 0]
        assert await scripts.lease(queue.line, names, [1_499, "w2", 500]) == [[], 0]
        assert await scripts.lease(queue.line, names, [1_500, "w2", 500]) == [[b"w1"], 0]
        await queue.enqueue("echo", text="hi", scheduled=2)
        assert await scripts.lease(queue.line, names, [1_501, "w2", 500]) == [[b"w1"], 0]
        assert await scripts.lease(queue.line, names, [2_000, "w2", 500]) == [[b"w1"], 1]
        await queue.enqueue("echo", text="hi")
        assert await scripts.lease(queue.line, names, [1_501, "w2", 500]) == [[b"w1"], 1]


class TestCache:
    async def test_a_flushed_script_cache_has_no_effect(self, queue: Queue, echo: AnyTask) -> None:
        """A server that was restarted knows no script; each is sent again in full."""
        redis: Any = queue.redis
        for operation in OPERATIONS.values():
            await redis.script_flush()
            await operation(queue)
            await redis.flushall()
        keeper = LeaseKeeper(queue, "w1", lambda: None)
        await redis.script_flush()
        keeper.renew()
        keeper.stop()

        async with working(queue):
            first: Job[Any] | None = await queue.enqueue("echo", text="one")
            await ended(first)
            await redis.script_flush()
            second: Job[Any] | None = await queue.enqueue("echo", text="two")
            await ended(second)
        assert [job.result for job in (first, second) if job] == ["one", "two"]
