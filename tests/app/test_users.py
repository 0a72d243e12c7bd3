"""Sign-up, verification and the tasks around users, over HTTP and with a real worker."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import update
from tests.app.conftest import System

from app.database import session_scope
from app.mail import MailReceipt
from app.users.models import User
from knapsaq import Client, Registry


def test_a_sign_up_is_answered_with_a_job_that_sends_the_welcome_mail(system: System) -> None:
    answer = system.api.post("/users", json={"email": "ada@example.com", "name": "Ada"})

    assert answer.status_code == 201
    user, job = answer.json()["user"], answer.json()["job"]
    assert job["task"] == "send_welcome_email"
    assert system.ended(job["url"]) == {
        "key": job["key"],
        "task": "send_welcome_email",
        "queue": "default",
        "status": "complete",
        "attempts": 1,
        "result": {"status": "sent", "user_id": user["id"]},
        "error": None,
        "seconds": system.ended(job["url"])["seconds"],
    }
    [mail] = system.mails_to("ada@example.com")
    assert mail["Subject"] == "Welcome, Ada"
    assert system.api.get(f"/users/{user['id']}").json()["status"] == "unverified"


def test_the_code_out_of_the_mail_verifies_and_another_does_not(system: System) -> None:
    user = system.sign_up("grace")
    url = f"/users/{user['id']}/verification"

    refused = system.api.post(url, json={"token": "guessed"})
    assert refused.status_code == 400
    assert refused.json()["detail"] == "this is not the code out of the welcome mail"

    assert system.api.post(url, json={"token": system.code_of(user)}).json()["status"] == "verified"


def test_an_address_signs_up_once(system: System) -> None:
    user = system.sign_up("edsger")

    again = system.api.post("/users", json={"email": user["email"], "name": "Somebody else"})

    assert again.status_code == 409
    assert again.headers["content-type"] == "application/problem+json"
    assert len(system.mails_to(user["email"])) == 1


def test_wrong_input_is_refused_with_what_is_wrong(system: System) -> None:
    refused = system.api.post("/users", json={"email": "no address", "name": "X"})

    assert refused.status_code == 400
    assert refused.json()["problems"][0]["key"] == "email"
    assert system.api.get("/users/999999").json()["detail"] == "there is no user 999999"


def test_a_status_is_changed_in_the_background(system: System) -> None:
    user = system.verified("barbara")

    answer = system.api.put(f"/users/{user['id']}/status", json={"status": "suspended"})

    assert answer.status_code == 202
    assert system.ended(answer.json()["url"])["result"] == {"updated": user["id"], "status": "suspended"}
    assert system.api.get(f"/users/{user['id']}").json()["status"] == "suspended"


async def test_a_second_run_of_the_welcome_mail_sends_nothing(system: System, client: Client) -> None:
    user = system.sign_up("donald")

    job = await client.queue().enqueue("send_welcome_email", user_id=user["id"])

    assert job is not None
    assert await job.wait(10) == {"status": "already sent", "user_id": user["id"]}
    assert len(system.mails_to(user["email"])) == 1


async def test_a_welcome_mail_without_its_user_is_discarded(system: System, client: Client) -> None:
    job = await client.queue().enqueue("send_welcome_email", user_id=987_654)

    assert job is not None
    ended = system.ended(f"/jobs/{job.key}")
    assert (ended["status"], ended["attempts"], ended["error"]) == ("aborted", 1, "discarded: there is no user 987654")


async def test_the_clean_up_deletes_old_unverified_users_and_spares_the_others(
    system: System, app_registry: Registry
) -> None:
    old, new, verified = system.sign_up("old"), system.sign_up("new"), system.verified("loyal")
    async with session_scope() as session:
        month_ago = datetime.now(UTC) - timedelta(days=30)
        await session.execute(update(User).where(User.id.in_([old["id"], verified["id"]])).values(created_at=month_ago))

    job = system.api.post("/schedules/cleanup_unverified_users/run").json()

    assert system.ended(job["url"])["result"] == {"deleted": 1}
    codes = [system.api.get(f"/users/{user['id']}").status_code for user in (old, new, verified)]
    assert codes == [404, 200, 200]


async def test_the_clean_up_of_old_records_goes_through_all_batches(system: System, client: Client) -> None:
    async with session_scope() as session:
        long_ago = datetime.now(UTC) - timedelta(days=365)
        session.add_all(MailReceipt(reference=f"old-{number}", sent_at=long_ago) for number in range(7))

    job = await client.queue().enqueue("cleanup_old_records", batch_size=3)

    assert job is not None
    assert await job.wait(10) == {"deleted": 7}


def test_the_weekly_report_is_mailed_once_a_week(system: System) -> None:
    first = system.ended(system.api.post("/schedules/weekly_report/run").json()["url"])["result"]
    again = system.ended(system.api.post("/schedules/weekly_report/run").json()["url"])["result"]

    assert (first["sent"], again["sent"]) == (1, 0)
    [report] = system.mails_to("team@knapsaq.example")
    assert report["Subject"].startswith("Weekly report: week ")
