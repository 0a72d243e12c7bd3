"""Tasks that run in processes; a module of its own, as those have to import it."""

from __future__ import annotations

import logging
import os
import signal
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from knapsaq import Context, Discard, Registry, Retry, Snooze, SoftTimeLimitExceeded

registry = Registry()
process = registry.task(run="process")


@process
def whoami() -> int:
    return os.getpid()


@process
def typed(report: UUID, day: date, *, pages: set[int]) -> list[Any]:
    return [type(report).__name__, day + timedelta(days=1), sorted(pages)]


@process
def context(ctx: Context) -> list[Any]:
    ctx.logger.warning("page %s", 7)
    logging.getLogger("shop").debug("not asked for")
    return [ctx.id, ctx.retries, dict(ctx.headers), ctx.called_directly, ctx.is_aborted(), ctx["job"].key]


@process
def lineage(ctx: Context) -> list[Any]:
    logging.getLogger("shop").error("seen")
    return [ctx.parent_id, ctx.root_id, dict(ctx.headers)]


@process
def counting(ctx: Context, notes: str) -> str:
    for number in range(500):
        ctx.set_progress(number, 1000, file=f"{number}.csv")
    while not Path(notes).exists():
        time.sleep(0.01)
    ctx.set_progress(1000, 1000)
    return "done"


@process
def misreporting(ctx: Context) -> None:
    ctx.set_progress(-1, 10)


@process
def reaches_out(ctx: Context) -> None:
    ctx.queue.enqueue("whoami")


@process
def doubled(number: int) -> int:
    return 2 * number


@process
def opaque() -> object:
    return object()


class UnpicklableError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)
        self.held = lambda: None


@registry.task(run="process", retries=2, retry_delay=0, give_up_on=PermissionError)
def failing(ctx: Context, kind: str, notes: str) -> str:
    with Path(notes).open("a") as file:
        file.write(f"{ctx.retries}\n")
    if kind == "unpicklable":
        raise UnpicklableError("no", "luck")
    if kind == "permission":
        raise PermissionError(kind)
    if kind == "exit":
        raise SystemExit(3)
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return kind


@registry.task(run="process", retries=1)
def signalling(ctx: Context, kind: str, notes: str) -> str:
    file = Path(notes)
    before = file.read_text() if file.exists() else ""
    file.write_text(before + "x")
    if before:
        return f"{kind} {ctx.retries}"
    if kind == "retry":
        raise Retry(after=0.001, cause=LookupError("gone"))
    if kind == "discard":
        raise Discard("pointless")
    raise Snooze(after=0.001)


def note_and_wait(notes: str) -> None:
    """Say who runs it, and never end."""
    Path(notes).write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)


@process
def endless(notes: str) -> None:
    note_and_wait(notes)


@process
def deaf(ctx: Context, notes: str) -> None:
    note_and_wait(notes)


@process
def asking(ctx: Context, notes: str) -> str:
    Path(notes).write_text(str(os.getpid()))
    while not ctx.is_aborted():
        time.sleep(0.001)
    Path(notes).with_suffix(".clean").write_text("up")
    return "half of it"


@registry.task(run="process", timeout=60, soft_timeout=0.3)
def reminded() -> str:
    try:
        time.sleep(60)
    except SoftTimeLimitExceeded as error:
        return f"woken after {error.seconds} s"
    return "never"


@registry.task(run="process", timeout=1)
def overdue(notes: str) -> None:
    note_and_wait(notes)
