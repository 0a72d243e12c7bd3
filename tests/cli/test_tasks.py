from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run


class TestTasks:
    def test_the_table_shows_what_one_asks_for(self, run: Run) -> None:
        """Queue, schedule, options other than the defaults, parameters and place."""
        text = run("-A", "shop_jobs", "tasks").stdout
        for shown in (
            "greet",
            "mail",
            "0 2 * * *: at 02:00 each day (Europe/Berlin)",
            "retries=3",
            "retry_on=['ValueError']",
            "shout: bool = False",
            "shop_jobs.py:11",
        ):
            assert shown in text

    def test_json_has_the_same_for_programs(self, run: Run) -> None:
        """With names instead of columns."""
        tasks = {task["name"]: task for task in json.loads(run("-A", "shop_jobs", "tasks", "--json").stdout)}
        assert list(tasks) == ["add", "boom", "find", "greet", "nap", "nightly"]
        assert tasks["greet"]["options"] == {"timeout": 5.0, "retries": 3, "retry_on": ["ValueError"]}
        assert tasks["add"]["options"] == {}
        assert [(p["name"], p["annotation"], p["required"]) for p in tasks["add"]["parameters"]] == [
            ("x", "int", True),
            ("y", "int", False),
        ]
        assert tasks["nightly"]["schedules"] == [
            {
                "name": "nightly",
                "cron": "0 2 * * *",
                "every": None,
                "timezone": "Europe/Berlin",
                "words": "at 02:00 each day (Europe/Berlin)",
                "args": [],
                "kwargs": {"batch": 3},
            }
        ]

    def test_an_application_without_tasks_is_told_so(self, run: Run, folder: Path) -> None:
        """An empty table would leave one guessing."""
        (folder / "empty_jobs.py").write_text("from knapsaq import Registry\nregistry = Registry()\n")
        result = run("-A", "empty_jobs", "tasks")
        assert result.exit_code == 0
        assert "put @task on a function" in result.stderr

    def test_several_schedules_of_a_task_are_named(self, run: Run, folder: Path) -> None:
        """An interval is told in words alone."""
        source = """
from knapsaq import Registry

registry = Registry()


@registry.scheduled_task(every=300, schedule="a.b")
@registry.scheduled_task(every=60)
async def c() -> None: ...
"""
        (folder / "both_jobs.py").write_text(source)
        text = run("-A", "both_jobs", "tasks").stdout
        assert "every minute" in text
        assert "a.b:" in text
        assert "300" not in text
        assert "60.0" not in text

    def test_a_batched_task_is_shown_as_it_is_called(self, run: Run, folder: Path) -> None:
        """With one item, which a call by name can give."""
        source = """
from knapsaq import Batch, Registry

registry = Registry()


@registry.task(batch=Batch(size=100, wait=0.5))
async def embed(texts: "list[str]") -> list[int]:
    return [len(text) for text in texts]
"""
        (folder / "batch_jobs.py").write_text(source)
        [task] = json.loads(run("-A", "batch_jobs", "tasks", "--json").stdout)
        assert task["options"] == {"batch": {"size": 100, "wait": 0.5}}
        assert [(p["name"], p["annotation"], p["text"]) for p in task["parameters"]] == [("texts", "str", "texts: str")]
        assert run("-A", "batch_jobs", "enqueue", "embed", "texts=5").exit_code == 0
