"""Seed: "Abstract Base Tasks". A mixin's defaults are a preset, and its methods are functions or providers."""

from __future__ import annotations

from collections.abc import Callable

from knapsaq import INJECTED, Client, Registry
from knapsaq.testing import running_worker

GetUser = Callable[[int], str]

users = {7: "ada@example.com"}


def get_user(user_id: int) -> str:
    """The mixin's method."""
    return users[user_id]


async def test_a_preset_is_a_base_class_and_a_preset_of_a_preset_a_subclass(client: Client, registry: Registry) -> None:
    """The seed's notification tasks; a task may say otherwise for itself."""
    notification = registry.task.preset(retries=3, retry_delay=60)
    email_notification = notification.preset(queue="mail")

    @email_notification
    async def send_email_notification(user_id: int, template: str) -> str:
        return f"{template} to {get_user(user_id)}"

    @email_notification(retries=0)
    async def send_code(user_id: int) -> str:
        return f"code to {get_user(user_id)}"

    async with running_worker(registry=registry):
        job = await send_email_notification.enqueue(7, "welcome")
        assert await job.wait(5) == "welcome to ada@example.com"
        code = await send_code.enqueue(7)
        assert await code.wait(5) == "code to ada@example.com"
    assert (job.retries, job.retry_delay, job.get_queue().name) == (4, 60, "mail")
    assert (code.retries, code.get_queue().name) == (1, "mail")


async def test_what_tasks_share_may_be_given_to_them(client: Client, registry: Registry) -> None:
    """So a test can give something else; a provider stands with the preset, and the task names it."""
    notification = registry.task.preset(retries=3, dependencies={"get_user": lambda: get_user})

    @notification
    async def send_email_notification(user_id: int, template: str, *, get_user: GetUser = INJECTED) -> str:
        return f"{template} to {get_user(user_id)}"

    async with running_worker(registry=registry):
        assert await (await send_email_notification.enqueue(7, "welcome")).wait(5) == "welcome to ada@example.com"
    assert await send_email_notification(7, "welcome", get_user=lambda _: "a test") == "welcome to a test"
