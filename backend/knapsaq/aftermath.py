"""Aftermath: who is told once an attempt has ended: the log, SAQ's ``after_process`` functions, middlewares.

Where in the flow: behind the worker's slots. A job's outcome is on its way to Redis and its slot is free by then, so
whatever goes wrong here changes neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from knapsaq import events
from knapsaq.context import Context
from knapsaq.outcomes import Dead, Outcome, Retried, Snoozed


class Aftermath:
    """Tells of the ends of one worker's jobs.

    Args:
        after_process: Calls SAQ's functions, if there are any.
    """

    def __init__(self, after_process: Callable[[Context], Awaitable[None]] | None) -> None:
        self._after_process = after_process
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        """Whether somebody is being told."""
        return bool(self._tasks)

    def begin(self, ctx: Context, outcome: Outcome, *, ran: bool = True) -> None:
        """Tell of one end; what takes its time goes on in a task of its own.

        Args:
            ctx: What the task was given.
            outcome: How it ended.
            ran: Whether there was an attempt; SAQ's functions hear of no other end.
        """
        job = ctx.job
        if isinstance(outcome, Retried):
            events.job_retried(job, outcome.after)
        elif isinstance(outcome, Snoozed):
            events.job_snoozed(job, outcome.after)
        elif isinstance(outcome, Dead):
            events.job_died(job)
        else:
            events.job_ended(job, job.status.value)
        waiting = ctx.stack.tell(ctx, outcome) if ctx.stack is not None else None
        after_process = self._after_process if ran else None
        if waiting is not None or after_process is not None:
            task = asyncio.create_task(_tell(ctx, after_process, waiting))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def ended(self, seconds: float | None = None) -> None:
        """Wait until everybody has been told, or for so many seconds."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)


async def _tell(
    ctx: Context,
    after_process: Callable[[Context], Awaitable[None]] | None,
    waiting: Coroutine[Any, Any, None] | None,
) -> None:
    if after_process is not None:
        try:
            await after_process(ctx)
        except Exception as error:  # noqa: BLE001 - the job has ended already
            events.duty_failed("an after_process function", error)
    if waiting is not None:
        await waiting
