from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from click.testing import CliRunner
from tests.cli.conftest import Act, Run

from knapsaq import Client, Job, chain
from knapsaq.cli import main
from knapsaq.cli.ending import MANY
from knapsaq.outcomes import Dead, Failed, Succeeded


@pytest.fixture
def say(run: Run, act: Act) -> Run:
    """Run ``knapsaq`` with these words for an application whose tasks have limits."""
    return lambda *words: run("-A", "limited_jobs", *words)


def status(act: Act, key: str, queue: str = "default") -> str:
    """Return how a job stands."""

    async def look(client: Client) -> Job[object] | None:
        return await client.queue(queue).job(key)

    job = act(look)
    assert job is not None
    return str(job.status.value)


class TestRetry:
    def test_ended_jobs_and_dead_letters_are_queued_again(self, say: Run, act: Act) -> None:
        """From their first attempt; one key a line."""

        async def end(client: Client) -> None:
            queue, add = client.queue(), client.registry.get("add")
            for key, outcome in (("done", Succeeded(3)), ("failed", Failed("no luck")), ("dead", Dead("enough"))):
                await add.using(key=key).enqueue(x=1)
                [claim] = await queue.claim(1, worker="w1")
                await queue.settle(claim, outcome, worker="w1")

        act(end)
        result = say("retry", "done", "failed", "dead", "done")
        assert (result.exit_code, result.stdout.split()) == (0, ["done", "failed", "dead"])

        async def look(client: Client) -> tuple[list[Job[object]], int]:
            queue = client.queue()
            return [claim.job for claim in await queue.claim(5, worker="w1")], await queue.count("dead")

        jobs, dead = act(look)
        assert ([job.key for job in jobs], dead) == (["done", "failed", "dead"], 0)
        assert [(job.attempts, job.error, job.result) for job in jobs] == [(0, None, None)] * 3

    def test_what_cannot_run_again_is_told_and_the_others_do(self, say: Run, act: Act) -> None:
        """One that has not ended, and one that is not there."""
        say("enqueue", "add", "x=1", "--key", "waits")
        say("enqueue", "add", "x=1", "--key", "ended")
        say("revoke", "ended")
        result = say("retry", "waits", "ended", "unheard-of")
        assert (result.exit_code, result.stdout.split()) == (1, ["ended"])
        assert "job 'waits' has not ended: it is queued" in result.stderr
        assert "there is no job 'unheard-of'" in result.stderr
        assert status(act, "ended") == "queued"

    def test_a_dead_letter_whose_key_a_newer_job_has_stays(self, say: Run, act: Act) -> None:
        """Both would be one."""

        async def bury(client: Client) -> None:
            queue, add = client.queue(), client.registry.get("add").using(key="twice")
            await add.enqueue(x=1)
            [claim] = await queue.claim(1, worker="w1")
            await queue.settle(claim, Dead("enough"), worker="w1")
            await add.enqueue(x=2)

        act(bury)
        result = say("retry", "twice")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "a newer job has the key 'twice' and has not ended" in result.stderr

    def test_a_step_of_a_workflow_is_told_to_be_one(self, say: Run, act: Act) -> None:
        """As its workflow does not go on by that."""

        async def fail(client: Client) -> str:
            add = client.registry.get("add")
            await chain(add.s(1), add.s()).enqueue()
            [claim] = await client.queue().claim(1, worker="w1")
            await client.queue().settle(claim, Failed("no luck"), worker="w1")
            return claim.job.key

        key = act(fail)
        result = say("retry", key)
        assert (result.exit_code, result.stdout.strip()) == (0, key)
        assert "its retry_failed() does" in result.stderr

    def test_one_queue_alone_is_looked_at_if_it_is_named(self, say: Run, act: Act) -> None:
        """Equal keys of two queues are two jobs; a key is needed."""
        for queue in ("default", "mail"):
            say("enqueue", "add", "x=1", "--key", "same", "--queue", queue)
        say("revoke", "same")
        assert say("retry", "same", "--queue", "mail").exit_code == 0
        assert (status(act, "same"), status(act, "same", "mail")) == ("aborted", "queued")
        assert say("retry", "same", "--queue", "nowhere").exit_code == 2
        assert say("retry").exit_code == 2


class TestDiscard:
    @pytest.fixture(autouse=True)
    def buried(self, act: Act) -> None:
        """Each queue has the dead letters ``one`` and ``two``; in one there is another that nobody could have made."""

        async def bury(client: Client) -> None:
            for queue in (client.queue(), client.queue("mail")):
                for key in ("one", "two"):
                    await client.registry.get("add").using(key=key, queue=queue.name).enqueue(x=1)
                    [claim] = await queue.claim(1, worker="w1")
                    await queue.settle(claim, Dead("enough"), worker="w1")
            queue = client.queue()
            await cast("Any", queue.redis).zadd(queue.keys.dead, {b"\xff": 1})

        act(bury)

    def left(self, act: Act) -> list[int]:
        """Return how many dead letters each queue has."""

        async def look(client: Client) -> list[int]:
            return [await client.queue(name).count("dead") for name in ("default", "mail")]

        return list(act(look))

    def test_dead_letters_are_forgotten_for_good(self, say: Run, act: Act) -> None:
        """In all queues, or in that which is named; one key a line, and what is not there is told."""
        result = say("discard", "one", "one", "--queue", "mail", "--yes")
        assert (result.exit_code, result.stdout.split(), self.left(act)) == (0, ["one"], [3, 1])
        result = say("discard", "one", "two", "unheard-of", "-y")
        assert (result.exit_code, result.stdout.split(), self.left(act)) == (1, ["one", "two"], [1, 0])
        assert "there is no dead letter 'unheard-of'" in result.stderr
        assert say("discard", "\\xff", "-y").stdout.split() == ["\\xff"]
        assert self.left(act) == [0, 0]
        assert say("discard", "one", "-y").exit_code == 1
        assert status(act, "one") == "failed"

    @pytest.mark.parametrize(("answer", "code", "left"), [("n\n", 1, [3, 2]), ("", 1, [3, 2]), ("y\n", 0, [1, 0])])
    def test_it_asks_first(self, act: Act, answer: str, code: int, left: list[int]) -> None:
        """No answer is a no."""
        result = CliRunner().invoke(main, ["-A", "limited_jobs", "discard", "one", "two"], input=answer)
        assert result.exit_code == code
        assert "Forget the dead letters of 2 keys for good?" in result.stderr
        assert self.left(act) == left

    def test_a_key_is_needed_and_a_queue_that_is_there(self, say: Run) -> None:
        """As for the other commands."""
        assert say("discard").exit_code == 2
        assert say("discard", "one", "--yes", "--queue", "nowhere").exit_code == 2


class TestPurge:
    @pytest.fixture
    def filled(self, say: Run, act: Act) -> None:
        """One job runs, one waits for it, one is delayed, one is queued; and one is in the other queue."""

        async def fill(client: Client) -> None:
            press, add = client.registry.get("press"), client.registry.get("add")
            for page in (1, 2):
                await press.using(key=f"press-{page}").enqueue(page=page)
            await client.queue().claim(2, worker="w1")
            await add.using(key="late", delay=3600).enqueue(x=1)
            await add.using(key="waits").enqueue(x=1)
            await add.using(key="other", queue="mail").enqueue(x=1)

        act(fill)

    @pytest.mark.usefixtures("filled")
    def test_what_waits_in_the_queue_ends_and_what_runs_goes_on(self, say: Run, act: Act) -> None:
        """With the reason, without a question where ``--yes`` says so."""
        result = say("purge", "default", "--yes", "--reason", "wrong month")
        assert (result.exit_code, result.stdout) == (0, "default: 3 jobs ended\n")
        assert [status(act, key) for key in ("press-2", "late", "waits")] == ["aborted"] * 3
        assert act(lambda client: client.queue().job("late")).error == "wrong month"
        assert act(lambda client: client.queue().counts()).active == 1
        assert status(act, "other", "mail") == "queued"
        again = say("purge", "default")
        assert (again.exit_code, again.stdout) == (0, "")
        assert "no job waits in queue 'default'" in again.stderr

    @pytest.mark.usefixtures("filled")
    @pytest.mark.parametrize(("answer", "code", "left"), [("n\n", 1, 4), ("", 1, 4), ("y\n", 0, 1)])
    def test_it_asks_first(self, act: Act, answer: str, code: int, left: int) -> None:
        """With how many there are; no answer is a no."""
        result = CliRunner().invoke(main, ["-A", "limited_jobs", "purge", "default"], input=answer)
        assert result.exit_code == code
        assert "End 3 jobs waiting in queue 'default'?" in result.stderr
        assert "ended" in result.stdout if code == 0 else not result.stdout
        assert act(lambda client: client.queue().count("incomplete")) == left

    def test_many_jobs_come_with_a_bar_for_people(self, say: Run, act: Act, monkeypatch: pytest.MonkeyPatch) -> None:
        """On the terminal, not on standard output; few jobs need none."""
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")

        async def fill(client: Client) -> None:
            await client.registry.get("add").enqueue_many({"x": number} for number in range(MANY))

        act(fill)
        result = say("purge", "default", "--yes")
        assert result.stdout == "default: 1,000 jobs ended\n"
        assert "1000/1000" in result.stderr
        say("enqueue", "add", "x=1")
        assert say("purge", "default", "--yes").stderr == ""

    def test_a_queue_that_is_not_there_is_refused(self, say: Run) -> None:
        """With the nearest name, before it asks."""
        result = say("purge", "mial")
        assert result.exit_code == 2
        assert "did you mean 'mail'" in result.stderr
        assert say("purge").exit_code == 2

    def test_a_broker_that_is_away_is_told_on_one_line(self, say: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """By each of the commands, without its password."""
        monkeypatch.setenv("KNAPSAQ_BROKER_URL", "redis://user:hunter2@127.0.0.1:1/0")
        for words in (
            ("purge", "mail"),
            ("retry", "a"),
            ("discard", "a", "--yes"),
            ("inspect",),
            ("why", "a"),
            ("pause",),
            ("strike",),
            ("weigh",),
        ):
            result = say(*words)
            assert result.exit_code == 1
            assert result.stderr.startswith("Error: broker redis://")
            assert "hunter2" not in result.stderr


async def test_the_command_line_is_made_of_commands_that_say_what_they_do() -> None:
    """``--help`` of each has a text and an example with its own name."""
    for name, command in main.commands.items():
        result = await asyncio.to_thread(CliRunner().invoke, main, [name, "--help"])
        assert result.exit_code == 0
        assert command.help
        assert f"knapsaq -A app.queue.config {name}" in (command.epilog or "") or name == "schedules"
