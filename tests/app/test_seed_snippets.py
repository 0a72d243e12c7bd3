"""The snippets of the guide that the application's layout follows, as they stand there."""

from __future__ import annotations

from email.message import EmailMessage
from typing import Any

import pytest
from litestar import Litestar, post
from litestar.testing import AsyncTestClient
from litestar_saq import TaskQueues
from tests.app.conftest import System, eventually

from app.database import session_scope
from app.users.models import User
from knapsaq import Client, InvalidArgumentsError, Registry, UnknownTaskError
from knapsaq.litestar import KnapsaqPlugin


def test_task_registration(app_registry: Registry) -> None:
    """Verify tasks are registered."""
    from app.queue.registry import get_registry  # noqa: PLC0415 - as in the guide

    registry = get_registry()
    tasks = registry.get_all_tasks()

    task_names = [t.__name__ for t in tasks]
    assert "send_email" in task_names
    assert "cleanup_old_records" in task_names


async def test_task_execution(system: System, client: Client) -> None:
    """Test task execution."""
    from app.users.tasks import send_welcome_email  # noqa: PLC0415 - as in the guide

    async with session_scope() as session:
        session.add(User(id=123, email="user123@example.org", name="User"))
    ctx = {"queue": client.queue()}

    result = await send_welcome_email(ctx, user_id=123)
    assert result["status"] == "sent"
    assert len(system.mails_to("user123@example.org")) == 1


async def test_the_two_tasks_of_the_quick_start_are_defined_with_the_applications_names(app_registry: Registry) -> None:
    from saq.types import Context  # noqa: PLC0415 - as in the guide

    from app.queue.registry import scheduled_task, task  # noqa: PLC0415 - as in the guide

    @task
    async def quick_start_task(ctx: Context, *, user_id: int) -> dict:  # type: ignore[type-arg]
        """Process something for a user."""
        return {"status": "success", "user_id": user_id}

    @scheduled_task(cron="0 2 * * *")  # Daily at 2 AM
    async def daily_cleanup(ctx: Context) -> dict:  # type: ignore[type-arg]
        """Run daily cleanup."""
        return {"status": "cleaned"}

    assert await quick_start_task({}, user_id=1) == {"status": "success", "user_id": 1}
    assert await daily_cleanup({}) == {"status": "cleaned"}
    assert daily_cleanup in app_registry.get_scheduled_tasks()


@pytest.mark.filterwarnings("ignore:.*deprecated inferred style:DeprecationWarning")
async def test_a_route_enqueues_by_name(system: System, app_registry: Registry) -> None:
    """The handler of the guide; Litestar wants the return type besides."""

    @post("/process")
    async def process(task_queues: TaskQueues, user_id: int) -> dict[str, str]:
        queue = task_queues.get("default")
        job = await queue.enqueue("my_task", user_id=user_id)
        return {"job_id": job.id}  # type: ignore[union-attr]

    app = Litestar([process], plugins=[KnapsaqPlugin(system.settings)])
    async with AsyncTestClient(app) as api:
        job_id = (await api.post("/process", params={"user_id": 7})).json()["job_id"]

    assert job_id.startswith("saq:job:default:")
    job = system.ended(f"/jobs/{job_id.removeprefix('saq:job:default:')}")
    assert (job["task"], job["result"]) == ("my_task", {"status": "success", "user_id": 7})


async def test_a_scheduled_task_is_enqueued_by_hand(client: Client) -> None:
    queue = client.queue()

    # Even though it's scheduled, you can trigger it manually
    job = await queue.enqueue("cleanup_old_records")

    assert job is not None
    assert "deleted" in await job.wait(10)


async def test_a_task_enqueues_another_with_the_queue_of_its_context(system: System, client: Client) -> None:
    job = await client.queue().enqueue("enqueue_follow_up", user_id=42)

    assert job is not None
    assert await job.wait(10) == {"enqueued": True}

    def arrived() -> EmailMessage | None:
        return next(iter(system.mails_to("user42@example.com")), None)

    assert eventually("the follow-up's mail arrives", arrived)["Subject"] == "A message for you"


async def test_a_task_has_its_database_session_injected(system: System, client: Client) -> None:
    user = system.sign_up("injected")

    job = await client.queue().enqueue("update_user_status", user_id=user["id"], status="verified")

    assert job is not None
    assert (await job.wait(10))["updated"] == user["id"]


async def test_data_is_processed(client: Client) -> None:
    job = await client.queue().enqueue("process_data", data_id=5)

    assert job is not None
    assert (await job.wait(10))["processed"] == 5


@pytest.mark.parametrize(
    ("name", "arguments", "error", "text"),
    [
        ("send_emial", {}, UnknownTaskError, "did you mean 'send_email'"),
        ("my_task", {}, InvalidArgumentsError, "'user_id'"),
        ("my_task", {"user_id": "seven"}, InvalidArgumentsError, "'user_id'"),
        ("my_task", {"user_id": object()}, InvalidArgumentsError, "'user_id'"),
        ("my_task", {"user_id": 1, "unknown": 2}, InvalidArgumentsError, "'unknown'"),
    ],
)
async def test_a_wrong_call_says_what_is_wrong_and_queues_nothing(
    client: Client, name: str, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    queue = client.queue()
    before = (await queue.count("incomplete"), await queue.count("queued"))

    with pytest.raises(error, match=text):
        await queue.enqueue(name, **arguments)

    assert (await queue.count("incomplete"), await queue.count("queued")) == before
