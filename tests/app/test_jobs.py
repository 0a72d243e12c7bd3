"""What is answered about jobs, and what when there is nothing to answer with."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from tests.app.conftest import Program, System, eventually, running_api

from app.campaigns.models import Campaign
from app.database import session_scope
from app.processes import free_port
from knapsaq import Client, Job, Registry
from knapsaq.testing import make_context


def test_an_unknown_job_is_answered_with_what_may_be_wrong(system: System) -> None:
    answer = system.api.get("/jobs/no-such-job")

    assert answer.status_code == 404
    assert answer.json()["detail"].startswith(
        "there is no job 'no-such-job' in queue 'default': either the key is wrong"
    )


def test_an_unknown_queue_is_answered_with_those_that_there_are(system: System) -> None:
    answer = system.api.get("/jobs/any", params={"queue": "nowhere"})

    assert (answer.status_code, answer.json()["detail"]) == (404, "there is no queue 'nowhere'; there are: default")


def test_an_unknown_schedule_is_answered_with_those_that_there_are(system: System) -> None:
    answer = system.api.post("/schedules/nightly/run")

    assert answer.status_code == 404
    assert "weekly_report" in answer.json()["detail"]


class TestProgress:
    """What a page with a progress bar asks for."""

    async def test_it_is_shown_from_the_queue_to_the_end(self, system: System, client: Client) -> None:
        """Before the job has begun, while it runs, and with its result."""
        task = client.registry.get("my_task")
        job = await task.using(delay=3600).enqueue(user_id=7)
        url = f"/jobs/{job.key}/progress"
        nothing = {"details": {}, "result": None, "error": None}
        assert system.api.get(url).json() == {"state": "PENDING", "progress": 0, **nothing}

        [started] = [Job.from_record({**job.to_dict(), "status": "active"})]
        started.queue = client.queue()
        make_context(job=started).set_progress(3, 10, step="parsing")
        await client.queue().redis.set(job.id, client.queue().serialize(started))
        shown = system.api.get(url).json()
        assert (shown["state"], shown["progress"]) == ("PROGRESS", 30)
        assert shown["details"] == {"current": 3, "total": 10, "step": "parsing"}

        await client.queue().abort(job, "not needed")
        assert system.api.get(url).json()["state"] == "REVOKED"

        done = await task.enqueue(user_id=7)
        await done.wait(10)
        shown = system.api.get(f"/jobs/{done.key}/progress").json()
        assert (shown["state"], shown["progress"]) == ("SUCCESS", 100)
        assert shown["result"] == {"status": "success", "user_id": 7}

    async def test_its_changes_are_sent_as_events_up_to_the_end(self, system: System) -> None:
        """The stream ends by itself; a campaign tells how many of its mails are on their way."""
        system.verified("progressive")
        created = system.api.post("/campaigns", json={"subject": "Progress", "body": "Hello.\n"}).json()
        with system.api.stream("GET", f"{created['job']['url']}/updates", timeout=30) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in stream.iter_lines() if line]
        assert lines[-2] == "event: complete"
        last = json.loads(lines[-1].removeprefix("data: "))
        queued = last["result"]["queued"]
        assert (last["state"], last["progress"]) == ("SUCCESS", 100)
        assert last["details"] == {"current": queued, "total": queued}

    @pytest.mark.parametrize("what", ["progress", "updates"])
    def test_an_unknown_job_has_none(self, system: System, what: str) -> None:
        """Answered as everywhere else."""
        answer = system.api.get(f"/jobs/no-such-job/{what}")
        assert answer.status_code == 404
        assert answer.json()["detail"].startswith("there is no job 'no-such-job'")

    async def test_a_request_is_found_by_its_id_in_the_jobs_that_come_of_it(
        self, system: System, client: Client
    ) -> None:
        """From the route to the job that fans out, and from there to each mail."""
        user = system.verified("correlated")
        headers = {"X-Correlation-ID": "campaign-trace-1"}
        answer = system.api.post("/campaigns", json={"subject": "Trace", "body": "Hello.\n"}, headers=headers)
        assert answer.headers["X-Correlation-ID"] == "campaign-trace-1"
        created = answer.json()
        system.ended(created["job"]["url"])
        system.campaign_ended(created["campaign"]["id"])
        async with session_scope() as session:
            campaign = await session.get_one(Campaign, UUID(created["campaign"]["id"]))
        jobs = [
            await client.queue().job(key.decode().removeprefix("saq:job:default:"))
            async for key in client.queue().redis.scan_iter(match=f"saq:job:default:flow:{campaign.workflow_id}:*")
        ]
        [mail] = [job for job in jobs if job and (job.kwargs or {}).get("user_id") == user["id"]]
        assert mail.headers["correlation_id"] == "campaign-trace-1"
        assert mail.root_id == campaign.workflow_id


class TestWhy:
    """Why a job does not run."""

    async def test_it_names_what_a_job_waits_for(self, system: System, client: Client) -> None:
        """A moment, a limit, or nothing any more."""
        limited = client.registry.get("my_task").using(rate_limit="1/h")
        first, second = await limited.enqueue(user_id=1), await limited.enqueue(user_id=2)
        await first.wait(10)
        [reason] = system.api.get(f"/jobs/{second.key}/why").json()
        assert (reason["kind"], reason["ahead"], reason["jobs"]) == ("rate limit", 0, [])
        assert reason["words"].startswith("the rate limit 'my_task' lets it run at ")
        assert datetime.fromisoformat(reason["until"]) > datetime.now(UTC) + timedelta(minutes=50)
        await second.revoke()

        later = await client.registry.get("my_task").using(delay=3600).enqueue(user_id=3)
        assert [one["kind"] for one in system.api.get(f"/jobs/{later.key}/why").json()] == ["scheduled"]
        await later.revoke()
        [ended] = system.api.get(f"/jobs/{first.key}/why").json()
        assert (ended["kind"], ended["words"], ended["until"]) == ("ended", "it has ended: it is complete", None)

    def test_it_is_described_for_clients(self, system: System) -> None:
        """The schema names the fields, and an unknown job is answered as everywhere else."""
        schema = system.api.get("/schema/openapi.json").json()
        assert "/jobs/{key}/why" in schema["paths"]
        [reason] = [one for name, one in schema["components"]["schemas"].items() if name.endswith("JobReason")]
        assert reason["properties"].keys() == {"kind", "words", "until", "ahead", "jobs"}
        assert system.api.get("/jobs/no-such-job/why").status_code == 404


@dataclass(frozen=True)
class Lonely:
    """An API in production mode, with a broker of its own and without a worker."""

    api: httpx.Client
    program: Program
    broker: Path


@pytest.fixture(scope="module")
def lonely(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lonely]:
    folder = tmp_path_factory.mktemp("lonely")
    own = env | {
        "KNAPSAQ_EMBEDDED_DIR": str(folder / "broker"),
        "APP_DATABASE_URL": f"sqlite+aiosqlite:///{folder / 'app.db'}",
        "APP_DEBUG": "false",
    }
    with running_api(free_port(), own, folder / "api.log") as (client, api):
        yield Lonely(client, api, folder / "broker")


def test_in_production_there_is_neither_sandbox_nor_schedule_and_saq_is_closed(lonely: Lonely) -> None:
    assert lonely.api.post("/schedules/weekly_report/run").status_code == 404
    assert lonely.api.get("/sandbox/charges").status_code == 404
    assert lonely.api.get("/saq").status_code in (401, 403)


def test_without_a_broker_a_sign_up_is_refused_with_what_to_do_and_can_be_sent_again(lonely: Lonely) -> None:
    """Its user is kept, the answer says to try again, and the log what is wrong and how to mend it."""
    os.kill(int((lonely.broker / "broker.pid").read_text()), signal.SIGKILL)
    body = {"email": "patient@example.com", "name": "Patient"}

    refused = lonely.api.post("/users", json=body)

    assert refused.status_code == 503
    assert refused.headers["Retry-After"] == "5"
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["detail"] == "the queue is away; try again later"
    assert lonely.api.get("/health").status_code == 503
    assert lonely.api.get("/jobs/any").status_code == 503
    assert lonely.api.post("/users", json=body).status_code == 503, "not 409: the mail is still owed"

    def logged() -> bool | None:
        log = lonely.program.output()
        return ("POST /users: broker embedded: " in log and "KNAPSAQ_BROKER_URL" in log) or None

    eventually("the log says what is wrong and how to mend it", logged)


def test_the_application_is_built_without_a_warning(app_registry: Registry) -> None:
    """Warnings are errors here; Litestar warns of what its next version will refuse."""
    from app.main import create_app  # noqa: PLC0415 - the import fills the registry

    assert create_app().openapi_schema.paths
