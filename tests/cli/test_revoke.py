from __future__ import annotations

import asyncio

from tests.cli.conftest import Run

from knapsaq import Job, Registry, Settings, connect


def stored(broker_url: str, queue: str, key: str) -> Job[object]:
    """Return a job as Redis has it."""

    async def look() -> Job[object] | None:
        settings = Settings(broker_url=broker_url, queues=("default", "mail"), _env_file=None)
        async with connect(settings, registry=Registry()) as client:
            return await client.queue(queue).job(key)

    job = asyncio.run(look())
    assert job is not None
    return job


def test_jobs_of_all_queues_end_and_are_named(run: Run, broker_url: str) -> None:
    """One key a line on standard output, so that a script can go on with them."""
    run("-A", "shop_jobs", "enqueue", "add", "x=1", "--key", "first")
    run("-A", "shop_jobs", "enqueue", "greet", "name=Ann", "--key", "second")
    result = run("-A", "shop_jobs", "revoke", "first", "second", "first", "--reason", "wrong month")
    assert (result.exit_code, result.stdout.split()) == (0, ["first", "second"])
    for queue, key in (("default", "first"), ("mail", "second")):
        job = stored(broker_url, queue, key)
        assert (job.status, job.error) == ("aborted", "wrong month")


def test_a_key_of_no_job_is_told(run: Run, broker_url: str) -> None:
    """The others are revoked, and the exit code tells."""
    run("-A", "shop_jobs", "enqueue", "add", "x=1", "--key", "first")
    result = run("-A", "shop_jobs", "revoke", "first", "unheard-of", "--terminate")
    assert (result.exit_code, result.stdout.split()) == (1, ["first"])
    assert "no job 'unheard-of'" in result.stderr
    assert stored(broker_url, "default", "first").error == "revoked on the command line"


def test_one_queue_alone_is_looked_at_if_it_is_named(run: Run, broker_url: str) -> None:
    """Equal keys of two queues are two jobs; a queue that is not there is refused."""
    for queue in ("default", "mail"):
        run("-A", "shop_jobs", "enqueue", "add", "x=1", "--key", "same", "--queue", queue)
    assert run("-A", "shop_jobs", "revoke", "same", "--queue", "mail").exit_code == 0
    assert (stored(broker_url, "mail", "same").status, stored(broker_url, "default", "same").status) == (
        "aborted",
        "queued",
    )
    assert run("-A", "shop_jobs", "revoke", "same", "--queue", "nowhere").exit_code == 2


def test_a_key_is_needed(run: Run) -> None:
    """Nothing is revoked by mistake."""
    assert run("-A", "shop_jobs", "revoke").exit_code == 2
