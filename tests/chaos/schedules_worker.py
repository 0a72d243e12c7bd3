"""The worker process of ``worker.py`` with schedules; each job leaves a line with its due time and lateness in ms."""

from __future__ import annotations

import os
import sys
import time

import worker
from worker import enter

from knapsaq import Context, scheduled_task

LONG = os.environ["KNAPSAQ_CHAOS_FORM"] == "long"


@scheduled_task(every=60 if LONG else 5, schedule="slow", kwargs={"name": "slow"}, misfire="all", overlap=True)
@scheduled_task(every=1, schedule="fast", kwargs={"name": "fast"}, misfire="all", overlap=True)
async def tell(ctx: Context, name: str) -> None:
    """Leave a line."""
    due_ms = int(ctx.id.rpartition(":")[2])
    enter(f"fired:{name}:{due_ms}:{time.time() * 1000 - due_ms:.0f}:{os.getpid()}")


if __name__ == "__main__":
    sys.exit(worker.main())
