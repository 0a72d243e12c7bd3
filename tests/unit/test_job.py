from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from saq.job import Job as SaqJob
from saq.job import Status
from saq.queue.redis import RedisQueue

from knapsaq import Job, Queue
from knapsaq.job import FIELDS, META_KEY

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
stamps = st.sampled_from([0, 1_760_000_000_000])
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text, lambda inner: st.lists(inner, max_size=3)
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "function": text.filter(bool),
    "kwargs": st.none() | st.dictionaries(text, plain, max_size=3),
    "queue": st.none(),
    "key": text.filter(bool),
    "timeout": st.integers(0, 1000),
    "heartbeat": st.integers(0, 100),
    "retries": st.integers(1, 10),
    "ttl": st.integers(-1, 10_000),
    "retry_delay": st.floats(0, 100),
    "retry_backoff": st.booleans() | st.floats(0.5, 100),
    "scheduled": st.integers(0, 2_000_000_000),
    "progress": st.floats(0, 1),
    "attempts": st.integers(0, 10),
    "completed": stamps,
    "queued": stamps,
    "started": stamps,
    "touched": stamps,
    "result": plain,
    "error": st.none() | text,
    "status": st.sampled_from(Status),
    "priority": st.integers(0, 9),
    "group_key": st.none() | text,
    "meta": st.dictionaries(text, plain, max_size=2),
    "worker_id": st.none() | text,
}
records = st.fixed_dictionaries(
    {name: VALUES[name] for name in ("function", "key")},
    optional={name: values for name, values in VALUES.items() if name not in ("function", "key")},
)


def fields_of(job: SaqJob) -> dict[str, Any]:
    return {name: value for name, value in vars(job).items() if name in FIELDS and name != "queue"}


class TestWireFormat:
    def test_every_field_of_saqs_job_is_covered_here(self) -> None:
        """A new version of SAQ with another field is noticed."""
        assert VALUES.keys() == FIELDS == {field.name for field in dataclasses.fields(Job)}

    @given(records)
    def test_a_job_is_stored_exactly_as_saq_stores_it(self, record: dict[str, Any]) -> None:
        """The same fields give the same record, so SAQ's workers, producers and web UI read ours."""
        assert Job(**record).to_dict() == SaqJob(**record).to_dict()

    async def test_saq_reads_our_records_and_we_read_saqs(self, queue: Queue) -> None:
        """In both directions, through the JSON of either side."""
        theirs = RedisQueue(queue.redis, queue.name)
        fields = {
            "function": "f",
            "key": "k",
            "kwargs": {"a": [1, None, "ü"]},
            "timeout": 60,
            "retries": 3,
            "retry_backoff": 5.0,
            "scheduled": 1_760_000_000,
            "status": Status.FAILED,
            "error": "why",
            "meta": {"mine": 1, META_KEY: {"headers": {"trace": "1"}}},
        }
        ours: Any = Job(**fields, queue=queue)
        saqs: Any = SaqJob(**fields, queue=theirs)

        read_by_saq = theirs.deserialize(queue.serialize(ours))
        read_by_us = queue.deserialize(theirs.serialize(saqs))
        assert read_by_saq is not None
        assert read_by_us is not None
        assert fields_of(read_by_saq) == fields_of(saqs) == fields_of(read_by_us)
        assert isinstance(read_by_us, Job)
        assert read_by_us.headers == {"trace": "1"}

    async def test_a_job_queued_by_saq_itself_is_found_by_ours_and_the_other_way_round(self, queue: Queue) -> None:
        """The keys are the same as well."""
        theirs = RedisQueue(queue.redis, queue.name)
        theirs_queued = await theirs.enqueue("anything", key="a", n=1)
        assert theirs_queued is not None
        found = await queue.job("a")
        assert found is not None
        assert (found.function, found.kwargs) == ("anything", {"n": 1})
        assert await queue.count("queued") == await theirs.count("queued") == 1

    async def test_an_unknown_field_of_a_later_version_is_passed_over(self, queue: Queue) -> None:
        """A newer SAQ may write to the same queue."""
        record = {"function": "f", "key": "k", "queue": queue.name, "from_the_future": 1}
        job = queue.deserialize(msgspec.json.encode(record))
        assert job is not None
        assert job.function == "f"


class TestFacts:
    @pytest.mark.parametrize(
        ("status", "ended"),
        [
            (Status.NEW, False),
            (Status.QUEUED, False),
            (Status.ACTIVE, False),
            (Status.ABORTING, False),
            (Status.ABORTED, True),
            (Status.FAILED, True),
            (Status.COMPLETE, True),
        ],
    )
    def test_whether_it_has_ended_follows_from_its_status(self, status: Status, ended: bool) -> None:
        """Every status is on one side."""
        assert Job(function="f", status=status).ended is ended

    def test_headers_are_empty_unless_given(self) -> None:
        """Reading them needs no check, and other people's ``meta`` does not disturb."""
        assert Job(function="f").headers == {}
        assert Job(function="f", meta={"other": 1}).headers == {}

    async def test_equal_keys_of_two_queues_have_marks_of_their_own(self, queue: Queue) -> None:
        """Aborting a job does not keep out one of another queue."""
        mail = Queue(queue.redis, "mail", settings=queue.settings)
        one: Job[Any] = Job(function="f", key="k", queue=queue)
        other: Job[Any] = Job(function="f", key="k", queue=mail)
        assert one.abort_id != other.abort_id
        assert one.id != other.id
