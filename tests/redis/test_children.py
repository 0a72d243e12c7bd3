"""Functions in processes of their own: what goes in and comes out, who may end them, and what dies with whom."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_process
import pytest
from saq.job import Status
from tests import process_tasks as tasks
from tests.processes import clean_environment, is_running, running
from tests.support import ended, eventually, left_behind, lists, working

from knapsaq import (
    Client,
    Context,
    JobFailedError,
    JobRevokedError,
    LineageFilter,
    Middleware,
    Queue,
    Registry,
    Settings,
    Snooze,
    connect,
)
from knapsaq.lineage import CORRELATION
from knapsaq.middleware import CallNext, Layers
from knapsaq.options import CallOptions
from knapsaq.worker import Worker

PATIENCE = 30.0
"""Seconds in which a process surely starts, also on a busy machine."""


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[Client]:
    """A connection of the tasks' own registry."""
    async with connect(settings, registry=tasks.registry) as client:
        await client.queue().redis.flushall()
        yield client


@pytest.fixture
async def worker(queue: Queue) -> AsyncIterator[Worker]:
    """A worker that runs."""
    async with working(queue, cancellation_hard_deadline_s=0.1) as worker:
        yield worker


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A file into which functions write who they are."""
    return tmp_path / "notes"


def text_in(notes: Path) -> str:
    """Return what a file has in it; nothing if it is not there."""
    return notes.read_text() if notes.exists() else ""


async def pid_in(notes: Path) -> int:
    """Return the process that a function has noted."""
    return int(await eventually(lambda: text_in(notes), within=PATIENCE))


async def gone(pid: int) -> None:
    """Wait until a process has ended."""
    await eventually(lambda: not is_running(pid), within=PATIENCE)


@pytest.mark.usefixtures("worker")
class TestCalls:
    async def test_it_runs_in_another_process_which_serves_the_next_job_too(self, client: Client) -> None:
        """Starting one costs time, so it stays for a while."""
        pids = [await (await tasks.whoami.enqueue()).wait(PATIENCE) for _ in range(3)]
        assert len(set(pids)) == 1
        assert os.getpid() not in pids

    async def test_arguments_arrive_as_the_annotated_types_and_results_are_what_json_can_carry(
        self, client: Client
    ) -> None:
        """As everywhere."""
        job = await tasks.typed.enqueue(
            tasks.UUID("0b5b3e9c-7cf4-4a33-a4a0-2b0f8e8de4f1"), tasks.date(2026, 3, 1), pages={2, 1}
        )
        assert await job.wait(PATIENCE) == ["UUID", "2026-03-02", [1, 2]]
        unstorable = await tasks.opaque.enqueue()
        await ended(unstorable)
        assert unstorable.status is Status.COMPLETE
        assert "the result of task 'opaque' cannot be stored" in (unstorable.error or "")

    async def test_arguments_that_do_not_fit_are_not_tried_again(self, client: Client, queue: Queue) -> None:
        """They are checked where they are used; a producer may be of another release."""
        producer = Queue(queue.redis, "default", settings=queue.settings)
        job = await producer.enqueue("typed", report="no uuid", day="2026-03-01", pages=[1], retries=5)
        assert job is not None
        await ended(job)
        assert (job.status, job.attempts) == (Status.FAILED, 1)
        assert "argument 'report'" in (job.error or "")

    async def test_the_context_tells_what_can_be_known_there(
        self, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Records of its logger appear in the worker's log; connections are not to be had."""
        job = await tasks.context.using(headers={"tenant": "acme"}).enqueue()
        assert await job.wait(PATIENCE) == [job.key, 0, {"tenant": "acme"}, False, False, job.key]
        [record] = [each for each in caplog.records if each.getMessage() == "page 7"]
        assert (record.name, record.levelname) == ("knapsaq.task.context", "WARNING")
        assert (vars(record)["job"], vars(record)["task"]) == (job.key, "context")
        assert "not asked for" not in caplog.text

        with pytest.raises(JobFailedError, match=r"ctx\['queue'\] is not to be had in a process"):
            await (await tasks.reaches_out.enqueue()).wait(PATIENCE)

    async def test_a_step_of_a_workflow_gets_the_result_of_the_last(self, client: Client) -> None:
        """Results are read in the worker, which has the connection."""
        assert await (await (tasks.doubled.s(2) | tasks.doubled.s()).enqueue()).wait(PATIENCE) == 8

    async def test_its_line_is_known_there_and_to_what_it_logs(
        self, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Parent, root and headers; records of any logger are told apart by a filter in the worker."""
        caplog.handler.addFilter(LineageFilter())
        job = tasks.lineage.build_job(CallOptions(headers={CORRELATION: "c-1"}), (), {})
        job.note(parent="mother", root="eve")
        job = await client.queue().submit(job)
        assert await job.wait(PATIENCE) == ["mother", "eve", {CORRELATION: "c-1"}]
        [record] = [each for each in caplog.records if each.getMessage() == "seen"]
        facts = vars(record)
        assert (facts["job"], facts["task"], facts[CORRELATION]) == (job.key, "lineage", "c-1")

    async def test_its_progress_is_seen_while_it_runs_and_at_its_end(
        self, client: Client, queue: Queue, notes: Path
    ) -> None:
        """The newest value is told though the function then works on in silence; the last one comes with the end."""
        job = await tasks.counting.enqueue(str(notes))
        async for update in job.updates():
            if dict(update.meta) == {"current": 499, "total": 1000, "file": "499.csv"}:
                assert update.progress == 0.499
                await anyio.Path(notes).write_text("go on")
        assert (update.ended, update.progress, dict(update.meta)) == (True, 1.0, {"current": 1000, "total": 1000})

    async def test_progress_that_is_none_is_the_functions_own_error(self, client: Client) -> None:
        """Where it calls."""
        with pytest.raises(JobFailedError, match="argument 'current'"):
            await (await tasks.misreporting.enqueue()).wait(PATIENCE)

    async def test_middlewares_around_it_see_values_and_signals_as_everywhere(
        self, client: Client, notes: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever comes over the line; a result that nobody changed keeps the reason why it was not stored."""
        seen: list[Any] = []

        class Sees(Middleware):
            async def around(self, ctx: Context, call_next: CallNext) -> Any:
                try:
                    result = await call_next()
                except Snooze as signal:
                    seen.append(signal.after)
                    raise
                seen.append(result)
                return f"[{result}]" if isinstance(result, str) else result

        monkeypatch.setattr(tasks.registry, "layers", Layers())
        tasks.registry.use(Sees())
        assert await (await tasks.signalling.enqueue("snooze", str(notes))).wait(PATIENCE) == "[snooze 0]"
        unstorable = await tasks.opaque.enqueue()
        await ended(unstorable)
        assert "the result of task 'opaque' cannot be stored" in (unstorable.error or "")
        assert seen == [0.001, "snooze 0", None]

    @pytest.mark.parametrize(
        ("kind", "attempts", "error"),
        [
            ("unpicklable", 3, "UnpicklableError: noluck"),
            ("permission", 1, "PermissionError: permission"),
            ("exit", 1, "SystemExit: 3"),
            ("killed", 3, "ProcessDiedError: the process of task 'failing' is gone: it was killed"),
        ],
    )
    async def test_errors_come_back_as_text_and_the_tasks_options_decide(
        self, client: Client, notes: Path, kind: str, attempts: int, error: str
    ) -> None:
        """``retry_on`` and ``give_up_on`` count as everywhere; a process that dies takes no other job along."""
        neighbour = await tasks.asking.enqueue(str(notes.with_name("neighbour")))
        await pid_in(notes.with_name("neighbour"))
        job = await tasks.failing.enqueue(kind, str(notes))
        with pytest.raises(JobFailedError) as caught:
            await job.wait(PATIENCE)
        assert error in caught.value.error
        assert text_in(notes).split() == [str(number) for number in range(attempts)]
        assert not (await neighbour.get_queue().job(neighbour.key)).ended  # type: ignore[union-attr]
        await neighbour.revoke()
        await ended(neighbour)

    @pytest.mark.parametrize(("kind", "result"), [("retry", "retry 1"), ("snooze", "snooze 0")])
    async def test_a_task_chooses_its_outcome(self, client: Client, notes: Path, kind: str, result: str) -> None:
        """``Retry`` and ``Snooze`` as everywhere."""
        assert await (await tasks.signalling.enqueue(kind, str(notes))).wait(PATIENCE) == result

    async def test_a_task_discards_its_job(self, client: Client, notes: Path) -> None:
        """Likewise."""
        with pytest.raises(JobRevokedError, match="discarded: pointless"):
            await (await tasks.signalling.enqueue("discard", str(notes))).wait(PATIENCE)


@pytest.mark.usefixtures("worker")
class TestEnding:
    async def test_the_soft_limit_wakes_it_also_in_a_call_of_c(self, client: Client) -> None:
        """A process has a signal for that, so it need not wait until ``time.sleep`` returns."""
        assert await (await tasks.reminded.enqueue()).wait(PATIENCE) == "woken after 0.3 s"

    async def test_at_the_hard_limit_it_is_killed(self, client: Client, notes: Path) -> None:
        """And its job fails with the reason."""
        job = await tasks.overdue.enqueue(str(notes))
        with pytest.raises(JobFailedError, match=r"ran over its limit of 1 s"):
            await job.wait(PATIENCE)
        await gone(await pid_in(notes))

    async def test_one_that_cannot_ask_is_killed_when_it_is_revoked(self, client: Client, notes: Path) -> None:
        """At once, and the next job gets another process."""
        job = await tasks.endless.enqueue(str(notes))
        pid = await pid_in(notes)
        await job.revoke(reason="enough")
        with pytest.raises(JobRevokedError, match="enough"):
            await job.wait(PATIENCE)
        await gone(pid)
        assert await (await tasks.whoami.enqueue()).wait(PATIENCE) != pid

    async def test_one_that_asks_hears_of_it_and_cleans_up(self, client: Client, notes: Path) -> None:
        """What it returns does not count, and its process goes on."""
        job = await tasks.asking.enqueue(str(notes))
        pid = await pid_in(notes)
        await job.revoke(reason="enough")
        with pytest.raises(JobRevokedError, match="enough"):
            await job.wait(PATIENCE)
        assert text_in(notes.with_suffix(".clean")) == "up"
        assert await (await tasks.whoami.enqueue()).wait(PATIENCE) == pid

    async def test_to_terminate_kills_one_that_could_ask(self, client: Client, queue: Queue, notes: Path) -> None:
        """Who does not answer a request can still be ended."""
        job = await tasks.deaf.enqueue(str(notes))
        pid = await pid_in(notes)
        await job.revoke()
        assert is_running(pid)
        await job.revoke(terminate=True, reason="at once")
        with pytest.raises(JobRevokedError, match="at once"):
            await job.wait(PATIENCE)
        await gone(pid)
        assert await left_behind(queue) == []

    async def test_ctrl_c_and_sigterm_are_the_workers_to_answer(self, client: Client, notes: Path) -> None:
        """A terminal and systemd send them to every process; the grace period holds for these too."""
        job = await tasks.asking.enqueue(str(notes))
        pid = await pid_in(notes)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        await job.revoke()
        await ended(job)
        assert text_in(notes.with_suffix(".clean")) == "up"


class TestStopping:
    @pytest.mark.parametrize("task", [tasks.endless, tasks.deaf], ids=lambda task: task.name)
    async def test_what_outlives_the_grace_is_killed_and_its_job_put_back(
        self, client: Client, queue: Queue, notes: Path, task: Any
    ) -> None:
        """No attempt is spent, and no process is left."""
        hasty = queue.settings.with_values(shutdown_grace=0.0)
        async with working(queue, settings=hasty, cancellation_hard_deadline_s=0.1):
            job = await task.enqueue(str(notes))
            pid = await pid_in(notes)
        await gone(pid)
        stored = await queue.job(job.key)
        assert stored is not None
        assert (stored.status, stored.attempts) == (Status.QUEUED, 0)
        await job.revoke()

    async def test_one_that_is_cancelled_before_it_begins_never_does(
        self, client: Client, queue: Queue, notes: Path
    ) -> None:
        """Its process has only just been started; it hears that nobody waits, and serves the next job."""
        async with working(queue) as worker:
            job = await tasks.endless.enqueue(str(notes))
            await eventually(lambda: worker._executor._children._calls)
            await job.revoke()
            await ended(job)
            await (await tasks.whoami.enqueue()).wait(PATIENCE)
        assert text_in(notes) == ""

    async def test_one_that_nobody_uses_ends(self, client: Client, queue: Queue) -> None:
        """And the job that comes then gets another one."""
        async with working(queue) as worker:
            worker._executor._children.idle_seconds = 0.05
            pid = await (await tasks.whoami.enqueue()).wait(PATIENCE)
            await gone(pid)
            assert await (await tasks.whoami.enqueue()).wait(PATIENCE) != pid

    async def test_jobs_wait_for_a_process_without_losing_time(
        self, client: Client, queue: Queue, notes: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """There are as many as processors, for all workers of a loop."""
        caplog.set_level("DEBUG", logger="knapsaq")
        async with working(queue) as worker:
            count = os.cpu_count() or 1
            busy = [await tasks.asking.enqueue(str(notes.with_name(f"{number}"))) for number in range(count)]
            for number in range(count):
                await pid_in(notes.with_name(f"{number}"))
            late = await tasks.whoami.using(timeout=5).enqueue()
            await eventually(lambda: f"waits, as all {count} processes are busy" in caplog.text)
            [late_one] = [one for one in worker._running.values() if one.claim.job.key == late.key]
            deadline = late_one.claim.job.deadline
            assert deadline is not None
            assert deadline.when is None
            await queue.revoke([job.key for job in busy])
            await late.wait(PATIENCE)


class TestDeaths:
    async def test_one_that_died_before_the_function_began_is_replaced(
        self, client: Client, queue: Queue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing has happened yet, so that costs no attempt; where none can begin, the job says so."""
        run_sync, broken = anyio.to_process.run_sync, [True, True, False, True, True, True]

        async def fragile(*args: Any, **options: Any) -> Any:
            if broken.pop(0):
                raise anyio.BrokenWorkerProcess
            return await run_sync(*args, **options)

        monkeypatch.setattr(anyio.to_process, "run_sync", fragile)
        async with working(queue):
            job = await tasks.whoami.enqueue()
            assert isinstance(await job.wait(PATIENCE), int)
            assert job.attempts == 1
            with pytest.raises(JobFailedError, match="none could begin, in 3 tries"):
                await (await tasks.whoami.enqueue()).wait(PATIENCE)

    async def test_its_worker_takes_it_along(self, client: Client, queue: Queue, notes: Path, broker_url: str) -> None:
        """Killed as it is, the worker can tell nobody; the job is run again elsewhere, so it must not go on here."""
        program = (
            "import asyncio, sys; from knapsaq import Settings, connect; from knapsaq.testing import running_worker\n"
            "from tests.process_tasks import registry\n"
            "async def main():\n"
            "    async with connect(Settings(broker_url=sys.argv[1]), registry=registry):\n"
            "        async with running_worker(registry=registry):\n"
            "            await asyncio.Event().wait()\n"
            "asyncio.run(main())"
        )
        root = Path(__file__).parents[2]
        short = tempfile.TemporaryDirectory(prefix="k")  # the killed worker leaves something behind
        env = clean_environment(PYTHONPATH=f"{root / 'backend'}:{root}", TMPDIR=short.name)
        with short, running([sys.executable, "-c", program, broker_url], env, notes.parent) as worker:
            job = await tasks.endless.enqueue(str(notes))
            pid = await pid_in(notes)
            assert pid != worker.pid
            worker.signal(signal.SIGKILL)
            await gone(pid)
        assert job.key in (await lists(queue))["active"]
        await queue.redis.flushall()


class TestDefinition:
    """What another process could not find is refused before any job is."""

    def test_a_function_inside_another_one(self, registry: Registry) -> None:
        """Or a lambda: neither has a name in its module."""

        def inner() -> None: ...

        for function in (inner, lambda: None):
            with pytest.raises(Exception, match="run='process' needs a function at the top of a module"):
                registry.task(name="t", run="process")(function)

    def test_a_coroutine_function(self, registry: Registry) -> None:
        """There is no loop for it."""

        async def f() -> None: ...

        with pytest.raises(Exception, match="run='process' needs a plain `def`"):
            registry.task(run="process")(f)

    async def test_one_that_its_module_does_not_have_under_its_name(self, queue: Queue, registry: Registry) -> None:
        """The worker does not start."""
        registry.task(name="other", run="process")(tasks.note_and_wait)
        with pytest.raises(Exception, match=r"does not find it as tests\.process_tasks\.note_and_wait; define it"):
            Worker(queue, registry=registry)

    async def test_one_with_a_provider(self, queue: Queue, registry: Registry) -> None:
        """What it makes could not be handed over."""
        registry.provide({"notes": Path})
        registry.task(name="other", run="process")(tasks.note_and_wait)
        with pytest.raises(Exception, match="run='process' cannot be given 'notes' by a provider"):
            Worker(queue, registry=registry)
