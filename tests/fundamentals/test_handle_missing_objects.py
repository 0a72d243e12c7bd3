"""Seed: "Handle Missing Objects". What was deleted between the call and the run is no reason to try again."""

from __future__ import annotations

import pytest

from knapsaq import Client, Context, Discard, JobRevokedError, Registry
from knapsaq.testing import running_worker


@pytest.fixture
def users() -> dict[int, str]:
    """The table."""
    return {7: "ada@example.com"}


async def test_a_task_logs_and_skips_what_is_gone(
    client: Client, registry: Registry, users: dict[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    """The seed's task: it returns nothing, its job is complete, and its retries are left for real errors."""

    @registry.task(retries=3)
    async def send_notification(ctx: Context, user_id: int) -> str | None:
        try:
            address = users[user_id]
        except KeyError:
            ctx.logger.warning("User %s not found, skipping notification", user_id)
            return None
        return f"sent to {address}"

    async with running_worker(registry=registry):
        assert await (await send_notification.enqueue(7)).wait(5) == "sent to ada@example.com"

    job = await send_notification.enqueue(7)
    del users[7]
    async with running_worker(registry=registry):
        assert await job.wait(5) is None
    assert (job.status, job.attempts) == ("complete", 1)
    assert "User 7 not found, skipping notification" in caplog.messages


async def test_a_discarded_job_says_why_where_people_look(
    client: Client, registry: Registry, users: dict[int, str]
) -> None:
    """One line instead: ``job.error`` and whoever waits have the reason, and it is not tried again."""

    @registry.task(retries=3)
    async def send_notification(user_id: int) -> str:
        if user_id not in users:
            raise Discard(f"there is no user {user_id}")
        return f"sent to {users[user_id]}"

    async with running_worker(registry=registry):
        job = await send_notification.enqueue(8)
        with pytest.raises(JobRevokedError, match="discarded: there is no user 8"):
            await job.wait(5)
    assert (job.status, job.error, job.attempts) == ("aborted", "discarded: there is no user 8", 1)
