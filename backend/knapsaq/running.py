"""Running: a job inside a worker, from its claim to its outcome."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from knapsaq.claims import Claim
from knapsaq.context import Context
from knapsaq.errors import TaskTimeoutError
from knapsaq.outcomes import Aborted, Failed, Outcome, Retried, Succeeded
from knapsaq.slots import Slot

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
        cancelled: Whether its coroutine was cancelled for that.
        begun: Whether its coroutine has taken its first step.
        slot: Its place among those that run, once it has one.
        heard: The newest sign of life that it gave, and when that was seen, by the loop's clock.
    """

    claim: Claim
    ctx: Context = field(default_factory=Context)
    task: asyncio.Task[None] = field(init=False)
    ends_as: Outcome | None = None
    cancelled: bool = False
    begun: bool = False
    slot: Slot | None = None
    heard: tuple[int, float] | None = None

    def interrupt(self, outcome: Outcome, *, gently: bool = False) -> None:
        """Cancel it, unless somebody has; a task that was cancelled before its first step would never tell its end.

        Args:
            outcome: How it ends.
            gently: Whether a function that hears of it by itself is left to end in its own way.
        """
        if self.cancelled or (gently and self.ends_as is not None):
            return
        job = self.claim.job
        self.ends_as, job.interrupted = outcome, True
        if gently and job.listener is not None:
            job.listener.interrupt()
        elif self.begun:
            self.cancelled = True
            self.task.cancel()

    def settled(self, ends_as: Outcome, outcome: Outcome) -> Outcome:
        """Return how it ends that was to end in one way, and whose function has come to another outcome.

        Work that was finished all the same counts, unless the function knew that it was to end.
        """
        return outcome if isinstance(outcome, Succeeded) and not self.claim.job.told else ends_as

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
        if job.gathers:
            self.heard = None
            return None
        sign = max(job.touched, job.started)
        if self.heard is None or self.heard[0] != sign:
            self.heard = (sign, loop_time)
        if job.heartbeat and loop_time - self.heard[1] > job.heartbeat:
            reason = f"no heartbeat for {job.heartbeat} s"
            return Retried(reason, 0.0) if job.retryable else Aborted(reason)
        return None
