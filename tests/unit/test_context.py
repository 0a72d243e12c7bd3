from __future__ import annotations

import logging
import socket

import pytest

from knapsaq import Context, Job, Registry, Retry
from knapsaq.testing import make_context


class TestInsideAWorker:
    @pytest.fixture
    def ctx(self, registry: Registry) -> Context:
        """What the second attempt of a job sees."""

        @registry.task(name="mail.send")
        def send() -> None: ...

        job: Job[object] = send.build_job(send.using(key="k", headers={"trace": "1"}).options, (), {})
        job.attempts = 2
        return Context(job=job, queue="the queue", worker="the worker", task=send, mine="from start-up")

    def test_it_is_saqs_dictionary_with_attributes_beside_it(self, ctx: Context) -> None:
        """Functions written for SAQ find everything where it was."""
        assert ctx["job"] is ctx.job
        assert ctx["queue"] is ctx.queue
        assert ctx.task is ctx["task"]
        assert ctx["mine"] == "from start-up"
        assert isinstance(ctx, dict)

    def test_it_knows_the_job(self, ctx: Context) -> None:
        """Key, headers, and how many attempts came before."""
        assert (ctx.id, ctx.headers, ctx.retries, ctx.called_directly) == ("k", {"trace": "1"}, 1, False)

    def test_it_knows_the_machine(self, ctx: Context) -> None:
        """As the system calls it; also where the task is called directly."""
        assert ctx.hostname == make_context().hostname == socket.gethostname()

    def test_its_logger_names_job_and_task(self, ctx: Context, caplog: pytest.LogCaptureFixture) -> None:
        """Every line of a job's log can be found by its key."""
        with caplog.at_level(logging.INFO):
            ctx.logger.info("sent")
        [record] = caplog.records
        assert record.name == "knapsaq.task.mail.send"
        assert (record.__dict__["job"], record.__dict__["task"]) == ("k", "mail.send")


class TestDirectCall:
    def test_without_a_worker_nothing_is_there_and_nothing_fails(self) -> None:
        """A test may call any task with an empty context."""
        ctx = make_context()
        assert (ctx.id, ctx.headers, ctx.retries, ctx.called_directly) == ("", {}, 0, True)
        ctx.logger.info("works")

    def test_a_first_attempt_has_no_retries_even_if_nobody_counted_it(self) -> None:
        """A job that was never claimed has 0 attempts, not -1 retries."""
        assert make_context(job=Job(function="f")).retries == 0

    def test_what_is_missing_is_an_ordinary_missing_key(self) -> None:
        """Only what a task really uses has to be brought along."""
        with pytest.raises(KeyError, match="queue"):
            _ = make_context().queue
        assert make_context(queue=5).queue == 5


def test_any_mapping_becomes_a_context_and_a_context_stays_itself() -> None:
    """Entries are copied from a mapping; a context is shared."""
    entries = {"a": 1}
    made = Context.of(entries)
    assert made == entries
    assert made is not entries
    assert Context.of(made) is made


def test_retry_gives_the_signal_to_raise() -> None:
    """``raise ctx.retry(...)`` reads like the seed's ``raise self.retry(...)``."""
    cause = OSError("down")
    signal = make_context().retry(after=60, cause=cause)
    assert isinstance(signal, Retry)
    assert (signal.after, signal.__cause__) == (60.0, cause)


def test_a_retry_without_a_cause_does_not_hide_the_exception_that_is_being_handled() -> None:
    """Who calls the task directly sees both in the traceback."""

    def task() -> None:
        try:
            raise OSError("down")  # noqa: TRY301 - that is what people write
        except OSError:
            raise make_context().retry()  # noqa: B904 - likewise

    with pytest.raises(Retry) as caught:
        task()
    assert isinstance(caught.value.__context__, OSError)
    assert not caught.value.__suppress_context__
