"""The manual as code: which queue a job goes to, where its task names none."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support import eventually

from knapsaq import Client, Queue, Registry, Settings, SettingsError, connect
from knapsaq.testing import running_worker

ROUTES = {"payments.*": "payments", "mail.*": "mail", "*.reports.*": "reports", "*": "default"}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Four queues, and patterns that lead to them."""
    return settings.with_values(queues=("default", "payments", "mail", "reports"), task_routes=ROUTES)


class TestPatterns:
    @pytest.mark.parametrize(
        ("name", "queue"),
        [
            ("payments.charge", "payments"),
            ("mail.send", "mail"),
            ("other", "default"),
            ("app.reports.build", "reports"),
        ],
    )
    async def test_a_task_that_names_no_queue_goes_where_its_name_leads(
        self, client: Client, registry: Registry, name: str, queue: str
    ) -> None:
        """Typed, by name and with options of one call; workers of that queue run it."""

        @registry.task(name=name)
        async def run() -> str:
            return "done"

        jobs = [await run.enqueue(), await run.using(headers={"a": "b"}).enqueue(), await client.enqueue(name)]
        jobs += await run.enqueue_many([{}])
        assert {job.get_queue().name for job in jobs if job} == {queue}
        assert await client.queue(queue).count("queued") == 4
        async with running_worker([queue], registry=registry):
            for job in jobs:
                assert job is not None
                assert await job.wait(10) == "done"

    async def test_a_queue_that_is_named_wins(self, client: Client, registry: Registry) -> None:
        """By the task, also where that is the default one, and by the call."""

        @registry.task(name="payments.charge", queue="mail")
        async def charge() -> None: ...

        @registry.task(name="payments.refund", queue="default")
        async def refund() -> None: ...

        @registry.task(name="payments.note")
        async def note() -> None: ...

        assert (await charge.enqueue()).get_queue().name == "mail"
        assert (await refund.enqueue()).get_queue().name == "default"
        assert (await note.using(queue="reports").enqueue()).get_queue().name == "reports"
        job = await client.queue("reports").enqueue("payments.note")  # whoever picks a queue has picked it
        assert job is not None
        assert job.get_queue().name == "reports"

    async def test_the_name_decides_before_the_module_does_and_then_the_first_pattern(self, settings: Settings) -> None:
        """A module's tasks need no name of one style."""
        registry = Registry()

        @registry.task(name="plain")
        async def by_module() -> None: ...

        @registry.task(name="mail.send")
        async def by_name() -> None: ...

        module = by_module.__module__
        for routes, queues in (
            ({f"{module}.*": "payments", "mail.*": "mail"}, ("payments", "mail")),
            ({module: "payments"}, ("payments", "payments")),
            ({"*by_module": "payments"}, ("payments", "default")),
            ({"mail.*": "mail", "*": "reports"}, ("reports", "mail")),
            ({"*": "reports", "mail.*": "mail"}, ("reports", "reports")),
            ({}, ("default", "default")),
        ):
            async with connect(settings.with_values(task_routes=routes), registry=registry):
                assert (by_module.options.queue, by_name.options.queue) == queues, routes

    async def test_a_schedule_fires_in_the_queue_of_its_task(self, client: Client, registry: Registry) -> None:
        """A worker of that queue keeps its time, and no other."""

        @registry.scheduled_task(cron="* * * * * *", name="payments.settle")
        async def settle() -> str:
            return "settled"

        async with running_worker(["payments"], registry=registry):
            queue = client.queue("payments")
            job = await eventually(lambda: _fired(queue))
            assert await job.wait(10) == "settled"
            assert [entry.queue for entry in await registry.schedules.list()] == ["payments"]

    async def test_it_costs_a_job_nothing(self, queue: Queue, registry: Registry) -> None:
        """The patterns are read when the task is defined or the program connects, and not when a job is sent."""

        @registry.task(name="payments.charge")
        async def charge() -> None: ...

        registry._routes = {"*": "mail"}
        assert (await charge.enqueue()).get_queue().name == "payments"


async def _fired(queue: Queue) -> Any:
    return next(iter([job async for job in queue.iter_jobs()]), None)


class TestWrongPatterns:
    async def test_a_pattern_that_leads_to_no_queue_is_named_before_anything_starts(self, settings: Settings) -> None:
        """With the nearest queue."""
        wrong = settings.with_values(task_routes={"a.*": "mail", "payments.*": "paymnets"})
        with pytest.raises(SettingsError, match=r"KNAPSAQ_TASK_ROUTES.*'payments\.\*'.*did you mean 'payments'"):
            async with connect(wrong, registry=Registry()):
                pytest.fail("it connected")

    @pytest.mark.parametrize("value", ["payments", "[1]", '{"a": 1}', '{"": "mail"}', '{"a": "two words"}'])
    def test_what_is_no_object_of_patterns_and_queues_is_refused(
        self, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With the variable's name."""
        monkeypatch.setenv("KNAPSAQ_TASK_ROUTES", value)
        with pytest.raises(SettingsError, match="KNAPSAQ_TASK_ROUTES"):
            Settings(_env_file=None)

    def test_the_environment_has_them_as_json(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A program gives a dictionary."""
        monkeypatch.setenv("KNAPSAQ_TASK_ROUTES", '{"shop.payments.*": "payments", "*": "default"}')
        routes: dict[str, Any] = {"shop.payments.*": "payments", "*": "default"}
        assert list(Settings(_env_file=None).task_routes.items()) == list(routes.items())
        assert Settings(task_routes=routes, _env_file=None).task_routes == routes
