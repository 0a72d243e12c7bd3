from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from click.testing import Result
from tests.cli.conftest import Run

from knapsaq import Registry, Settings, connect
from knapsaq.cli.loading import load
from knapsaq.cli.schedules import _state
from knapsaq.client import Client
from knapsaq.entries import ScheduleEntry
from knapsaq.outcomes import Failed, Succeeded
from knapsaq.scheduler import Scheduler

Say = Callable[..., Result]


@pytest.fixture
def with_client(broker_url: str) -> Callable[[Callable[[Client, Registry], Awaitable[Any]]], Any]:
    """Do something as the application, connected."""

    def with_client(act: Callable[[Client, Registry], Awaitable[Any]]) -> Any:
        registry = load("shop_jobs").registry

        async def do() -> Any:
            settings = Settings(broker_url=broker_url, queues=("default", "mail"), _env_file=None)
            async with connect(settings, registry=registry) as client:
                return await act(client, registry)

        return asyncio.run(do())

    return with_client


@pytest.fixture
def say(run: Run, folder: Path, with_client: Any) -> Say:
    """Run ``knapsaq schedules`` with these words, after a worker has stored the code's schedules."""

    async def start(client: Client, registry: Registry) -> None:
        await Scheduler(client.queue(), registry.get_all_tasks()).run_once()

    with_client(start)
    return lambda *words: run("-A", "shop_jobs", "schedules", *words)


def said(result: Result) -> str:
    """Return what a command that went well has printed, on one line."""
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


class TestList:
    def test_the_table_shows_what_one_asks_for(self, say: Say) -> None:
        """Task, queue, when in words, the next fire in its own zone and in UTC, and whether it fires."""
        text = said(say("list"))
        for shown in ("nightly", "default", "at 02:00 each day (Europe/Berlin)", "02:00:00 Europe/Berlin (", "UTC)"):
            assert shown in text
        assert "active" in text

    def test_json_has_the_same_for_programs(self, say: Say) -> None:
        """With names instead of columns, durations in seconds."""
        [entry] = json.loads(say("list", "--json").stdout)
        assert (entry["name"], entry["cron"], entry["misfire_window"]) == ("nightly", "0 2 * * *", 3600)
        assert (entry["kwargs"], entry["last_fire"], entry["edited"]) == ({"batch": 3}, None, [])
        assert datetime.fromisoformat(entry["next_due"]).astimezone(ZoneInfo("Europe/Berlin")).hour == 2

    def test_without_schedules_it_says_who_stores_them(self, run: Run, say: Say, with_client: Any) -> None:
        """An empty table would leave one guessing."""
        with_client(lambda client, _registry: client.queue().redis.flushall())
        result = say("list")
        assert (result.exit_code, result.stdout) == (0, "")
        assert "a worker stores those of the code at its start" in result.stderr


class TestShow:
    def test_it_shows_fields_fires_and_outcomes(self, say: Say, with_client: Any) -> None:
        """What was changed by hand is marked."""

        async def fire(client: Client, registry: Registry) -> None:
            queue, redis = client.queue(), client.queue().redis
            for outcome in (Succeeded("done"), Failed("Traceback\nValueError: no luck")):
                now_ms, [held] = await queue.schedules.read("nightly")
                assert held.due_ms is not None
                due = {"nightly": now_ms - now_ms % 1000 + len(await queue.schedules.history("nightly"))}
                await redis.zadd(queue.keys.schedules_due, due)
                assert await Scheduler(queue, registry.get_all_tasks()).run_once() == 1
                [claim] = await queue.claim(1, worker="w")
                await queue.settle(claim, outcome, worker="w")

        with_client(fire)
        said(say("set", "nightly", "--jitter", "2.5"))
        text = said(say("show", "nightly"))
        for shown in ("2.5 (changed by hand)", "complete", "failed", "ValueError: no luck", "Europe/Berlin ("):
            assert shown in text
        found = json.loads(say("show", "nightly", "--json").stdout)
        assert [fire["status"] for fire in found["fires"]] == ["failed", "complete"]
        assert len(found["next"]) == 5
        assert "failed" in said(say("list"))

    def test_the_next_fires_are_shown_in_both_zones(self, say: Say) -> None:
        """As many as wanted; with a word where it is paused."""
        lines = said(say("next", "nightly", "-n", "3")).split(") ")
        assert len(lines) == 3
        assert all("02:00:00 Europe/Berlin (" in line for line in lines)
        say("pause", "nightly")
        assert "it is paused" in say("next", "nightly").stderr
        moments = [datetime.fromisoformat(text) for text in json.loads(say("next", "nightly", "--json").stdout)]
        assert timedelta(hours=23) <= moments[1] - moments[0] <= timedelta(hours=25)


class TestChanges:
    def test_pause_resume_set_and_reset(self, say: Say) -> None:
        """Each tells what counts now."""
        assert "paused by hand; it does not fire" in said(say("pause", "nightly"))
        assert "active; next fire" in said(say("resume", "nightly"))
        text = said(say("set", "nightly", "--cron", "30 4 * * *", "--timezone", "Asia/Tokyo", "batch=7"))
        assert text.startswith(
            "nightly: at 04:30 each day (Asia/Tokyo); active; changed by hand: cron, timezone, kwargs"
        )
        assert "04:30:00 Asia/Tokyo (" in text
        assert "every 90 seconds" in said(say("set", "nightly", "--every", "90", "--overlap", "--misfire", "all"))
        assert "at 02:00 each day (Europe/Berlin); active; next" in said(say("reset", "nightly"))

    def test_what_is_not_as_in_the_code_is_told(self, say: Say, folder: Path) -> None:
        """One that the code pauses and somebody has resumed is not simply active, and the other way round."""
        entry = json.loads(say("show", "nightly", "--json").stdout)
        fields = {**entry, "next_due": None, "edited": ()}
        del fields["fires"], fields["next"]
        told = {
            (enabled, edited): _state(ScheduleEntry(**{**fields, "enabled": enabled, "edited": edited}))
            for enabled in (True, False)
            for edited in ((), ("enabled",))
        }
        assert told == {
            (True, ()): "active",
            (True, ("enabled",)): "resumed by hand",
            (False, ()): "paused",
            (False, ("enabled",)): "paused by hand",
        }

    def test_a_schedule_that_nobody_fires_says_why(self, say: Say, with_client: Any) -> None:
        """Its due time has passed for longer than a worker needs; a paused one is not overdue."""
        assert "overdue" not in said(say("show", "nightly"))

        async def let_pass(client: Client, _registry: Registry) -> None:
            redis: Any = client.queue().redis
            await redis.zadd(client.queue().keys.schedules_due, {"nightly": int((time.time() - 60) * 1000)})

        with_client(let_pass)
        assert "active; overdue: no worker of its queue runs" in said(say("show", "nightly"))
        assert "overdue" not in said(say("pause", "nightly"))

    def test_arguments_of_an_unknown_task_are_said_to_be_unchecked(self, say: Say) -> None:
        """Whoever mistypes one is not left to think that it was looked at."""
        result = say("add", "far", "elsewhere.task", "--every", "60", "--queue", "mail", "n=1")
        told = "task 'elsewhere.task' is not known here; its arguments are not checked"
        assert told in result.stderr
        assert told in say("set", "far", "n=2").stderr
        assert told in say("run", "far", "n=2").stderr
        assert "not checked" not in say("run", "far").stderr
        assert "not checked" not in say("run", "nightly", "batch=2").stderr

    def test_run_queues_a_job_with_other_arguments(self, say: Say, with_client: Any) -> None:
        """Its key is printed; text is read as JSON where that fits."""
        keys = [
            said(say("run", "nightly")),
            said(say("run", "nightly", "batch=9")),
            said(say("run", "nightly", "--json", '{"batch": 8}')),
        ]
        jobs = with_client(lambda client, _registry: client.queue().jobs(keys))
        assert [job.kwargs for job in jobs] == [{"batch": 3}, {"batch": 9}, {"batch": 8}]

    def test_one_is_added_and_removed(self, say: Say) -> None:
        """Of a task of the application, or of another one's with its queue."""
        assert "added at run time" in said(say("add", "extra", "greet", "--every", "60", "name=5", "shout=true"))
        assert "every minute" in said(say("add", "far", "elsewhere.task", "--every", "60", "--queue", "mail", "n=1"))
        found = {one["name"]: one for one in json.loads(say("list", "--json").stdout)}
        assert (found["extra"]["kwargs"], found["extra"]["queue"]) == ({"name": "5", "shout": True}, "mail")
        assert found["far"]["kwargs"] == {"n": 1}
        assert "removed extra" in say("remove", "extra").stderr
        assert "removed far" in say("remove", "far").stderr
        assert [one["name"] for one in json.loads(say("list", "--json").stdout)] == ["nightly"]

    def test_arguments_that_look_secret_are_not_shown(self, say: Say) -> None:
        """Neither to people nor to logs of programs; the jobs have them."""
        said(say("add", "far", "elsewhere.task", "--every", "60", "--queue", "mail", "api_key=k7", "n=1"))
        for words in (("list", "--json"), ("show", "far"), ("show", "far", "--json")):
            assert "k7" not in said(say(*words))
        assert '"api_key":"***"' in said(say("show", "far"))

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (("pause", "nigthly"), "did you mean 'nightly'"),
            (("set", "nightly"), "KEY=VALUE, --cron, --every"),
            (("set", "nightly", "--cron", "x"), "option 'cron' is 'x'"),
            (("set", "nightly", "--misfire", "twice"), "Invalid value"),
            (("set", "nightly", "batch=many"), "'batch'"),
            (("set", "nightly", "batch"), "KEY=VALUE"),
            (("run", "nightly", "size=1"), "'size'"),
            (("run", "nightly", "--json", "{"), "no JSON"),
            (("next", "nightly", "-n", "0"), "Invalid value"),
            (("remove", "nightly"), "it is defined in shop_jobs"),
            (("add", "extra", "gret", "--every", "60"), "did you mean 'greet'"),
            (("add", "extra", "greet", "--every", "0.1", "name=x"), "from 1 second"),
        ],
    )
    def test_what_is_wrong_is_told_with_exit_code_2(self, say: Say, words: tuple[str, ...], text: str) -> None:
        """On one line, without a traceback."""
        result = say(*words)
        assert result.exit_code == 2
        assert text in " ".join(result.stderr.replace("│", " ").split())
