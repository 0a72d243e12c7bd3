"""Campaigns as workflows: whose turn it is, what cancelling means, and what becomes of mails that fail."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, repeat

import pytest
from tests.app.conftest import eventually
from tests.app.fleet import Fleet, running_fleet

from knapsaq import Queue, Registry, connect

RATE = 80


@pytest.fixture(scope="module")
def fleet(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running_fleet(tmp_path_factory.mktemp("fleet"), env) as fleet:
        yield fleet


@pytest.fixture
async def queue(fleet: Fleet, app_registry: Registry) -> AsyncIterator[Queue]:
    """A connection to the fleet's broker from this process."""
    async with connect(fleet.settings, registry=app_registry) as client:
        yield client.queue()


class TestTurns:
    async def test_two_tenants_share_the_providers_rate_mail_by_mail(self, fleet: Fleet, queue: Queue) -> None:
        """However early one came and however much it sends; and no more goes out than the provider takes."""
        readers = fleet.verify(200)
        await queue.strike("send_campaign_email")
        first, second = fleet.send("From acme", "acme"), fleet.send("From beta", "beta")
        for campaign_id in (first, second):
            assert fleet.fanned_out(campaign_id)["result"] == {"queued": 200}
        await queue.restore("send_campaign_email")
        began = time.monotonic()

        for campaign_id, subject in ((first, "From acme"), (second, "From beta")):
            seen = fleet.campaign_ended(campaign_id)
            assert (seen["state"], seen["recipients"], seen["sent"]) == ("sent", 200, 200)
            assert seen["report"] == {"sent": 200, "failed": 0, "seconds": seen["report"]["seconds"]}
            assert fleet.arrived(subject) == dict.fromkeys(readers, 1)
        assert time.monotonic() - began >= 399 / RATE - 0.1
        ahead = [*accumulate(1 if subject == "From acme" else -1 for subject, _ in fleet.post.taken)]
        assert max(map(abs, ahead)) <= 20, "ten mails are handed over at once, so that some overtake others"

    def test_the_time_that_it_took_is_in_the_report(self, fleet: Fleet) -> None:
        """From the moment at which it was fanned out."""
        fleet.verify(41)

        seen = fleet.campaign_ended(fleet.send("Timed"))

        assert 40 / RATE <= seen["report"]["seconds"] < 30


class TestCancelling:
    async def test_what_is_out_stays_so_and_nothing_else_goes_out(self, fleet: Fleet, queue: Queue) -> None:
        """Neither then, nor when campaigns are resumed, nor while others are sent."""
        fleet.verify(200)
        campaign_id = fleet.send("Half of it")
        fleet.await_mails("Half of it", 5)

        answer = fleet.api.post(f"/campaigns/{campaign_id}/cancel", timeout=30)

        assert answer.status_code == 200, answer.text
        seen = answer.json()
        assert (seen["state"], seen["recipients"], seen["report"]) == ("cancelled", 200, None)
        assert 5 <= seen["sent"] < 200
        out = fleet.arrived("Half of it")
        assert (out.total(), max(out.values())) == (seen["sent"], 1)
        assert await queue.count("incomplete") == 0, "nothing of it is left that could run"
        assert resumed(fleet) == 0
        fleet.verify(3)
        assert fleet.campaign_ended(fleet.send("After it"))["state"] == "sent"
        assert fleet.arrived("Half of it") == out
        assert fleet.campaign(campaign_id) == seen

    def test_a_mail_that_is_being_handed_over_is_finished_before_the_answer_comes(self, fleet: Fleet) -> None:
        """It is counted as sent, not left in between."""
        first, *_ = fleet.verify(100)
        fleet.post.hold(first)
        campaign_id = fleet.send("In hand")
        eventually("its mail has come", lambda: first in fleet.post.holding or None)

        with ThreadPoolExecutor() as pool:
            cancelling = pool.submit(fleet.api.post, f"/campaigns/{campaign_id}/cancel", timeout=30)
            eventually("it counts", lambda: fleet.campaign(campaign_id)["state"] == "cancelled" or None)
            assert not cancelling.done()
            fleet.post.release()
            seen = cancelling.result().json()

        out = fleet.arrived("In hand")
        assert out[first] == 1
        assert out.total() == seen["sent"] < 100

    async def test_before_anything_is_fanned_out_nothing_will_be(self, fleet: Fleet, queue: Queue) -> None:
        """The job that would do it finds out."""
        fleet.verify(2)
        await queue.pause()
        campaign_id = fleet.send("Never")
        assert fleet.api.post(f"/campaigns/{campaign_id}/cancel").json()["state"] == "cancelled"
        await queue.resume()

        job = fleet.fanned_out(campaign_id)

        assert (job["status"], job["error"]) == ("aborted", f"discarded: campaign {campaign_id} was cancelled")
        assert not fleet.arrived("Never")
        assert fleet.campaign(campaign_id)["recipients"] == 0

    def test_what_has_ended_stays_as_it_is(self, fleet: Fleet) -> None:
        """Cancelling it is refused, which is no fault of ours that were worth a traceback in the log."""
        fleet.verify(1)
        campaign_id = fleet.send("Over")
        fleet.campaign_ended(campaign_id)

        refused = fleet.api.post(f"/campaigns/{campaign_id}/cancel")

        assert (refused.status_code, refused.json()["detail"]) == (409, "the campaign has ended: it is sent")
        assert fleet.campaign(campaign_id)["state"] == "sent"
        assert "Traceback" not in (fleet.folder / "api.log").read_text()


class TestFailures:
    def test_an_address_that_is_refused_for_good_is_in_the_report_and_not_tried_again(self, fleet: Fleet) -> None:
        """One that is to come again does."""
        gone, late, _ = fleet.verify(3)
        fleet.post.refusals = {gone: repeat("550 no such user"), late: iter(["451 come again", "451 come again"])}

        seen = fleet.campaign_ended(fleet.send("To nobody"))

        assert seen["state"] == "incomplete"
        assert (seen["report"]["sent"], seen["report"]["failed"]) == (2, 1)
        assert fleet.arrived("To nobody")[late] == 1
        assert resumed(fleet) == 0

    def test_a_mail_that_fails_for_good_does_not_hang_the_report_and_is_resumed(self, fleet: Fleet) -> None:
        """Its retries are spent, the others are out; with the next schedule it goes out too, and it alone."""
        readers = fleet.verify(3)
        fleet.post.refusals = {readers[1]: repeat("451 come again")}
        campaign_id = fleet.send("Patience")
        seen = fleet.campaign_ended(campaign_id)
        assert (seen["state"], seen["report"]["sent"], seen["report"]["failed"]) == ("incomplete", 2, 1)

        fleet.post.refusals.clear()
        assert resumed(fleet) == 1

        eventually("all have it", lambda: fleet.campaign(campaign_id)["state"] == "sent" or None)
        report = fleet.campaign(campaign_id)["report"]
        assert (report["sent"], report["failed"]) == (3, 0)
        assert fleet.arrived("Patience") == dict.fromkeys(readers, 1)

    async def test_a_workflow_that_is_lost_is_sent_again_for_what_waits(self, fleet: Fleet, queue: Queue) -> None:
        """As after the loss of Redis' data; what is out stays so, and no run writes another one's report."""
        readers = fleet.verify(100)
        campaign_id = fleet.send("Lost")
        fleet.await_mails("Lost", 5)
        await queue.redis.flushdb()
        assert fleet.arrived("Lost").total() < 100

        assert resumed(fleet) == 1

        assert fleet.campaign_ended(campaign_id)["report"]["sent"] == 100
        assert fleet.arrived("Lost") == dict.fromkeys(readers, 1)

    def test_a_killed_worker_leaves_no_mail_to_be_sent_twice(self, fleet: Fleet) -> None:
        """Not even the one that the server had taken, but not answered: it counts as failed, as nobody knows."""
        readers = fleet.verify(100)
        fleet.post.hold(readers[4])
        campaign_id = fleet.send("Killed")
        eventually("its mail has come", lambda: readers[4] in fleet.post.holding or None)
        fleet.await_mails("Killed", 10)

        fleet.kill_worker()
        fleet.post.release()
        fleet.start_worker()

        seen = fleet.campaign_ended(campaign_id)
        out = fleet.arrived("Killed")
        assert set(out.values()) == {1}
        assert out[readers[4]] == 1
        assert seen["state"] == "incomplete"
        assert seen["report"]["sent"] + seen["report"]["failed"] == 100
        assert 1 <= seen["report"]["failed"] <= 10, "no more than were being handed over"
        assert resumed(fleet) == 0


def resumed(fleet: Fleet) -> int:
    """Run the schedule that resumes campaigns, and return how many it has."""
    job = fleet.ended(fleet.api.post("/schedules/resume_campaigns/run").json()["url"])
    return int(job["result"]["queued"])
