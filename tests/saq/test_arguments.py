"""Faults 34 to 39: arguments that never arrive, functions that are mixed up, and what gets into the log."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import logging
import uuid
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from saq.job import Job as SaqJob
from tests.saq.conftest import SOON, Program
from tests.support import eventually

FIELDS = [field.name for field in dataclasses.fields(SaqJob)]


def taking(*parameters: str) -> Any:
    """Return a function that gives back its arguments, which have these names."""
    scope: dict[str, Any] = {}
    names = ", ".join(parameters)
    pairs = ", ".join(f"{name!r}: {name}" for name in parameters)
    exec(f"async def back(ctx, *, {names}):\n    return {{{pairs}}}", scope)  # noqa: S102 - our own text
    return scope["back"]


class TestNames:
    async def test_a_parameter_may_be_named_like_any_field_of_a_job(self, saq_or_ours: Program) -> None:
        """Fault 34: SAQ takes 24 names for its own, silently, and more with each version."""
        names = [name for name in FIELDS if name != "kwargs"]
        queue = saq_or_ours.queue(tasks=[taking(*names)])
        async with saq_or_ours.working(queue, *saq_or_ours.functions):
            job = await queue.enqueue("back", **dict.fromkeys(names, "mine"))
            await saq_or_ours.ends(job)
        assert job.result == dict.fromkeys(names, "mine")

    async def test_two_functions_of_one_name_are_refused(self, saq_or_ours: Program) -> None:
        """Fault 35: SAQ keeps one of them, now this, now that."""
        queue = saq_or_ours.queue()
        with pytest.raises(Exception, match="back"):
            saq_or_ours.worker(queue, [taking("a"), taking("b")])

    async def test_an_object_whose_call_is_a_coroutine_function_is_awaited(self, saq_or_ours: Program) -> None:
        """Fault 35: SAQ runs it in a thread, and the coroutine is never awaited."""

        class Greeter:
            async def __call__(self, ctx: dict[str, Any]) -> str:
                return "hello"

        queue = saq_or_ours.queue()
        async with saq_or_ours.working(queue, ("greet", Greeter())):
            job = await saq_or_ours.job(queue, "greet")
            await saq_or_ours.ends(job, within=SOON)
        assert job.result == "hello"

    async def test_jobs_have_keys_that_nobody_can_guess(self, saq_or_ours: Program) -> None:
        """Fault 38: SAQ's hold the time and the address of the network card, and stand in URLs."""
        queue = saq_or_ours.queue()
        one, other = await saq_or_ours.job(queue), await saq_or_ours.job(queue)
        assert one.key[-12:] != other.key[-12:]


class TestContext:
    async def test_a_task_finds_its_queue_there(self, saq_or_ours: Program) -> None:
        """Fault 36: SAQ's manual promises ``ctx["queue"]``, and there is none."""

        async def look(ctx: dict[str, Any]) -> str:
            return str(ctx["queue"].name)

        queue = saq_or_ours.queue()
        async with saq_or_ours.working(queue, ("look", look)):
            job = await saq_or_ours.job(queue, "look")
            await saq_or_ours.ends(job)
        assert job.result == "default"

    async def test_what_a_task_sets_in_its_context_is_seen_by_the_hook_behind_it(self, saq_or_ours: Program) -> None:
        """Fault 39: SAQ runs the two in different tasks, so a context variable is lost between them."""
        tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
        seen: list[str] = []

        async def work(ctx: dict[str, Any]) -> None:
            tenant.set("me")

        async def after(ctx: dict[str, Any]) -> None:
            seen.append(tenant.get())

        queue = saq_or_ours.queue()
        async with saq_or_ours.working(queue, ("work", work), after_process=after):
            await saq_or_ours.job(queue, "work")
            await eventually(lambda: seen)
        assert seen == ["me"]


class TestValues:
    async def test_values_arrive_as_what_they_are(self, saq_or_ours: Program) -> None:
        """Fault 37: SAQ refuses what JSON has no word for, and turns the rest into something else."""

        async def look(ctx: dict[str, Any], *, at: datetime, who: UUID, pair: tuple[int, int]) -> list[str]:
            return [type(value).__name__ for value in (at, who, pair)]

        queue = saq_or_ours.queue(tasks=[look])
        async with saq_or_ours.working(queue, *saq_or_ours.functions):
            job = await queue.enqueue("look", at=datetime.now(UTC), who=uuid.uuid4(), pair=(1, 2))
            await saq_or_ours.ends(job)
        assert job.result == ["datetime", "UUID", "tuple"]

    async def test_arguments_are_not_logged(self, saq_or_ours: Program, caplog: pytest.LogCaptureFixture) -> None:
        """Fault 38: SAQ's log of a failure has all of them, personal data and secrets."""
        caplog.set_level(logging.DEBUG)

        async def fail(ctx: dict[str, Any], *, iban: str) -> None:
            raise LookupError

        queue = saq_or_ours.queue()
        async with saq_or_ours.working(queue, ("fail", fail)):
            job = await saq_or_ours.job(queue, "fail", iban="DE75512108001245126199")
            await saq_or_ours.ends(job)
            await asyncio.sleep(0)
        assert "DE75512108001245126199" not in caplog.text
