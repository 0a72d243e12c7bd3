"""Running: a job inside a worker, from its claim to its outcome."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from knapsaq.claims import Claim
from knapsaq.context import Context
from knapsaq.errors import TaskTimeoutError
from knapsaq.outcomes import Aborted, Failed, Outcome, Retried

OVERDUE_SECONDS = 5.0
"""How long a function may take to end after its limit has passed and it was cancelled."""


@dataclass(slots=True)
class Running:
    """A job that runs here.

    Attributes:
        claim: The worker's hold on it.
        ctx: What its task is given.
        task: The coroutine that runs it.
        ends_as: Its outcome, once it has been interrupted on purpose.
        begun: Whether its coroutine has taken its first step.
        heard: The newest sign of life that it gave, and when that was seen, by the loop's clock.
    """

    claim: Claim
    ctx: Context = field(default_factory=Context)
    task: asyncio.Task[None] = field(init=False)
    ends_as: Outcome | None = None
    begun: bool = False
    heard: tuple[int, float] | None = None

    def interrupt(self, outcome: Outcome) -> None:
        """Cancel it, unless somebody has; a task that was cancelled before its first step would never tell its end."""
        if self.ends_as is None:
            self.ends_as = outcome
            if self.begun:
                self.task.cancel()

    def overdue(self, loop_time: float) -> Outcome | None:
        """Return how it ends if its function goes on although its limit has passed and it was cancelled."""
        job = self.claim.job
        end = job.deadline.when if job.deadline else None
        if end is not None and loop_time > end + OVERDUE_SECONDS:
            return Failed(f"{TaskTimeoutError(job.function, job.timeout)}; it does not end")
        return None

    def silent(self, loop_time: float) -> Outcome | None:
        """Return how it ends if its heartbeat has stopped, which ``job.update()`` gives; clocks may jump meanwhile."""
        job = self.claim.job
        sign = max(job.touched, job.started)
        if self.heard is None or self.heard[0] != sign:
            self.heard = (sign, loop_time)
        if job.heartbeat and loop_time - self.heard[1] > job.heartbeat:
            reason = f"no heartbeat for {job.heartbeat} s"
            return Retried(reason, 0.0) if job.retryable else Aborted(reason)
        return None
