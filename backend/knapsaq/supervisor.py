"""Supervisor: worker processes, and the parent that keeps them alive.

Where in the flow: a command line hands ``run`` the worker that it wants. One process
is served right here. Several, or one that is to start again when files change, are
children: the same command line once more, with a pipe that tells them when their
parent is gone.

Invariants, each a test in ``tests/redis/test_supervisor.py``:

* SIGTERM to the parent reaches every child at once, and the parent ends with or after its children;
* a child whose parent was killed stops by itself, as gracefully;
* a child that dies is replaced, ever more slowly; one that cannot work as configured ends the parent instead;
* the jobs of a child that dies, or has to be killed, do not wait for its lease;
* a server that does not answer holds up neither the next child nor the end;
* a task's thread that does not end does not keep the process alive.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib.util
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from knapsaq.client import connect
from knapsaq.errors import ConfigurationError, WorkerError
from knapsaq.job import new_key
from knapsaq.liveness import end_leases
from knapsaq.process import first_error, run_workers
from knapsaq.redis.connection import broker_errors
from knapsaq.registry import Registry
from knapsaq.settings import Settings

CHILD_VARIABLE = "KNAPSAQ_WORKER_CHILD"
"""Holds, in a child, the descriptor of the pipe that its parent holds open, and the mark in its workers' ids."""

UNUSABLE = 2
"""The exit code of a worker that will not work until somebody changes code or configuration."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ORDERLY = (0, -signal.SIGTERM)  # how a child ends that is told to; SIGTERM itself ends one that cannot handle it yet
GRACE_MARGIN = 5.0  # seconds that a child has beyond the jobs' grace, to put jobs back and close connections
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before a dead child is replaced
SETTLED_SECONDS = 60.0  # of life, after which a death is no longer a series
THREADS_LIMIT = TASKS_LIMIT = 1.0  # seconds that idle threads and cancelled tasks have to end
EXIT_LIMIT = 2.0  # seconds that exit functions have where a thread does not end
LEASES_LIMIT = 5.0  # seconds that Redis has to take the leases of a dead child away
FAREWELL_LIMIT = 1.0  # seconds of these that the parent's own end waits for
MARK_LETTERS = 8

logger = logging.getLogger("knapsaq.supervisor")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlan:
    """The workers that a command line asks for.

    Attributes:
        settings: The broker, and the defaults of everything below; as ``Registry.prepare`` returns them.
        registry: The tasks; the program's registry unless given.
        queues: The names of the queues; all of the settings' unless given.
        concurrency: How many jobs of each queue a process runs at once; ``Settings.concurrency`` unless given.
        processes: How many processes.
        reload: Whether they start again when a Python file below the working directory changes.
        name: The beginning of the workers' ids.
    """

    settings: Settings
    registry: Registry | None = None
    queues: Sequence[str] | None = None
    concurrency: int | None = None
    processes: int = 1
    reload: bool = False
    name: str | None = None


def run(plan: WorkerPlan) -> int:
    """Run workers until a signal ends them.

    SIGTERM and SIGINT begin a graceful stop; a second one ends the grace period.

    Returns:
        The exit code: 0 if all ended well, 1 if not, 2 if a worker cannot work as configured.

    Raises:
        KnapsaqError: A worker in this process cannot start, or ``reload`` asks for a package that is missing.
    """
    pipe, mark = _inherited()
    if pipe is not None or (plan.processes == 1 and not plan.reload):
        serve(replace(plan, name=_marked(plan.name, mark)), parent=pipe)
        return 0
    if plan.reload and importlib.util.find_spec("watchfiles") is None:
        msg = "--reload needs the package watchfiles, which is not installed: `pip install 'knapsaq[reload]'`"
        raise ConfigurationError(msg)
    grace = plan.settings.shutdown_grace + GRACE_MARGIN
    supervisor = Supervisor(plan.processes, grace=grace, reload=plan.reload, on_death=partial(_end_leases, plan))
    return asyncio.run(supervisor.run())


def serve(plan: WorkerPlan, *, parent: int | None = None) -> None:
    """Be one worker process until a signal ends it, or the parent at the other end of a pipe.

    Args:
        plan: What to work on; ``processes`` and ``reload`` are the parent's business.
        parent: The descriptor of the pipe's end for reading.

    Raises:
        KnapsaqError: The worker cannot start.
    """
    executor = ThreadPoolExecutor(thread_name_prefix="knapsaq")
    runner = asyncio.Runner(loop_factory=_loop_factory())
    try:
        runner.get_loop().set_default_executor(executor)
        try:
            stuck = runner.run(_serve(plan, parent))
        except BaseExceptionGroup as group:
            with broker_errors(plan.settings.broker_url):
                raise first_error(group) from group
        executor.shutdown(wait=False, cancel_futures=True)
        stuck += [f"thread {thread.name}" for thread in _threads_left(THREADS_LIMIT)]
        if stuck:
            logger.warning("the process ends without what does not end: %s", ", ".join(sorted(stuck)))
            _exit_at_once(0)
    finally:
        runner.close()


async def _serve(plan: WorkerPlan, parent: int | None) -> list[str]:
    """Work, and return the tasks that have not ended although they were cancelled."""
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    def on_orphaned() -> None:
        loop.remove_reader(parent or 0)
        logger.warning("the parent process is gone; stopping")
        stop.set()

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal)
    if parent is not None:
        loop.add_reader(parent, on_orphaned)
    async with connect(plan.settings, registry=plan.registry) as client:
        if not stop.is_set():  # else it was told to stop while it connected
            await run_workers(
                client, stop, queues=plan.queues, concurrency=plan.concurrency, hurry=hurry, name=plan.name
            )
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    _, stuck = await asyncio.wait(left, timeout=TASKS_LIMIT) if left else ((), ())
    return [f"task {task.get_name()}" for task in stuck]


async def _end_leases(plan: WorkerPlan, mark: str) -> None:
    """Have the leases of a dead child's workers run out now; they do so by themselves a little later."""
    prefix = f"{_marked(plan.name, mark)}-"
    try:
        async with asyncio.timeout(LEASES_LIMIT), connect(plan.settings, registry=Registry()) as client:
            queues = [client.queue(name) for name in plan.queues or client.queues]
            found = await asyncio.gather(*(end_leases(queue, prefix) for queue in queues), return_exceptions=True)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent goes on
        found = [error]
    for why in dict.fromkeys(str(one) or f"no answer within {LEASES_LIMIT:g} s" for one in found if one is not None):
        logger.info("leases of workers %s..., if there are any, run out by themselves: %s", prefix, why)


def _marked(name: str | None, mark: str) -> str | None:
    """Return the beginning of the ids of a child's workers."""
    return "-".join(filter(None, (name, mark))) or None


def _inherited() -> tuple[int | None, str]:
    """Return the pipe to the parent and the mark that it gave, if this process is a child; what it starts is none."""
    given = os.environ.pop(CHILD_VARIABLE, None)
    if given is None:
        return None, ""
    pipe, _, mark = given.partition(" ")
    try:
        os.set_inheritable(int(pipe), False)  # noqa: FBT003 - it takes no keyword
    except (ValueError, OSError):
        msg = f"{CHILD_VARIABLE} is {given!r}, which is no open pipe; unset it, as only the supervisor sets it"
        raise WorkerError(msg) from None
    return int(pipe), mark


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not to be had everywhere
    except ImportError:
        return None
    return uvloop.new_event_loop


def _threads_left(limit: float) -> list[threading.Thread]:
    """Return the threads for which the interpreter would wait, once the idle ones have ended."""
    deadline = time.monotonic() + limit
    while True:
        left = [one for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.01)


def _exit_at_once(code: int) -> None:
    """End the process although threads run; what is registered with ``atexit``, as log handlers are, comes before."""
    last = threading.Thread(target=atexit._run_exitfuncs, daemon=True)  # noqa: SLF001 - as multiprocessing does
    last.start()
    last.join(EXIT_LIMIT)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


class Supervisor:
    """Starts worker processes, replaces those that die, and ends them all.

    Args:
        processes: How many run at a time.
        grace: Seconds from the order to stop until what is left is killed.
        reload: Whether they start again when a Python file below the working directory changes.
        command: What a process is started with; this process' own command line unless given.
        on_death: Run beside when a process has ended that may have left leases, with the mark in its workers' ids.
    """

    def __init__(
        self,
        processes: int,
        *,
        grace: float,
        reload: bool = False,
        command: Sequence[str] | None = None,
        on_death: Callable[[str], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self._processes = processes
        self._grace = grace
        self._reload = reload
        self._on_death = on_death
        self._command = list(command or (sys.executable or sys.orig_argv[0], *sys.orig_argv[1:]))
        self._children: set[asyncio.subprocess.Process] = set()
        self._farewells: set[asyncio.Task[None]] = set()
        self._generation = 0
        self._orders = 0
        self._code = 0
        self._news = asyncio.Event()

    async def run(self) -> int:
        """Keep the processes running until a signal; return the exit code of this one."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.stop)
        # Only this process has the end for writing: when it is gone, however it went, the children read the end.
        for_children, kept = os.pipe()
        watching = asyncio.create_task(self._watch()) if self._reload else None
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._processes):
                    group.create_task(self._keep_one(for_children))
        finally:
            if self._farewells:
                await asyncio.wait(self._farewells, timeout=FAREWELL_LIMIT)
            left = [*self._farewells, *([watching] if watching else [])]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            os.close(for_children)
            os.close(kept)
            for number in SIGNALS:
                loop.remove_signal_handler(number)
        return self._code

    def stop(self) -> None:
        """Tell all processes to stop; the second time to hurry, from the third on they are killed."""
        self._orders += 1
        if self._orders == 1:
            self._news.set()
            logger.info("stopping %s worker processes; they have %.3g s", len(self._children), self._grace)
            asyncio.get_running_loop().call_later(self._grace, lambda: self._kill(tuple(self._children)))
        elif self._orders == 2:  # noqa: PLR2004 - the second order
            logger.info("hurrying %s worker processes", len(self._children))
        else:
            self._kill(tuple(self._children))
        for child in self._children:
            _signal(child)

    async def _keep_one(self, pipe: int) -> None:
        """Keep one process running."""
        pause = FIRST_PAUSE
        while not self._is_stopping():
            generation, started = self._generation, time.monotonic()
            mark = new_key()[:MARK_LETTERS]
            child = await self._start(pipe, mark)
            if self._is_stopping() or generation != self._generation:
                _signal(child)
            code = await child.wait()
            self._children.discard(child)
            told = self._is_stopping() or generation != self._generation
            if code != UNUSABLE and not (told and code in ORDERLY):
                self._bid_farewell(mark)
            if self._is_stopping():
                self._note_end(child, code)
                return
            if told:
                continue
            if code == UNUSABLE and not self._reload:
                logger.error("worker process %s cannot work as configured; see above", child.pid)
                self._code = UNUSABLE
                self.stop()
                return
            if time.monotonic() - started >= SETTLED_SECONDS:
                pause = FIRST_PAUSE
            how, then = _how_it_ended(code), f"starts in {pause:.3g} s" if code != UNUSABLE else "waits for a change"
            logger.error("worker process %s ended with %s; another one %s", child.pid, how, then)
            await self._rest(pause if code != UNUSABLE else None)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _is_stopping(self) -> bool:
        return self._orders > 0

    async def _start(self, pipe: int, mark: str) -> asyncio.subprocess.Process:
        child = await asyncio.create_subprocess_exec(
            *self._command,
            env={**os.environ, CHILD_VARIABLE: f"{pipe} {mark}"},
            pass_fds=(pipe,),
            stdin=asyncio.subprocess.DEVNULL,
            # Ctrl-C at the terminal is for this process alone, which passes it on once.
            start_new_session=True,
        )
        self._children.add(child)
        logger.info("worker process %s started", child.pid)
        return child

    def _bid_farewell(self, mark: str) -> None:
        if self._on_death is not None:
            farewell = asyncio.create_task(self._on_death(mark))
            self._farewells.add(farewell)
            farewell.add_done_callback(self._farewells.discard)

    def _note_end(self, child: asyncio.subprocess.Process, code: int) -> None:
        if code not in ORDERLY:
            logger.error("worker process %s ended with %s while it stopped", child.pid, _how_it_ended(code))
            self._code = self._code or 1

    async def _rest(self, seconds: float | None) -> None:
        """Wait, though not beyond an order to stop or a change of the files."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), seconds)

    def _kill(self, children: Sequence[asyncio.subprocess.Process]) -> None:
        for child in children:
            if child in self._children:
                logger.error("worker process %s does not stop and is killed", child.pid)
                # With it goes what its tasks have started.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)

    async def _watch(self) -> None:
        import watchfiles  # noqa: PLC0415 - only --reload needs it

        logging.getLogger("watchfiles").setLevel(logging.WARNING)
        here = Path.cwd()
        async for changes in watchfiles.awatch(here, watch_filter=watchfiles.PythonFilter()):
            paths = sorted(path.removeprefix(f"{here}/") for _, path in changes)
            logger.info("%s changed; the worker starts again", ", ".join(paths[:3]) + (" ..." if paths[3:] else ""))
            self._generation += 1
            news, self._news = self._news, asyncio.Event()
            news.set()
            for child in self._children:
                _signal(child)
            asyncio.get_running_loop().call_later(self._grace, self._kill, tuple(self._children))


def _signal(child: asyncio.subprocess.Process) -> None:
    # Not its ``send_signal``, which may take a dead child's exit code away from the one that waits for it.
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGTERM)


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    names = {number.value: number.name for number in signal.Signals}
    return f"signal {names.get(-code, -code)}"
