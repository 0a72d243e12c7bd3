"""Campaigns, over HTTP and with a real worker."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError
from tests.app.conftest import System, eventually

from app.settings import AppSettings
from knapsaq import Client

UNKNOWN = "0190b6a5-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def readers(system: System) -> list[dict[str, Any]]:
    return [system.verified(f"reader{number}") for number in range(3)]


async def test_a_campaign_reaches_every_verified_user_once_even_if_it_runs_twice(
    system: System, readers: list[dict[str, Any]], client: Client
) -> None:
    stranger = system.sign_up("stranger")
    created = system.api.post("/campaigns", json={"subject": "Once only", "body": "Hello.\n"})
    assert created.status_code == 201
    campaign = created.json()["campaign"]

    first = system.ended(created.json()["job"]["url"])
    again = await client.queue().enqueue("send_campaign", campaign_id=campaign["id"])
    assert again is not None
    await again.wait(10)

    def is_sent() -> dict[str, Any] | None:
        seen: dict[str, Any] = system.api.get(f"/campaigns/{campaign['id']}").json()
        return seen if seen["sent"] == seen["recipients"] else None

    seen = eventually("all mails are sent", is_sent)
    assert seen["recipients"] == first["result"]["queued"] >= len(readers)
    for reader in readers:
        assert [mail["Subject"] for mail in system.mails_to(reader["email"])].count("Once only") == 1
    assert len(system.mails_to(stranger["email"])) == 1

    third = await client.queue().enqueue("send_campaign", campaign_id=campaign["id"])
    assert third is not None
    assert await third.wait(10) == {"queued": 0}


def test_a_campaign_without_recipients_left_is_not_resumed(system: System) -> None:
    job = system.api.post("/schedules/resume_campaigns/run").json()

    assert system.ended(job["url"])["status"] == "complete"


def test_its_progress_is_shown_and_sent_as_events_up_to_the_end(system: System, readers: list[dict[str, Any]]) -> None:
    """The stream ends by itself, and never goes back."""
    created = system.api.post("/campaigns", json={"subject": "Watched", "body": "Hello.\n", "tenant": "acme"}).json()
    url = f"/campaigns/{created['campaign']['id']}"
    assert (created["campaign"]["tenant"], created["campaign"]["state"]) == ("acme", "queued")

    with system.api.stream("GET", f"{url}/updates", timeout=30) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in stream.iter_lines() if line]

    seen = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    progress = [update["progress"] for update in seen]
    assert progress == sorted(progress)
    assert lines[-2] == "event: sent"
    assert seen[-1] == system.api.get(f"{url}/progress").json()
    shown = system.api.get(url).json()
    assert seen[-1] == {
        "state": "sent",
        "progress": 100,
        "recipients": shown["recipients"],
        "sent": shown["report"]["sent"],
    }


@pytest.mark.parametrize("what", ["", "/progress", "/updates", "/cancel"])
def test_an_unknown_campaign_is_answered_as_such(system: System, what: str) -> None:
    url = f"/campaigns/{UNKNOWN}{what}"
    answer = system.api.post(url) if what == "/cancel" else system.api.get(url)

    assert (answer.status_code, answer.json()["detail"]) == (404, f"there is no campaign {UNKNOWN}")


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"tenant": "two words"}, "tenant"),
        ({"tenant": ""}, "tenant"),
        ({"tenant": "x" * 41}, "tenant"),
        ({"subject": "two\nlines"}, "subject"),
        ({"body": ""}, "body"),
    ],
)
def test_wrong_input_is_refused_with_the_field(system: System, wrong: dict[str, str], field: str) -> None:
    refused = system.api.post("/campaigns", json={"subject": "Wrong", "body": "Hello.\n"} | wrong)

    assert (refused.status_code, refused.json()["problems"][0]["key"]) == (400, field)


def test_a_rate_that_is_none_is_refused_with_what_one_looks_like(app_settings: None) -> None:
    with pytest.raises(ValidationError, match=r"mail_rate.*\n.*such as '10/s', '100/h' or '5/15m'"):
        AppSettings(mail_rate="fast")
