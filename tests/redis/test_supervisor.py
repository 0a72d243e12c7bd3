from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import pytest
from tests.processes import BIN, Program, children_of, clean_environment, eventually, is_running, processes, running

from knapsaq import Client, Registry, Settings, connect
from knapsaq.supervisor import WorkerPlan, _end_leases

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


class Start(Protocol):
    """Starts ``knapsaq ... worker`` with these words."""

    def __call__(self, *words: str, app: str = "night_jobs", **env: str) -> AbstractContextManager[Program]:
        """Run them while a block runs."""


@pytest.fixture
def start(tmp_path: Path, broker_url: str) -> Start:
    """Run workers in a folder of their own while a block runs."""
    (tmp_path / "night_jobs.py").write_text(JOBS)

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

    @pytest.mark.parametrize(("task", "note"), [("nap", "napping"), ("crunch", "crunching")])
    async def test_the_jobs_of_a_child_that_dies_do_not_wait_for_its_lease(
        self, start: Start, night: Client, tmp_path: Path, task: str, note: str
    ) -> None:
        """They run again in another process, and what ran of them, in a process of its own too, has ended."""

        def pid_of_other(than: int) -> int | None:
            said = (tmp_path / note).read_text() if (tmp_path / note).exists() else ""
            return int(said) if said.endswith("\n") and int(said) != than else None

        with start("--workers", "2", "--queues", "night", KNAPSAQ_LEASE="600") as parent:
            parent.says("started: queue", times=2)
            key = await enqueue(night, task, seconds=600)
            first = eventually("it runs", lambda: pid_of_other(0))
            os.kill(first if task == "nap" else processes()[first].parent, signal.SIGKILL)
            eventually("it runs again", lambda: pid_of_other(first), why=parent.output)
            assert not is_running(first)
            parent.signal()
            parent.ends(GRACE + 10)
        assert await status(night, key) == "queued"

    async def test_a_parent_that_cannot_end_a_lease_says_so_and_goes_on(self, caplog: pytest.LogCaptureFixture) -> None:
        """The lease runs out by itself."""
        plan = WorkerPlan(settings=Settings(broker_url="redis://:hunter2@127.0.0.1:1/0", _env_file=None))
        await _end_leases(plan, "mark")
        assert "wait until its leases have run out: BrokerError" in caplog.text
        assert "hunter2" not in caplog.text

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
