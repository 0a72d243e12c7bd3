from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from tests import support
from tests.processes import BIN, Program, children_of, clean_environment, eventually, is_running, processes, running

from knapsaq import Client, Registry, Settings, connect, supervisor
from knapsaq.routes import TaskRoutes
from knapsaq.supervisor import Supervisor, WorkerPlan, _end_leases, _marked

GRACE = 1

JOBS = """
import asyncio
import os
import threading
import time
from pathlib import Path

from knapsaq import Registry

registry = Registry()


@registry.task(queue="night")
async def nap(seconds: float) -> str:
    Path("napping").write_text(f"{os.getpid()}\\n")
    await asyncio.sleep(seconds)
    return "rested"


@registry.task(queue="night", run="process")
def crunch(seconds: float) -> None:
    Path("crunching").write_text(f"{os.getpid()}\\n")
    time.sleep(seconds)


@registry.task(queue="night")
def block(seconds: float) -> None:
    Path("blocking").touch()
    time.sleep(seconds)


@registry.task(queue="night")
def pid() -> int:
    return os.getpid()
"""

NAMED = """
from knapsaq import Settings
from knapsaq.routes import WorkerBuilder
from night_jobs import registry

worker = WorkerBuilder().set_name("depot").set_settings(Settings()).set_registry(registry).create()
"""


class Start(Protocol):
    """Starts ``knapsaq ... worker`` with these words."""

    def __call__(self, *words: str, app: str = "night_jobs", **env: str) -> AbstractContextManager[Program]:
        """Run them while a block runs."""


@pytest.fixture
def start(tmp_path: Path, broker_url: str) -> Start:
    """Run workers in a folder of their own while a block runs."""
    (tmp_path / "night_jobs.py").write_text(JOBS)
    (tmp_path / "named_jobs.py").write_text(NAMED)

    @contextmanager
    def start(*words: str, app: str = "night_jobs", **env: str) -> Iterator[Program]:
        settings = {
            "KNAPSAQ_BROKER_URL": broker_url,
            "KNAPSAQ_QUEUES": "night,idle",
            "KNAPSAQ_SHUTDOWN_GRACE": str(GRACE),
            "KNAPSAQ_LOG_LEVEL": "INFO",
        }
        command = [str(BIN / "knapsaq"), "-A", app, "worker", *words]
        with running(command, clean_environment(**settings | env), tmp_path) as program:
            yield program

    return start


@pytest.fixture
async def night(broker_url: str, tmp_path: Path) -> AsyncIterator[Client]:
    """A connection to the workers' queues, which are empty at first."""
    settings = Settings(broker_url=broker_url, queues=("night", "idle"), _env_file=None)
    async with connect(settings, registry=Registry()) as client:
        await client.queue("night").redis.flushall()
        yield client


async def enqueue(client: Client, name: str, **kwargs: object) -> str:
    """Queue a job of a task that only the workers know, and return its key."""
    queue = client.queue("night")
    queue.registry = None
    job = await queue.enqueue(name, **kwargs)
    assert job is not None
    return job.key


async def status(client: Client, key: str) -> str:
    job = await client.queue("night").job(key)
    assert job is not None
    return job.status.value


class TestOneProcess:
    async def test_sigterm_lets_a_short_job_end_and_puts_a_long_one_back(
        self, start: Start, night: Client, tmp_path: Path
    ) -> None:
        """The process that runs the jobs is the one that was started, and it ends within the grace period."""
        with start() as worker:
            worker.says("started: queue", times=2)
            short, long = await enqueue(night, "nap", seconds=0.3), await enqueue(night, "nap", seconds=600)
            eventually("both run", (tmp_path / "napping").exists)
            assert children_of(worker.pid) == []
            worker.signal()
            assert worker.ends(GRACE + 5) == 0
        assert [await status(night, key) for key in (short, long)] == ["complete", "queued"]

    async def test_a_second_signal_hurries(self, start: Start, night: Client, tmp_path: Path) -> None:
        """The job is put back at once; nobody waits for the grace period."""
        with start(KNAPSAQ_SHUTDOWN_GRACE="600") as worker:
            worker.says("started: queue", times=2)
            key = await enqueue(night, "nap", seconds=600)
            eventually("it runs", (tmp_path / "napping").exists)
            worker.signal(signal.SIGINT)
            worker.says("stops: 1 jobs have 600 s")
            worker.signal(signal.SIGINT)
            assert worker.ends() == 0
        assert await status(night, key) == "queued"

    async def test_a_thread_that_does_not_end_does_not_keep_the_process(
        self, start: Start, night: Client, tmp_path: Path
    ) -> None:
        """Python waits for threads at its end, and cannot stop them."""
        with start(KNAPSAQ_SHUTDOWN_GRACE="0") as worker:
            worker.says("started: queue", times=2)
            key = await enqueue(night, "block", seconds=600)
            eventually("it blocks", (tmp_path / "blocking").exists)
            worker.signal()
            assert worker.ends(10) == 0
            assert "the process ends without" in worker.output()
        assert await status(night, key) == "queued"


class TestSeveralProcesses:
    async def test_sigterm_to_the_parent_ends_every_child_within_the_grace_period(
        self, start: Start, night: Client, tmp_path: Path
    ) -> None:
        """Two children with two queues each; the running job is put back, and nothing is left."""
        with start("--workers", "2", "--queues", "night,idle") as parent:
            parent.says("started: queue", times=4)
            children = children_of(parent.pid)
            key = await enqueue(night, "nap", seconds=600)
            eventually("it runs", (tmp_path / "napping").exists)
            assert len(children) == 2
            parent.signal()
            assert parent.ends(GRACE + 5) == 0
            assert not any(is_running(child) for child in children)
            assert parent.output().count("stops: ") == 4
        assert await status(night, key) == "queued"

    async def test_ctrl_c_reaches_the_parent_alone_who_passes_it_on_once(self, start: Start, night: Client) -> None:
        """The terminal signals a whole process group; in a child it would count as the second signal, which hurries."""
        with start("--workers", "2") as parent:
            parent.says("started: queue", times=4)
            assert {os.getsid(child) for child in children_of(parent.pid)}.isdisjoint({os.getsid(parent.pid)})
            parent.signal(signal.SIGINT)
            assert parent.ends() == 0

    async def test_the_children_of_a_killed_parent_stop_by_themselves(
        self, start: Start, night: Client, tmp_path: Path
    ) -> None:
        """As gracefully as if they had been told: the job is put back."""
        with start("--workers", "2") as parent:
            parent.says("started: queue", times=4)
            children = children_of(parent.pid)
            key = await enqueue(night, "nap", seconds=600)
            eventually("it runs", (tmp_path / "napping").exists)
            os.kill(parent.pid, signal.SIGKILL)
            eventually("the children are gone", lambda: not any(is_running(child) for child in children))
            assert parent.output().count("the parent process is gone") == 2
        assert await status(night, key) == "queued"

    async def test_a_child_that_dies_is_replaced_and_its_end_is_logged(self, start: Start, night: Client) -> None:
        """One line names the process and the signal."""
        with start("--workers", "2", "--queues", "night") as parent:
            parent.says("started: queue", times=2)
            victim, other = children_of(parent.pid)
            os.kill(victim, signal.SIGKILL)
            parent.says(f"worker process {victim} ended with signal SIGKILL; another one starts in 1 s")
            parent.says("started: queue", times=3)
            assert other in children_of(parent.pid)
            assert len(children_of(parent.pid)) == 2
            parent.signal()
            assert parent.ends() == 0

    @pytest.mark.parametrize(("task", "app"), [("nap", "night_jobs"), ("crunch", "night_jobs"), ("nap", "named_jobs")])
    async def test_the_jobs_of_a_child_that_dies_do_not_wait_for_its_lease(
        self, start: Start, night: Client, tmp_path: Path, task: str, app: str
    ) -> None:
        """They run again in another process, and what ran of them, in a process of its own too, has ended."""

        def pid_of_other(than: int) -> int | None:
            note = tmp_path / {"nap": "napping", "crunch": "crunching"}[task]
            said = note.read_text() if note.exists() else ""
            return int(said) if said.endswith("\n") and int(said) != than else None

        with start("--workers", "2", "--queues", "night", app=app, KNAPSAQ_LEASE="600") as parent:
            parent.says("started: queue", times=2)
            key = await enqueue(night, task, seconds=600)
            first = eventually("it runs", lambda: pid_of_other(0))
            os.kill(first if task == "nap" else processes()[first].parent, signal.SIGKILL)
            eventually("it runs again", lambda: pid_of_other(first), why=parent.output)
            assert not is_running(first)
            parent.signal()
            parent.ends(GRACE + 10)
        assert await status(night, key) == "queued"

    async def test_the_jobs_of_a_child_that_is_killed_as_it_does_not_stop_do_not_wait_either(
        self, start: Start, night: Client, tmp_path: Path
    ) -> None:
        """Whoever works next has them, though the parent is on its way out."""
        with start("--workers", "2", "--queues", "night", KNAPSAQ_LEASE="600") as parent:
            parent.says("started: queue", times=2)
            key = await enqueue(night, "nap", seconds=600)
            eventually("it runs", lambda: (tmp_path / "napping").exists() and (tmp_path / "napping").read_text())
            os.kill(int((tmp_path / "napping").read_text()), signal.SIGSTOP)
            for answer in ("stopping 2 worker processes", "hurrying", "does not stop and is killed"):
                parent.signal()
                parent.says(answer)
            assert parent.ends() == 1
        (tmp_path / "napping").unlink()
        with start("--queues", "night", KNAPSAQ_LEASE="600") as worker:
            eventually("it runs again", (tmp_path / "napping").exists, why=worker.output)
            worker.signal()
            worker.ends()
        assert await status(night, key) == "queued"

    async def test_a_child_that_ignores_the_order_is_killed_and_the_exit_code_tells(
        self, start: Start, night: Client
    ) -> None:
        """A stopped process stands for a loop that a task blocks; a third signal does not wait for the limit."""
        with start("--workers", "2", "--queues", "idle") as parent:
            parent.says("started: queue", times=2)
            stuck, _ = children_of(parent.pid)
            os.kill(stuck, signal.SIGSTOP)
            for answer in ("stopping 2 worker processes", "hurrying", "does not stop and is killed"):
                parent.signal()
                parent.says(answer)
            assert parent.ends() == 1
            assert f"worker process {stuck} does not stop and is killed" in parent.output()
            assert not is_running(stuck)

    def test_one_that_cannot_work_as_configured_ends_the_parent(self, start: Start, tmp_path: Path) -> None:
        """Starting it again would not help: exit code 2, with the reason, and no traceback."""
        source = (
            "from knapsaq import INJECTED, Registry\nregistry = Registry()\n"
            "@registry.task(queue='night')\nasync def f(session=INJECTED) -> None: ...\n"
        )
        (tmp_path / "unfit_jobs.py").write_text(source)
        with start("--workers", "2", app="unfit_jobs") as parent:
            assert parent.ends() == 2
            assert "asks for 'session', which nobody provides" in parent.output()
            assert "Traceback" not in parent.output()


QUICK = "open('starts', 'a').write('x'); raise SystemExit(1)"
PLAIN = "import time; open('starts', 'a').write('x'); time.sleep(600)"
POLITE = f"import signal; signal.signal(signal.SIGTERM, lambda *_: exit(0)); {PLAIN}"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {PLAIN}"


@asynccontextmanager
async def supervised(
    source: str, on_death: Callable[[str], Coroutine[Any, Any, None]], *, reload: bool = False
) -> AsyncIterator[Supervisor]:
    """Keep a process running that does what ``source`` says, without any grace; it has ended after the block."""
    one = Supervisor(1, grace=0, reload=reload, command=[sys.executable, "-c", source], on_death=on_death)
    running = asyncio.create_task(one.run())
    try:
        yield one
    finally:
        for _ in range(3):
            one.stop()
        async with asyncio.timeout(10):
            await running


class TestDeath:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The working directory, where ``starts`` has a letter for each start."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "starts").touch()
        return tmp_path

    @pytest.mark.parametrize("how", ["stop", "reload"])
    async def test_whoever_is_killed_as_it_does_not_stop_has_died(self, folder: Path, how: str) -> None:
        """What is to be done then is done before the parent ends."""
        marks: list[str] = []

        async def note(mark: str) -> None:
            await asyncio.sleep(0.05)
            marks.append(mark)

        def change() -> bool:
            (folder / "changed.py").write_text("")
            return bool(marks)

        async with supervised(STUBBORN, note, reload=how == "reload") as one:
            await support.eventually((folder / "starts").read_text)
            if how == "reload":
                await support.eventually(change, within=10)
            one.stop()
        assert marks

    @pytest.mark.parametrize("source", [PLAIN, POLITE])
    async def test_whoever_stops_when_told_has_not_died(self, folder: Path, source: str) -> None:
        """Its workers have given their leases up, or it had none yet."""
        marks: list[str] = []

        async def note(mark: str) -> None:
            marks.append(mark)

        one = Supervisor(1, grace=60, command=[sys.executable, "-c", source], on_death=note)
        running = asyncio.create_task(one.run())
        await support.eventually((folder / "starts").read_text)
        one.stop()
        assert await running == 0
        assert marks == []

    async def test_a_server_that_does_not_answer_holds_nothing_up(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither the process that takes the place of the dead one, nor the end of the parent."""
        monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0)
        monkeypatch.setattr(supervisor, "FAREWELL_LIMIT", 0.05)
        given_up: list[str] = []

        async def hang(mark: str) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                given_up.append(mark)

        async with supervised(QUICK, hang):
            await support.eventually(lambda: len((folder / "starts").read_text()) > 1, within=10)
            assert given_up == []
        assert given_up

    async def test_a_change_meanwhile_is_not_missed(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that changes while a dead process' leases are ended starts the next one at once."""
        monkeypatch.setattr(supervisor, "FIRST_PAUSE", 600)
        monkeypatch.setattr(supervisor, "FAREWELL_LIMIT", 0.05)
        marks: list[str] = []

        async def hang(mark: str) -> None:
            marks.append(mark)
            await asyncio.Event().wait()

        def change() -> bool:
            (folder / "changed.py").write_text("")
            return len((folder / "starts").read_text()) > 1

        async with supervised(QUICK, hang, reload=True):
            await support.eventually(lambda: marks)
            await support.eventually(change, within=10)


class TestLeasesOfTheDead:
    @pytest.fixture
    def plan(self, night: Client) -> WorkerPlan:
        """A plan for the queues, with tasks that cannot be had."""
        routes = TaskRoutes()
        routes.register("nowhere.task", queue="night")
        registry = Registry()
        registry.include(routes)
        return WorkerPlan(settings=night.settings, registry=registry, name="depot")

    async def ended(self, client: Client, queue: str) -> list[bytes]:
        """Return the workers whose leases have run out."""
        redis: Any = client.queue(queue).redis
        found: list[bytes] = await redis.zrangebyscore(client.queue(queue).keys.leases, 0, 0)
        return found

    async def test_they_are_those_of_the_name_and_the_mark(self, night: Client, plan: WorkerPlan) -> None:
        """Nobody else's; and the tasks are not needed for it."""
        leases = {"depot-mark-1": 9e15, "mark-1": 9e15, "depot-mark2-1": 9e15, "depot-1": 9e15}
        for name in ("night", "idle"):
            await night.queue(name).redis.zadd(night.queue(name).keys.leases, leases)
        await _end_leases(plan, "mark")
        assert [await self.ended(night, name) for name in ("night", "idle")] == [[b"depot-mark-1"]] * 2

    async def test_a_queue_that_fails_does_not_keep_the_others(
        self, night: Client, plan: WorkerPlan, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The first one's key is of another type; the log has its error once."""
        caplog.set_level("INFO")
        await night.queue("night").redis.set(night.queue("night").keys.leases, "?")
        await night.queue("idle").redis.zadd(night.queue("idle").keys.leases, {"depot-mark-1": 9e15})
        await _end_leases(plan, "mark")
        assert await self.ended(night, "idle") == [b"depot-mark-1"]
        assert [record.getMessage().count("WRONGTYPE") for record in caplog.records] == [1]
        await night.queue("night").redis.delete(night.queue("night").keys.leases)

    async def test_a_server_that_is_away_is_told_of_on_a_line(self, caplog: pytest.LogCaptureFixture) -> None:
        """It does not claim that there were leases, as a process that never reached the server had none."""
        caplog.set_level("INFO")
        plan = WorkerPlan(settings=Settings(broker_url="redis://:hunter2@127.0.0.1:1/0", _env_file=None))
        await _end_leases(plan, "mark")
        [record] = caplog.records
        assert record.levelname == "INFO"
        said = (
            "leases of workers mark-..., if there are any, run out by themselves: broker redis://:***@127.0.0.1:1/0: "
        )
        assert record.getMessage().startswith(said)
        assert "hunter2" not in caplog.text

    async def test_a_server_that_says_nothing_is_given_up(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The log says after how long."""
        caplog.set_level("INFO")
        monkeypatch.setattr(supervisor, "LEASES_LIMIT", 0.1)
        silent = await asyncio.start_server(lambda _reader, writer: writers.append(writer), "127.0.0.1", 0)
        writers: list[asyncio.StreamWriter] = []
        port = silent.sockets[0].getsockname()[1]
        await _end_leases(WorkerPlan(settings=Settings(broker_url=f"redis://127.0.0.1:{port}/0", _env_file=None)), "m")
        assert "run out by themselves: no answer within 0.1 s" in caplog.text
        for writer in writers:
            writer.close()
        silent.close()
        await silent.wait_closed()

    @pytest.mark.parametrize(
        ("name", "mark", "beginning"), [(None, "m", "m"), ("depot", "m", "depot-m"), ("depot", "", "depot")]
    )
    def test_the_ids_begin_with_name_and_mark(self, name: str | None, mark: str, beginning: str) -> None:
        """A part that is missing leaves no dash behind."""
        assert _marked(name, mark) == beginning
        assert _marked(None, "") is None


class TestReload:
    async def test_a_changed_file_starts_the_worker_again(self, start: Start, night: Client, tmp_path: Path) -> None:
        """Also one that it could not even import in between."""
        jobs = tmp_path / "night_jobs.py"
        with start("--reload", "--queues", "night") as parent:
            parent.says("started: queue")
            [first] = children_of(parent.pid)
            jobs.write_text(JOBS + "\nraise SystemExit(7)\n")
            parent.says("night_jobs.py changed")
            parent.says("ended with exit code 7")
            jobs.write_text(JOBS + "\nundefined_name\n")
            parent.says("another one waits for a change")
            jobs.write_text(JOBS.replace('"rested"', '"reloaded"'))
            parent.says("started: queue", times=2)
            [second] = children_of(parent.pid)
            assert second != first
            key = await enqueue(night, "nap", seconds=0)
            job = await night.queue("night").job(key)
            assert job is not None
            assert await job.wait(10) == "reloaded"
            parent.signal()
            assert parent.ends() == 0


class TestCommandLine:
    async def test_the_module_spelling_starts_children_too(self, start: Start, night: Client, tmp_path: Path) -> None:
        """``python -m``: what was typed is what a child is started with."""
        env = clean_environment(KNAPSAQ_BROKER_URL=night.settings.broker_url, KNAPSAQ_QUEUES="night")
        command = [sys.executable, "-X", "dev", "-m", "knapsaq.cli", "-A", "night_jobs", "worker", "--workers", "2"]
        with running(command, env, tmp_path) as parent:
            parent.says("started: queue", times=2)
            for child in children_of(parent.pid):
                words = processes()[child].command
                assert words[1:5] == ["-X", "dev", "-m", "knapsaq.cli"]
            parent.signal()
            assert parent.ends() == 0

    def test_a_stray_variable_is_refused_with_what_to_do(self, start: Start) -> None:
        """Whoever copies the environment of a child gets no worker that stops at once."""
        with start(KNAPSAQ_WORKER_CHILD="99") as worker:
            assert worker.ends() == 1
            assert "unset it" in worker.output()
