"""Campaigns, over HTTP and with a real worker."""

from __future__ import annotations

from typing import Any

import pytest
from tests.app.conftest import System, eventually

from knapsaq import Client


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
