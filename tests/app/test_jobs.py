"""What is answered about jobs, and what when there is nothing to answer with."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tests.app.conftest import Program, System, eventually, running_api

from app.processes import free_port
from knapsaq import Registry


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
