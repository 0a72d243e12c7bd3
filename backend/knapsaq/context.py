"""Context: what a running task may know and ask.

It is SAQ's dictionary (``ctx["queue"]``, ``ctx["job"]``, ``ctx["worker"]``) with the
same facts as typed attributes beside them.
"""

from __future__ import annotations

import functools
import logging
import socket
from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from knapsaq.lineage import CORRELATION
from knapsaq.outcomes import Retry
from knapsaq.progress import NO_TURN, Reporter, checked, is_running, put
from knapsaq.timing import Duration
from knapsaq.workflow_errors import WorkflowError

if TYPE_CHECKING:
    from knapsaq.canvas import Expression
    from knapsaq.job import Job
    from knapsaq.middleware import Stack
    from knapsaq.task import Task

logger = logging.getLogger("knapsaq.task")


class Context(dict[str, Any]):
    """The first argument of a task that asks for it.

    Entries are ``queue``, ``job``, ``worker``, ``task``, and whatever the worker's start-up functions put there.
    """

    stack: Stack | None = None
    """In the worker: the hooks of middlewares that concern the job."""

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> Context:
        """Return ``entries`` as a context; a context is returned as it is."""
        return entries if isinstance(entries, cls) else cls(entries)

    @property
    def job(self) -> Job[Any]:
        """The job that runs; ``KeyError`` where the task was called directly without one."""
        job: Job[Any] = self["job"]
        return job

    @property
    def jobs(self) -> Sequence[Job[Any]]:
        """The jobs of the run: those of a batch in the order of its list, else the one; none if called directly."""
        return [self["job"]] if "job" in self else []

    @property
    def queue(self) -> Any:
        """The queue that the job came from; enqueue follow-up jobs with it."""
        return self["queue"]

    @property
    def task(self) -> Task[..., Any]:
        """The task that runs."""
        task: Task[..., Any] = self["task"]
        return task

    @property
    def id(self) -> str:
        """The job's key; empty where the task was called directly."""
        return str(self["job"].key) if "job" in self else ""

    @property
    def retries(self) -> int:
        """How many attempts came before this one; 0 on the first."""
        return max(0, self["job"].attempts - 1) if "job" in self else 0

    @property
    def headers(self) -> Mapping[str, str]:
        """The text that travels with the job, by name."""
        return self["job"].headers if "job" in self else {}

    @property
    def parent_id(self) -> str | None:
        """The key of the job that this one follows from; None where there is none."""
        return self["job"].parent_id if "job" in self else None

    @property
    def root_id(self) -> str:
        """The id of the workflow that the job is of, else the key of the job with which it began; see ``Job``."""
        return str(self["job"].root_id) if "job" in self else ""

    async def spawn(self, expression: Expression) -> None:
        """Add to the workflow of this job: the new nodes run at once, and the workflow ends after them.

        They are added in one step, and only while the job is this attempt's: one that lost it to another worker adds
        nothing. An attempt that is repeated adds them again.

        Args:
            expression: A signature, or anything that is put together of them; it gets this job's headers.

        Raises:
            WorkflowError: The job is of no workflow, or of one that was revoked or has ended, or is no longer this
                attempt's.
            InvalidArgumentsError: Arguments do not fit a task.
        """
        await self._extend(expression, replaces=False)

    async def replace(self, expression: Expression) -> Any:
        """Put something else in the place of this job: ``return await ctx.replace(other.s())``.

        What follows this job then follows from that, and gets its result; it has to fit this task's annotation. What
        this attempt itself returns no longer counts. An attempt that is repeated finds it done already.

        Raises:
            The same as ``spawn``.
        """
        await self._extend(expression, replaces=True)

    async def _extend(self, expression: Expression, *, replaces: bool) -> None:
        if "job" not in self or "task" not in self:
            raise WorkflowError("none", "a task that is called directly runs in no workflow; send it with .enqueue()")
        await self.task.extend(self.job, expression, replaces=replaces)

    @property
    def hostname(self) -> str:
        """The name of the machine that it runs on."""
        return _hostname()

    @property
    def called_directly(self) -> bool:
        """Whether the function was called in place, not by a worker."""
        return "worker" not in self

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that adds the job's key, the task's name and the correlation id to each record."""
        name = self["task"].name if "task" in self else "task"
        facts = {"job": self.id, "task": name, CORRELATION: self.headers.get(CORRELATION, "")}
        return logging.LoggerAdapter(logger.getChild(name), facts)

    def set_progress(self, current: float, total: float, **meta: Any) -> Awaitable[None]:
        """Tell how far the job is: ``await ctx.set_progress(3, 10, file="a.csv")``, in a thread without ``await``.

        It may be called as often as you like: the newest value is written ten times a second at most, and the last one
        with the end of the job. It waits for nobody; with ``await`` it lets others run now and then.

        Args:
            current: What is done, from 0; over ``total`` counts as all of it.
            total: What there is to do, from 0; of 0 all is done.
            meta: Anything else that JSON can carry, up to 8,192 bytes.

        Raises:
            InvalidArgumentsError: A number is none, or below 0, or ``meta`` is not made of what JSON can carry.
            PayloadTooLargeError: ``meta`` is too large.
        """
        task = self["task"].name if "task" in self else "task"
        job: Job[Any] | None = self.get("job")
        loop = getattr(self.get("worker"), "loop", None)
        if job is None or (loop is not None and not is_running(job)):
            checked(task, current, total, meta)
            return NO_TURN  # called directly, or in a thread that has outlived its attempt
        put(job, task, current, total, meta)
        if loop is None:
            return NO_TURN
        reporter: Reporter = self.__dict__.get("_reporter") or self.__dict__.setdefault(
            "_reporter", Reporter(job, loop)
        )
        return reporter.changed()

    def is_aborted(self) -> bool:
        """Tell whether the attempt is to end: it was revoked, its time limit has passed, or its worker stops.

        It costs next to nothing. A function that has asked and heard of it should clean up and end: what it returns
        does not count. False where the function was called directly.
        """
        job = self.get("job")
        if not getattr(job, "interrupted", False):
            return False
        self.job.told = True
        return True

    def retry(self, after: Duration | None = None, cause: BaseException | None = None) -> Retry:
        """Return the signal that runs this job again: ``raise ctx.retry(after=60)``.

        Args:
            after: Seconds or a ``timedelta``, exact; ``None`` takes the task's ``retry_delay`` and backoff.
            cause: What made it necessary; its traceback becomes the job's error.
        """
        return Retry(after, cause)


@functools.cache
def _hostname() -> str:
    return socket.gethostname()
