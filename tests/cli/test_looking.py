from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from tests.cli.conftest import Act, Run

from knapsaq import Client
from knapsaq.cli.looking import _moment
from knapsaq.outcomes import Dead


@pytest.fixture
def say(run: Run, act: Act) -> Run:
    """Run ``knapsaq`` with these words, where there is a job in each place, in the queue ``mail`` a dead one."""

    async def fill(client: Client) -> None:
        queue, mail, tasks = client.queue(), client.queue("mail"), client.registry
        for page in (1, 2):
            await tasks.get("press").using(key=f"press-{page}").enqueue(page=page)
        await queue.claim(2, worker="w1")
        await tasks.get("add").using(key="waits").enqueue(x=1)
        await tasks.get("add").using(key="late", delay=3600).enqueue(x=1)
        await tasks.get("send").using(key="died").enqueue(tenant="acme", api_key="hunter2")
        await cast("Any", mail.redis).hset(mail.keys.crashes, mail.job_id("died"), "1 dead\n" * 3)
        [claim] = await mail.claim(1, worker="w1")
        await mail.settle(claim, Dead("three workers died"), worker="w1")

    act(fill)
    return lambda *words: run("-A", "limited_jobs", *words)


def shown(say: Run, *words: str) -> dict[str, Any]:
    """Return what a command prints as JSON."""
    return dict(json.loads(say(*words, "--json").stdout))


class TestInspect:
    @pytest.mark.parametrize(
        ("place", "key", "task", "expected"),
        [
            ("queued", "waits", "add", {}),
            ("active", "press-1", "press", {"worker": "w1"}),
            ("scheduled", "late", "add", {}),
            (
                "parked",
                "press-2",
                "press",
                {"lane": "c:press", "why": "the slots of 'press' are held by job press-1"},
            ),
            ("dead", "died", "send", {"why": "three workers died", "attempts": 0, "crashes": 3}),
        ],
    )
    def test_each_place_lists_its_jobs(
        self, say: Run, place: str, key: str, task: str, expected: dict[str, Any]
    ) -> None:
        """A row a job, with what there is to know of it there; as a table for people, as JSON for programs."""
        [job] = shown(say, "inspect", place)["jobs"]
        queue = "mail" if place == "dead" else "default"
        assert (job["key"], job["task"], job["queue"]) == (key, task, queue)
        assert {name: job[name] for name in expected} == expected
        if place != "active":  # no worker has stamped it here
            assert datetime.fromisoformat(job["since"]) <= datetime.now(UTC)
        if place == "scheduled":
            assert timedelta(minutes=59) < datetime.fromisoformat(job["due"]) - datetime.now(UTC) < timedelta(hours=1)
        text = say("inspect", place).stdout
        for cell in (key, task, *expected.values()):
            assert str(cell) in text or cell == "c:press"

    def test_the_numbers_of_each_queue_stand_at_the_end(self, say: Run) -> None:
        """Also where nothing is listed."""
        result = say("inspect", "parked", "--queue", "mail")
        assert "no job is parked" in result.stderr
        assert result.stdout == "mail: 0 queued, 0 active, 0 scheduled, 0 parked, 1 dead; no worker\n"
        lines = say("inspect", "queued").stdout.splitlines()
        assert lines[-2] == "default: 1 queued, 1 active, 1 scheduled, 1 parked, 0 dead; no worker"

    def test_a_limit_cuts_the_list_and_says_so(self, say: Run, act: Act) -> None:
        """The first ones are shown; queues have a limit each."""
        say("enqueue", "add", "x=2")
        assert [job["key"] for job in shown(say, "inspect", "queued", "--limit", "1")["jobs"]] == ["waits"]
        assert "default: 2 queued" in (text := say("inspect", "queued", "-n", "1").stdout)
        assert "1 job shown" in text
        assert say("inspect", "queued", "-n", "0").exit_code == 2

    def test_without_a_word_it_shows_how_each_queue_stands(self, say: Run) -> None:
        """Numbers, workers, and what an operator has done."""
        say("pause", "mail")
        say("strike", "add", "--queue", "default")
        found = shown(say, "inspect")
        assert found["jobs"] == []
        default, mail = found["queues"]
        assert default["counts"] == {
            "queued": 1, "active": 1, "scheduled": 1, "parked": 1, "incomplete": 4, "dead": 0,
        }  # fmt: skip
        assert (default["strikes"], default["paused_since"], default["workers"]) == (1, None, 0)
        assert datetime.fromisoformat(mail["paused_since"]) <= datetime.now(UTC)
        text = say("inspect").stdout
        assert "1 strike; no worker" in text
        assert "paused since" in text

    def test_arguments_are_never_shown(self, say: Run) -> None:
        """They may be secret; those of dead ones too."""
        for words in (("dead",), ("dead", "--json"), ("queued", "--json")):
            assert "hunter2" not in say("inspect", *words).output

    def test_a_struck_job_is_shown_with_the_strike(self, say: Run, act: Act) -> None:
        """And one whose record was lost, with what it waits for."""
        say("strike", "add", "--queue", "default")

        async def lose(client: Client) -> None:
            queue = client.queue()
            assert not await queue.claim(1, worker="w2")
            await queue.redis.set(queue.job_id("press-2"), b"{")

        act(lose)
        whys = {job["key"]: job["why"] for job in shown(say, "inspect", "parked")["jobs"]}
        assert whys == {
            "waits": "task 'add' was struck; queue.restore() lets it run",
            "press-2": "it waits for a slot of 'press'",
        }
        assert "(cannot be read)" in say("inspect", "parked").stdout

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (("parkt",), "'parkt' is not one of 'queued', 'active', 'scheduled', 'parked', 'dead'"),
            (("queued", "--queue", "mial"), "did you mean 'mail'"),
        ],
    )
    def test_what_is_not_there_is_refused(self, say: Run, words: tuple[str, ...], text: str) -> None:
        """With the legal words."""
        result = say("inspect", *words)
        assert result.exit_code == 2
        assert text in " ".join(result.stderr.replace("│", " ").split())


class TestWhy:
    def test_each_reason_is_a_line(self, say: Run) -> None:
        """The most telling one first."""
        assert say("why", "press-2").stdout.splitlines() == [
            "the slots of 'press' are held by job press-1",
        ]
        say("pause")
        assert say("why", "waits").stdout.splitlines() == [
            "0 jobs ahead of it in queue default",
            "queue default is paused; queue.resume() goes on",
        ]

    def test_json_has_the_reasons_as_data(self, say: Run) -> None:
        """With the keys of those that it waits for."""
        [found] = json.loads(say("why", "press-2", "--json").stdout)
        [reason] = found["reasons"]
        assert (found["queue"], found["dead"]) == ("default", None)
        assert (reason["kind"], reason["jobs"], reason["ahead"]) == ("concurrency", ["press-1"], 0)

    def test_a_dead_letter_says_why_it_died(self, say: Run) -> None:
        """And how it is run again."""
        ended, died = say("why", "died").stdout.splitlines()
        assert ended == "it has ended: it is failed"
        assert "three workers died; `retry` replays it, `discard` forgets it" in died

    def test_equal_keys_of_two_queues_are_two_jobs(self, say: Run) -> None:
        """Each is told with its queue; one alone if that is named."""
        say("enqueue", "add", "x=1", "--key", "late", "--queue", "mail")
        lines = say("why", "late").stdout.splitlines()
        assert {line.partition(":")[0] for line in lines} == {"default", "mail"}
        assert "ahead of it in queue mail" in say("why", "late", "--queue", "mail").stdout

    def test_a_key_of_no_job_is_told_by_the_exit_code(self, say: Run) -> None:
        """As JSON too."""
        result = say("why", "unheard-of")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "there is no job 'unheard-of'" in result.stderr
        assert (say("why", "unheard-of", "--json").exit_code, say("why", "unheard-of", "--json").stdout) == (1, "[]\n")
        assert say("why").exit_code == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "(0 s ago)"), (59, "(59 s ago)"), (150, "(2 min ago)"), (-7300, "(in 2 h)"), (200_000, "(2 d ago)")],
)
def test_a_moment_is_shown_with_how_far_away_it_is(seconds: float, text: str) -> None:
    """In the unit that people would take."""
    assert _moment(datetime.now(UTC) - timedelta(seconds=seconds)).endswith(text)
