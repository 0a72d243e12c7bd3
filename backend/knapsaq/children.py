"""Children: the processes in which ``run="process"`` tasks run.

Where in the flow: beside the threads. anyio keeps the processes, and kills the one whose call is cancelled; what is
said to them is ours: see ``child``. A process that dies costs its own job an attempt and harms no other.

Invariants, each a test in ``tests/redis/test_children.py``:

* the time for which a job waits for a process, and for its start, does not count for its limits;
* a function that has begun is not begun again by itself, one that has not may be;
* nothing of a job's is pickled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import anyio
import anyio.to_process
import msgspec

from knapsaq import child, events
from knapsaq.errors import ProcessDiedError, TaskProcessError
from knapsaq.job import HEADERS, PARENT, ROOT, Job, new_key
from knapsaq.lineage import origin
from knapsaq.outcomes import Discard, Elsewhere, Retry, Snooze, Succeeded, TaskSignal
from knapsaq.progress import Reporter, is_running, put
from knapsaq.task import Task

BEGUN_SECONDS = 60.0
"""How long a process may take to start and to import what it needs."""
TRIES = 3  # to find a process that lives long enough to begin
MAIN_HINT = "they import the program's main file, which needs `if __name__ == '__main__':` before what it runs"
LONGEST_FOLDER = 80  # characters, as the path of a socket has room for a hundred
LINE_BYTES = 1 << 20
LOGGERS = ("", "knapsaq", "knapsaq.task")


class Children:
    """The calls of one worker; the processes are shared by all workers of a loop, one a processor at most.

    Attributes:
        idle_seconds: How long a process stays that nobody uses; to start one costs a tenth of a second, and the
            application's imports.
    """

    def __init__(self) -> None:
        self.idle_seconds = 60.0
        self._calls: dict[str, _Call] = {}
        self._asked: set[asyncio.Task[bytes]] = set()
        self._server: asyncio.Server | None = None
        self._folder: Path | None = None
        self._opening = asyncio.Lock()
        self._unlimited = anyio.CapacityLimiter(float("inf"))

    async def run(self, task: Task[..., Any, Any], job: Job[Any], arguments: dict[str, Any]) -> TaskSignal:
        """Run a task's function in a process, with arguments as they are stored.

        Returns:
            The signal that it raised, or one with its result.

        Raises:
            TaskProcessError: The function raised.
            ProcessDiedError: Its process died, or could not begin.
        """
        if job.deadline is not None:
            job.deadline.put_off()
        path = await self._open()
        tokens = await self._wait(job, holder := object())
        try:
            for _ in range(TRIES):
                call = _Call(job, hears=task.takes_context)
                request = msgspec.json.encode(_request(task, call, arguments, path, self.idle_seconds))
                with contextlib.suppress(anyio.BrokenWorkerProcess):
                    answer = await self._ask(call, request)
                    if call.has_begun:
                        return _answered(job, answer)
                if call.has_begun:
                    raise ProcessDiedError(task.name, "it was killed, perhaps for want of memory, or it crashed")
            raise ProcessDiedError(task.name, f"none could begin, in {TRIES} tries; {MAIN_HINT}")
        finally:
            tokens.release_on_behalf_of(holder)

    async def close(self) -> None:
        """End what still runs, and the line to it."""
        for asked in self._asked:
            asked.cancel()
        if self._asked:
            await asyncio.wait(self._asked)
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
            self._folder = None

    async def _open(self) -> str:
        """Return the path of the socket on which processes call."""
        async with self._opening:
            if self._folder is None:
                short = len(tempfile.gettempdir()) <= LONGEST_FOLDER
                self._folder = Path(tempfile.mkdtemp(prefix="knapsaq-", dir=None if short else "/tmp"))  # noqa: S108
                self._server = await asyncio.start_unix_server(
                    self._serve, str(self._folder / "line"), limit=LINE_BYTES
                )
        return str(self._folder / "line")

    async def _wait(self, job: Job[Any], holder: object) -> anyio.CapacityLimiter:
        """Wait until there may be one more process; returns what the holder has a token of."""
        tokens = anyio.to_process.current_default_process_limiter()
        try:
            tokens.acquire_on_behalf_of_nowait(holder)
        except anyio.WouldBlock:
            events.process_awaited(job, int(tokens.total_tokens))
            await tokens.acquire_on_behalf_of(holder)
        return tokens

    async def _ask(self, call: _Call, request: bytes) -> bytes:
        """Return a process' answer; one whose function has begun is killed when this is cancelled."""
        self._calls[call.id] = call
        asked = asyncio.create_task(
            anyio.to_process.run_sync(child.run, request, cancellable=True, limiter=self._unlimited)
        )
        self._asked.add(asked)
        asked.add_done_callback(self._forget)
        try:
            either: set[asyncio.Future[Any]] = {asked, call.begun}
            done, _ = await asyncio.wait(either, timeout=BEGUN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                asked.cancel()
                raise ProcessDiedError(call.job.function, f"it did not begin within {BEGUN_SECONDS:g} s")
            await asyncio.wait({asked})
        except asyncio.CancelledError:
            # Without its call, one that has not begun hears that nobody waits, and serves the next job.
            if call.has_begun:
                asked.cancel()
                await asyncio.wait({asked})
            raise
        finally:
            del self._calls[call.id]
            call.leave()
        return asked.result()

    def _forget(self, asked: asyncio.Task[bytes]) -> None:
        self._asked.discard(asked)
        if not asked.cancelled():
            asked.exception()  # which nobody may wait for any more

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hear what a process has to say during one call."""
        try:
            call = self._calls.get((await reader.readline()).decode().strip())
            if call is not None:
                origin.set(call.job)  # as its records are logged here
                call.begin(writer)
                async for line in reader:
                    match msgspec.json.decode(line, type=child.Line | child.Progress):
                        case child.Line() as record:
                            _log(record)
                        case child.Progress(details) if call.id in self._calls:
                            call.report(details)
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            events.duty_failed("the line to a process", error)
        finally:
            writer.close()


class _Call:
    """One call of a process.

    Args:
        job: The job; its deadline goes on when the function begins.
        hears: Whether the function can ask if it is to end.
    """

    def __init__(self, job: Job[Any], *, hears: bool) -> None:
        self.id = new_key()
        self.job = job
        self.has_begun = False
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hears = hears
        self._reporter = Reporter(job, asyncio.get_running_loop())
        self._writer: asyncio.StreamWriter | None = None

    def begin(self, writer: asyncio.StreamWriter) -> None:
        """Let the function begin."""
        self._writer = writer
        self._writer.write(child.GO)
        self.has_begun = True
        self.begun.set_result(None)
        if self.job.deadline is not None:
            self.job.deadline.go_on()
        if self._hears:
            self.job.listener = self

    def report(self, details: dict[str, Any]) -> None:
        """Write how far the function is."""
        if is_running(self.job):
            _put(self.job, details)
            self._reporter.changed()

    def interrupt(self) -> None:
        """Tell the function that it is to end."""
        if self._writer is not None:
            self._writer.write(child.END)

    def leave(self) -> None:
        """Let nothing more happen to the job."""
        self.job.listener = None
        self.begun.cancel()


def _request(
    task: Task[..., Any, Any], call: _Call, arguments: dict[str, Any], path: str, idle: float
) -> child.Request:
    job = call.job
    soft, hard = task.options.soft_timeout, job.timeout
    return child.Request(
        call=call.id,
        socket=path,
        task=task.name,
        module=task.function.__module__,
        qualname=task.function.__qualname__,
        key=job.key,
        attempts=job.attempts,
        extras={name: job.extras[name] for name in (HEADERS, PARENT, ROOT) if name in job.extras},
        kwargs=arguments,
        soft=soft if soft and (not hard or soft < hard) else None,
        idle=idle,
        levels={name: logging.getLogger(name or None).level for name in LOGGERS},
    )


def _answered(job: Job[Any], answer: bytes) -> TaskSignal:
    reply = msgspec.json.decode(answer, type=child.Reply)
    job.told = job.told or reply.told
    if reply.progress:
        _put(job, reply.progress)
    error = TaskProcessError(job.function, reply.error or "", reply.again)
    if reply.signal == "retry":
        return Retry(reply.after, error)
    if reply.signal == "snooze":
        return Snooze(reply.after or 0.0)
    if reply.signal == "discard":
        return Discard(reply.error or "")
    if reply.error is not None:
        raise error
    return Elsewhere(Succeeded(reply.result, reply.problem))


def _put(job: Job[Any], details: dict[str, Any]) -> None:
    """Put on a job what a process has told of its progress, and has checked."""
    own = {name: value for name, value in details.items() if name not in {"current", "total"}}
    put(job, job.function, details["current"], details["total"], own)


def _log(line: child.Line) -> None:
    """Log what a process has logged."""
    logger = logging.getLogger(line.name)
    if logger.isEnabledFor(line.level):
        extra = {name: value for name in child.LOGGED if (value := getattr(line, name)) is not None}
        record = logger.makeRecord(line.name, line.level, "(process)", 0, line.text, (), None, extra=extra)
        logger.handle(record)
