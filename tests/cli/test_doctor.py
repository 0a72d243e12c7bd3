from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Act, Run

from knapsaq import Client, Registry, Settings, connect
from knapsaq.outcomes import Dead

WRONG = """
from knapsaq import INJECTED, Registry

registry = Registry()


@registry.task(queue="reports")
async def needs(session=INJECTED) -> None: ...


@registry.task
async def unreadable(x: "NoSuchType") -> None: ...
"""

UNFIT = """
from knapsaq import Registry

registry = Registry()


@registry.scheduled_task(every=5, schedule="bad.needs")
async def needs(a: int) -> None: ...
"""


def findings(run: Run, *words: str) -> tuple[int, list[dict[str, Any]]]:
    """Return the exit code and what was found."""
    result = run(*words, "doctor", "--json")
    return result.exit_code, json.loads(result.stdout)


class TestDoctor:
    def test_all_is_well_but_for_the_workers_that_nobody_has_started(self, run: Run, broker_url: str) -> None:
        """Each check is made, and a warning is no failure."""
        code, found = findings(run, "-A", "shop_jobs")
        states = {(each["check"], each["state"]) for each in found}
        assert code == 0
        assert states == {
            ("settings", "ok"),
            ("application", "ok"),
            ("tasks", "ok"),
            ("broker", "ok"),
            ("clock", "ok"),
            ("workers", "warn"),
        }
        [broker] = [each["text"] for each in found if each["check"] == "broker"]
        assert broker.startswith(broker_url)

    def test_the_text_says_what_to_do(self, run: Run) -> None:
        """What is not right comes with a remedy, and the last line counts."""
        text = run("-A", "shop_jobs", "doctor").stdout
        assert "start one: knapsaq -A MODULE worker --queues mail" in text
        assert text.splitlines()[-1].endswith("2 to look at, 0 wrong")

    def test_tasks_that_cannot_run_are_named_with_the_reason(self, run: Run, folder: Path) -> None:
        """Before a worker refuses to start because of them."""
        (folder / "wrong_jobs.py").write_text(WRONG)
        code, found = findings(run, "-A", "wrong_jobs")
        failed = {each["check"]: "" for each in found if each["state"] == "fail"}
        texts = " ".join(each["text"] + each["remedy"] for each in found if each["state"] == "fail")
        assert code == 1
        assert set(failed) == {"tasks", "queues"}
        for expected in ("'session', which nobody provides", "NoSuchType", "KNAPSAQ_QUEUES=default,mail,reports"):
            assert expected in texts

    def test_a_schedule_that_gives_too_few_arguments_fails(self, run: Run, folder: Path) -> None:
        """As the worker refuses to start because of it."""
        (folder / "unfit_jobs.py").write_text(UNFIT)
        code, found = findings(run, "-A", "unfit_jobs")
        [text] = [each["text"] for each in found if each["state"] == "fail"]
        assert code == 1
        assert "schedule 'bad.needs'" in text
        assert "argument 'a': expected int, given nothing" in text

    def test_a_schedule_of_a_task_that_nobody_knows_is_pointed_out(
        self, run: Run, folder: Path, broker_url: str
    ) -> None:
        """It fires for ever, and each job is put back until it is dead."""

        async def leave() -> None:
            registry = Registry()
            async with connect(Settings(broker_url=broker_url, _env_file=None), registry=registry):
                await registry.schedules.add("left", "gone.task", queue="default", every=3600)

        asyncio.run(leave())
        try:
            code, found = findings(run, "-A", "shop_jobs")
            [warning] = [each for each in found if each["check"] == "schedules"]
            assert (code, warning["state"]) == (0, "warn")
            assert "'left' in queue 'default' fires task 'gone.task'" in warning["text"]
            assert "schedules remove left" in warning["remedy"]
        finally:
            run("-A", "shop_jobs", "schedules", "remove", "left")

    def test_without_an_application_the_rest_is_looked_at_nevertheless(self, run: Run) -> None:
        """One fault does not hide the others."""
        code, found = findings(run)
        assert code == 1
        assert {each["check"] for each in found if each["state"] == "fail"} == {"application"}
        assert ("broker", "ok") in {(each["check"], each["state"]) for each in found}

    def test_a_broker_that_is_away_fails_without_showing_its_password(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The output may be pasted into a ticket."""
        monkeypatch.setenv("KNAPSAQ_BROKER_URL", "redis://user:hunter2@127.0.0.1:1/0")
        code, found = findings(run, "-A", "shop_jobs")
        [broker] = [each for each in found if each["check"] == "broker"]
        assert (code, broker["state"]) == (1, "fail")
        assert broker["remedy"]
        assert "hunter2" not in json.dumps(found)

    def test_a_mistyped_variable_is_pointed_out(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """It would be ignored in silence."""
        monkeypatch.setenv("KNAPSAQ_CONCURENCY", "3")
        code, found = findings(run, "-A", "shop_jobs")
        [typo] = [each for each in found if "KNAPSAQ_CONCURENCY is set" in each["text"]]
        assert (code, typo["state"]) == (0, "warn")
        assert "'CONCURRENCY'" in typo["remedy"]

    def test_a_wrong_setting_fails(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without settings there is nothing else to look at."""
        monkeypatch.setenv("KNAPSAQ_LEASE", "soon")
        code, found = findings(run, "-A", "shop_jobs")
        assert code == 1
        assert [(each["check"], each["state"]) for each in found] == [("settings", "fail")]


class TestWhatHoldsJobsUp:
    def test_a_paused_queue_is_pointed_out(self, run: Run, act: Act) -> None:
        """With since when, and how it goes on."""
        run("-A", "limited_jobs", "pause", "mail")
        code, [held] = self._held(run)
        assert (code, held["state"]) == (0, "warn")
        assert held["text"].startswith("'mail' is paused since ")
        assert held["remedy"].endswith("resume mail")

    def test_dead_letters_are_pointed_out(self, run: Run, act: Act) -> None:
        """Nobody runs them by itself; a queue without any is not mentioned."""

        async def bury(client: Client) -> None:
            await client.registry.get("add").enqueue(x=1)
            [claim] = await client.queue().claim(1, worker="w1")
            await client.queue().settle(claim, Dead("enough"), worker="w1")

        act(bury)
        code, [held] = self._held(run)
        assert (code, held["state"]) == (0, "warn")
        assert held["text"] == "'default' has dead letters: 1 job that nobody can run"
        assert "inspect dead --queue default" in held["remedy"]

    def test_each_strike_is_pointed_out(self, run: Run, act: Act) -> None:
        """As the words that take it back."""
        run("-A", "limited_jobs", "strike", "add", "--queue", "default")
        run("-A", "limited_jobs", "strike", "send", "tenant=acme inc", "--queue", "mail")
        _, held = self._held(run)
        assert [each["remedy"].partition("MODULE ")[2] for each in held] == [
            "restore add",
            "restore send 'tenant=acme inc'",
        ]

    def test_jobs_that_nobody_lets_go_are_pointed_out(self, run: Run, act: Act) -> None:
        """Those whose limit nobody holds, or whose strike is gone; not those that wait for a job that runs."""

        async def strand(client: Client) -> None:
            queue, tasks = client.queue(), client.registry
            await tasks.get("press").enqueue_many({"page": page} for page in range(3))
            await tasks.get("add").enqueue(x=1)
            await queue.strike("add")
            await queue.claim(4, worker="w1")
            await queue.line.execute("DEL", queue.keys.strikes)

        act(strand)
        _, [struck] = self._held(run)
        assert struck["text"] == "nobody lets go what waits for the end of a strike in 'default': 1 job"
        assert "restore TASK" in struck["remedy"]
        act(lambda client: client.queue().line.execute("DEL", client.queue().keys.claims))
        texts = {each["text"] for each in self._held(run)[1]}
        assert "nobody lets go what waits for a slot of 'press' in 'default': 2 jobs" in texts

    @staticmethod
    def _held(run: Run) -> tuple[int, list[dict[str, Any]]]:
        code, found = findings(run, "-A", "limited_jobs")
        return code, [each for each in found if each["check"] == "queues"]
