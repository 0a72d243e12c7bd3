from __future__ import annotations

import json
from uuid import UUID

import pytest
from tests.cli.conftest import Act, Run

from knapsaq import Client
from knapsaq.steering import Strike

ID = "8c7c9f3e-0b1e-4c3a-9d61-0f4e8c3b1a11"


@pytest.fixture
def say(run: Run, act: Act) -> Run:
    """Run ``knapsaq`` with these words for an application whose tasks have limits."""
    return lambda *words: run("-A", "limited_jobs", *words)


def strikes_of(act: Act, queue: str = "default") -> set[Strike]:
    return set(act(lambda client: client.queue(queue).strikes()))


class TestPause:
    def test_all_queues_are_paused_and_go_on(self, say: Run, act: Act) -> None:
        """Unless some are named; what waits and runs is told."""
        say("enqueue", "add", "x=1")
        assert say("pause").stdout.splitlines() == [
            "default: paused; 1 waiting, 0 running",
            "mail: paused; 0 waiting, 0 running",
        ]
        assert say("resume", "mail", "mail").stdout.splitlines() == ["mail: goes on"]
        assert act(lambda client: client.queue().is_paused())
        assert say("resume").stdout.splitlines() == ["default: goes on", "mail: was not paused"]
        assert not act(lambda client: client.queue().is_paused())

    def test_a_queue_that_is_not_there_is_refused_before_anything_is_paused(self, say: Run, act: Act) -> None:
        """With the nearest name."""
        result = say("pause", "default", "mial")
        assert result.exit_code == 2
        assert "did you mean 'mail'" in result.stderr
        assert not act(lambda client: client.queue().is_paused())


class TestStrike:
    def test_a_task_is_struck_in_all_queues_and_restored(self, say: Run, act: Act) -> None:
        """Its jobs wait meanwhile."""
        say("enqueue", "add", "x=1", "--key", "one")
        assert say("strike", "add").stdout.splitlines() == ["default: add is struck", "mail: add is struck"]

        async def claimed(client: Client) -> int:
            return len(await client.queue().claim(1, worker="w1"))

        assert act(claimed) == 0
        assert say("restore", "add").stdout.splitlines() == ["default: add may run", "mail: add may run"]
        assert act(claimed) == 1

    @pytest.mark.parametrize(
        ("task", "argument", "value"),
        [
            ("add", "x=7", 7),
            ("send", "tenant=7", "7"),
            ("send", f"key={ID}", str(UUID(ID))),
            ("send", "price=1.50", "1.50"),
            ("send", f"key={ID.upper()}", ID),
            ("renamed.task", "deep=true", True),
            ("renamed.task", "word=true story", "true story"),
        ],
    )
    def test_a_value_is_what_the_records_of_the_tasks_jobs_have(
        self, say: Run, act: Act, task: str, argument: str, value: object
    ) -> None:
        """By the parameter's type; the same words take it back."""
        assert say("strike", task, argument, "--queue", "default").exit_code == 0
        [strike] = strikes_of(act)
        assert (strike.task, strike.parameter, strike.value) == (task, argument.partition("=")[0], value)
        assert not strikes_of(act, "mail")
        assert say("restore", task, argument).stdout.startswith(f"default: {task} ")
        assert not strikes_of(act)

    def test_the_jobs_with_the_value_wait_and_others_run(self, say: Run, act: Act) -> None:
        """As the value is compared with that of the job's record."""
        for number in (1, 2):
            say("enqueue", "add", f"x={number}", "--key", f"x{number}")
        say("strike", "add", "x=1")

        async def claimed(client: Client) -> list[str]:
            return [claim.job.key for claim in await client.queue().claim(2, worker="w1")]

        assert act(claimed) == ["x2"]

    def test_what_is_struck_is_listed(self, say: Run) -> None:
        """By queue and task; a value whose name looks secret is not shown."""
        assert "nothing is struck" in say("strike").stderr
        say("strike", "add", "--queue", "default")
        say("strike", "send", "api_key=hunter2", "--queue", "mail")
        say("strike", "send", "tenant=acme", "--queue", "mail")
        rows = json.loads(say("strike", "--json").stdout)
        assert rows == [
            {"queue": "default", "task": "add", "parameter": None, "value": None},
            {"queue": "mail", "task": "send", "parameter": "api_key", "value": "***"},
            {"queue": "mail", "task": "send", "parameter": "tenant", "value": "acme"},
        ]
        text = say("strike", "--queue", "mail").stdout
        assert "tenant=acme" in text
        assert "hunter2" not in text
        assert "add" not in text

    def test_a_task_that_is_not_known_here_is_struck_only_if_that_is_meant(self, say: Run, act: Act) -> None:
        """A mistyped name would stop nothing; another application's task can be stopped all the same."""
        result = say("strike", "ad")
        assert result.exit_code == 2
        assert "did you mean 'add'" in result.stderr
        assert say("strike", "elsewhere.task", "n=1", "--unknown").exit_code == 0
        assert strikes_of(act) == {Strike("elsewhere.task", "n", 1)}
        assert say("restore", "elsewhere.task", "n=1").exit_code == 0

    def test_a_strike_that_is_not_there_cannot_be_taken_back(self, say: Run, act: Act) -> None:
        """The exit code tells, and what there is is named."""
        say("strike", "add", "x=1")
        result = say("restore", "add")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "add is not struck; struck are: add x=1" in result.stderr
        assert say("restore", "add", "nothing=1").exit_code == 1
        assert strikes_of(act) == {Strike("add", "x", 1)}

    def test_jobs_that_a_restore_left_behind_are_let_go_by_the_next_one(self, say: Run, act: Act) -> None:
        """As when it was cut off after the strike was forgotten."""
        say("enqueue", "add", "x=1", "--key", "one")
        say("strike", "add", "--queue", "default")

        async def cut_off(client: Client) -> None:
            queue = client.queue()
            assert not await queue.claim(1, worker="w1")
            await queue.line.execute("DEL", queue.keys.strikes)

        act(cut_off)
        assert say("restore", "add").exit_code == 1
        assert [claim.job.key for claim in act(lambda client: client.queue().claim(1, worker="w1"))] == ["one"]

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (("strike", "add", "z=1"), "expected one of x, y"),
            (("strike", "add", "x=much"), "expected int"),
            (("strike", "add", "x"), "KEY=VALUE"),
            (("strike", "renamed.task", "list=[1]"), "text, a number below"),
            (("strike", "add", "--queue", "nowhere"), "no queue is named"),
            (("restore", "add", "x"), "KEY=VALUE"),
            (("restore",), "Missing argument 'TASK'"),
            (("weigh", "acme"), "WEIGHT is missing"),
            (("weigh", "acme", "0"), "a number above 0"),
            (("weigh", "acme", "nan"), "a number above 0"),
            (("weigh", "acme", "much"), "not a valid float"),
        ],
    )
    def test_what_is_wrong_is_told_with_exit_code_2(self, say: Run, words: tuple[str, ...], text: str) -> None:
        """On one line, and nothing is changed."""
        result = say(*words)
        assert result.exit_code == 2
        assert text in " ".join(result.stderr.replace("│", " ").split())


class TestWeigh:
    def test_weights_are_set_listed_and_forgotten(self, say: Run, act: Act) -> None:
        """In all queues or in one; 1 is what all have."""
        assert "no weight was set" in say("weigh").stderr
        assert say("weigh", "acme", "3", "--queue", "mail").stdout == "mail: acme has the weight 3\n"
        say("weigh", "", "0.5", "--queue", "mail")
        assert act(lambda client: client.queue("mail").weights()) == {"acme": 3.0, "": 0.5}
        assert json.loads(say("weigh", "--json").stdout) == [
            {"queue": "mail", "tenant": "", "weight": 0.5},
            {"queue": "mail", "tenant": "acme", "weight": 3.0},
        ]
        assert "(jobs without a tenant)" in say("weigh").stdout
        assert say("weigh", "acme", "1").exit_code == 0
        assert act(lambda client: client.queue("mail").weights()) == {"": 0.5}
