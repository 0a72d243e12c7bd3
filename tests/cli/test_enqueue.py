from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.cli.conftest import Run
from tests.processes import clean_environment, running

from knapsaq import Client, Job, Registry, Settings, connect

T = TypeVar("T")


def with_client(broker_url: str, look: Callable[[Client], Awaitable[T]]) -> T:
    """Return what a coroutine sees with a connection."""

    async def see() -> T:
        settings = Settings(broker_url=broker_url, queues=("default", "mail"), _env_file=None)
        async with connect(settings, registry=Registry()) as client:
            return await look(client)

    return asyncio.run(see())


@pytest.fixture
def stored(broker_url: str) -> Callable[[str, str], Job[Any]]:
    """Return the job of a key in a queue."""

    def stored(queue: str, key: str) -> Job[Any]:
        async def look(client: Client) -> Job[Any] | None:
            return await client.queue(queue).job(key)

        job = with_client(broker_url, look)
        assert job is not None
        return job

    return stored


def waiting(broker_url: str) -> int:
    """Return how many jobs there are."""

    async def look(client: Client) -> int:
        return sum([await queue.count("incomplete") for queue in client.queues.values()])

    return with_client(broker_url, look)


Stored = Callable[[str, str], Job[Any]]


class TestArguments:
    @pytest.mark.parametrize(
        ("task", "words", "expected"),
        [
            ("add", ["x=1", "y=-3"], {"x": 1, "y": -3}),
            ("greet", ["name=123"], {"name": "123"}),
            ("greet", ["name=true", "shout=true"], {"name": "true", "shout": True}),
            ("greet", ['name="in quotes"'], {"name": "in quotes"}),
            ("greet", ["name=a=b c"], {"name": "a=b c"}),
            ("find", ["key=0b5b3e9c-7cf4-4a33-a4a0-2b0f8e8de4f1"], {"key": "0b5b3e9c-7cf4-4a33-a4a0-2b0f8e8de4f1"}),
            ("add", ["--json", '{"x": 1}', "y=5"], {"x": 1, "y": 5}),
        ],
    )
    def test_a_value_is_json_where_that_fits_and_text_elsewhere(
        self, run: Run, stored: Stored, task: str, words: list[str], expected: dict[str, Any]
    ) -> None:
        """The annotation decides, so nobody has to quote twice."""
        result = run("-A", "shop_jobs", "enqueue", task, *words)
        assert result.exit_code == 0, result.stderr
        assert stored("mail" if task == "greet" else "default", result.stdout.strip()).kwargs == expected

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["ad", "x=1"], "did you mean 'add'?"),
            (["add"], "argument 'x': expected int, given nothing"),
            (["add", "x=foo"], "given 'foo' (str)"),
            (["add", "x=1.5"], "given 1.5 (float)"),
            (["add", "x=NaN"], "given 'NaN' (str)"),
            (["add", "x=1", "z=3"], "argument 'z': expected one of x, y"),
            (["greet"], "argument 'name': expected str, given nothing"),
            (["find", "key=7"], "argument 'key': expected"),
            (["add", "x"], "KEY=VALUE"),
            (["add", "x=1", "x=2"], "given twice"),
            (["add", "--json", "[1]"], "--json takes an object"),
            (["add", "--json", "{"], "--json is no JSON"),
            (["add", "x=1", "--delay", "-3"], "--delay"),
            (["add", "x=1", "--wait", "soon"], "--wait takes seconds"),
            (["add", "x=1", "--queue", "mial"], "did you mean 'mail'?"),
        ],
    )
    def test_what_does_not_fit_is_refused_and_nothing_is_queued(
        self, run: Run, broker_url: str, words: list[str], expected: str
    ) -> None:
        """The reason is in the error, with the parameter's name."""
        result = run("-A", "shop_jobs", "enqueue", *words)
        assert result.exit_code == 2
        assert expected in " ".join(result.stderr.replace("│", "").split())
        assert waiting(broker_url) == 0

    def test_queue_delay_and_key_are_the_jobs(self, run: Run, stored: Stored) -> None:
        """And while a job of the key has not ended there is no second one."""
        words = ("--queue", "mail", "--delay", "60", "--key", "once")
        first = run("-A", "shop_jobs", "enqueue", "add", "x=1", *words)
        again = run("-A", "shop_jobs", "enqueue", "add", "x=1", *words)
        assert first.stdout == again.stdout == "once\n"
        assert stored("mail", "once").scheduled > 0

    def test_without_a_broker_the_error_says_what_to_do_and_shows_no_password(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Exit code 1: trying again may help."""
        monkeypatch.setenv("KNAPSAQ_BROKER_URL", "redis://user:hunter2@127.0.0.1:1/0")
        result = run("-A", "shop_jobs", "enqueue", "add", "x=1")
        assert result.exit_code == 1
        assert "KNAPSAQ_BROKER_URL" in result.stderr
        assert "hunter2" not in result.output


class TestWait:
    def test_the_result_is_all_that_is_printed_and_a_failed_job_is_a_failed_command(
        self, run: Run, folder: Path, broker_url: str
    ) -> None:
        """Standard output is for the next program; the key and the job's traceback are beside it."""
        env = clean_environment(KNAPSAQ_BROKER_URL=broker_url, KNAPSAQ_QUEUES="default,mail")
        with running([sys.executable, "-m", "knapsaq.cli", "-A", "shop_jobs", "worker"], env, folder) as worker:
            worker.says("started: queue", times=2)
            done = run("-A", "shop_jobs", "enqueue", "add", "--wait", "x=4")
            assert (done.exit_code, json.loads(done.stdout)) == (0, 6), done.stderr
            assert len(done.stderr.split()[0]) == 22

            failed = run("-A", "shop_jobs", "enqueue", "boom", "--wait", "20")
            assert (failed.exit_code, failed.stdout) == (1, "")
            assert "failed: ValueError: no luck" in failed.stderr.splitlines()[-1]
            worker.signal()
            assert worker.ends() == 0

    def test_a_job_that_has_not_ended_in_time_goes_on(self, run: Run, broker_url: str) -> None:
        """Waiting is the caller's business alone; that nobody works is pointed out."""
        result = run("-A", "shop_jobs", "enqueue", "nap", "seconds=1", "--wait", "0.05")
        assert result.exit_code == 1
        assert "no worker takes jobs from the queue 'default'" in result.stderr
        assert "and goes on" in result.stderr
        assert waiting(broker_url) == 1
