"""Gathering: the jobs of a batched task wait for each other, and then run together.

Where in the flow: in the executor, where the attempt of another job would call its function. A job that gathers has
given up its slot. When there are as many as the task wants, or the first has waited long enough, they run once, with
one slot, one time limit and the same dependencies for all, and each job goes on with its own result.

Invariants, each a test in ``tests/unit/test_gathering.py`` or ``tests/redis/test_batches.py``:

* a run has at most ``size`` jobs, and begins at most ``wait`` seconds after the first of them has come;
* a job that is interrupted leaves alone; only when the last has been interrupted, the function is;
* a run holds one slot, however many jobs it has, and none waits for a slot;
* what a run enqueues, and the context variables that it sees, are no single job's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from types import TracebackType
from typing import Any, NoReturn, cast

from knapsaq.batch import Batch, BatchResultError
from knapsaq.context import Context
from knapsaq.deadline import Deadline
from knapsaq.errors import TaskDefinitionError
from knapsaq.flows import inputs
from knapsaq.items import ItemSignature
from knapsaq.job import Job
from knapsaq.lineage import origin
from knapsaq.outcomes import TaskSignal
from knapsaq.slots import SharedSlot, Slots, given_up, slots_here
from knapsaq.timing import seconds
from knapsaq.wiring import AnyTask
from knapsaq.workflow_errors import WorkflowError

Attempt = Callable[[Any, Job[Any], Context], Awaitable[Any]]
TOLD_A_TURN = 500  # jobs that go on in one turn of the loop; each has a result to be encoded
SEVERAL = "with batch=... it runs for several jobs"


class Gatherings:
    """All gatherings of one worker.

    Args:
        attempt: Makes a task's dependencies and calls its function under its limit, for a run as for a job.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._open: dict[AnyTask, Gathering] = {}
        self._runs: set[asyncio.Task[None]] = set()
        self._variables = copy_context()
        self._hurried = False

    def open(self, *, hurried: bool) -> None:
        """Begin to gather; runs begin with the context variables that are set here, and not with those of a job.

        Args:
            hurried: Whether no job waits for others.
        """
        self._variables, self._hurried = copy_context(), hurried

    def hurry(self) -> None:
        """Run what has gathered, and from now on whatever comes, at once."""
        self._hurried = True
        for gathering in list(self._open.values()):
            self._begin(gathering)

    def close(self) -> None:
        """End the runs that nobody waits for any more."""
        for run in self._runs:
            run.cancel()

    async def join(self, task: AnyTask, job: Job[Any], ctx: Context) -> Any:
        """Take part in the next run and return the job's own result; an error in its place is raised.

        Raises:
            InvalidArgumentsError: The item does not fit; nobody else is disturbed.
            BatchResultError: The function did not return a result for each job.
        """
        stored = (await inputs(job) if job.meta else job.kwargs) or {}
        item = cast("ItemSignature", task.signature).item_in(stored)
        gathering = self._open.get(task)
        if gathering is None or job.alone:
            gathering = Gathering(task, ctx, slots_here())
        member = gathering.add(job, item)
        self._wait(gathering, at_once=job.alone)
        try:
            with given_up():
                return await member.result()
        finally:
            gathering.left(member)
            if not gathering.members and self._open.get(task) is gathering:
                self._begin(gathering)

    def _wait(self, gathering: Gathering, *, at_once: bool) -> None:
        """Begin the run of a gathering that has got one more, or have it wait for others."""
        batch = cast("Batch", gathering.task.options.batch)
        if at_once or self._hurried or len(gathering.members) >= batch.size:
            self._begin(gathering)
        elif gathering.timer is None:
            self._open[gathering.task] = gathering
            loop = asyncio.get_running_loop()
            gathering.timer = loop.call_later(seconds(batch.wait), self._begin, gathering)

    def _begin(self, gathering: Gathering) -> None:
        if self._open.get(gathering.task) is gathering:
            del self._open[gathering.task]
        if gathering.begin():
            run = asyncio.get_running_loop().create_task(
                self._run(gathering), name=f"batch of {gathering.task.name}", context=self._variables.copy()
            )
            gathering.run = run
            self._runs.add(run)
            run.add_done_callback(self._runs.discard)
            run.add_done_callback(gathering.ended)

    async def _run(self, gathering: Gathering) -> None:
        origin.set(None)  # it may have been set where the worker was started
        if gathering.slot is not None:
            gathering.slot.enter()
        answers = await self._answers(gathering)
        gathering.leave_slot()
        for number, (member, answer) in enumerate(zip(gathering.members, answers, strict=True), start=1):
            member.tell(answer)
            if number % TOLD_A_TURN == 0:
                await asyncio.sleep(0)

    async def _answers(self, gathering: Gathering) -> list[Any]:
        """Return for each member its result, or the error in its place."""
        task, calls = gathering.task, len(gathering.members)
        try:
            result = await self._attempt(task, gathering.job, gathering.context())
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - each of them ends with it
            return [error] * calls
        if isinstance(result, TaskSignal):
            return [result] * calls
        if isinstance(result, (list, tuple)) and len(result) == calls:
            return list(result)
        returned = f"a list of {len(result)}" if isinstance(result, (list, tuple)) else type(result).__name__
        return [BatchResultError(task.name, calls, returned)] * calls


class Gathering:
    """Jobs of one task that wait for each other, and the run that they then have in common.

    Args:
        task: The task.
        ctx: The context of the first job.
        slots: Those of the worker, if there is one.

    Attributes:
        members: Those that take part, in the order of the list.
        job: What stands for all of them while the function runs.
        timer: What begins the run, while they gather.
        run: The run, once it has begun.
        slot: Its place among what the worker runs.
    """

    def __init__(self, task: AnyTask, ctx: Context, slots: Slots | None) -> None:
        self.task = task
        self.members: dict[Member, None] = {}
        self.timer: asyncio.TimerHandle | None = None
        self.run: asyncio.Task[None] | None = None
        self._first, self._slots = ctx, slots
        self.slot: SharedSlot | None = None
        self._present = self._interrupted = 0

    def add(self, job: Job[Any], item: Any) -> Member:
        """Take in one more job."""
        member = Member(self, job, item)
        self.members[member] = None
        self._present += 1
        job.gathers = True
        return member

    def begin(self) -> bool:
        """Close it; returns whether there is anybody to run for."""
        if self.timer is not None:
            self.timer.cancel()
        if self.run is not None:
            return False
        # One that was interrupted in this turn is about to leave.
        self.members = {member: None for member in self.members if not member.job.interrupted}
        self._order = list(self.members)
        for member in self._order:
            member.job.gathers = False
            member.job.listener = member
        if not self._order:
            return False
        name = cast("ItemSignature", self.task.signature).item
        kwargs = {name: [member.item for member in self._order]}
        self.job = RunJob(self.task.name, kwargs, [member.job for member in self._order])
        if self._slots is not None:
            self.slot = SharedSlot(self._slots)
        return True

    def context(self) -> BatchContext:
        """Return what the function is given: the queue, and what the worker's start-up functions have made."""
        entries = dict(getattr(self._first.get("worker"), "context", {}))
        if "queue" in self._first:
            entries["queue"] = self._first["queue"]
        ctx = BatchContext(entries, task=self.task)
        ctx.run = self.job
        return ctx

    def leave_slot(self) -> None:
        """Give the run's slot back, if that has not been done."""
        if self.slot is not None:
            self.slot.leave()

    def left(self, member: Member) -> None:
        """Note that nobody waits for a member any more; a function that does not end has no slot then."""
        member.job.listener, member.job.gathers = None, False
        self._present -= 1
        if self.run is None:
            self.members.pop(member, None)
        elif not self._present:
            self.leave_slot()

    def interrupt(self, member: Member, *, gently: bool) -> bool:
        """Interrupt the function if all jobs have been.

        Args:
            member: Whose job was, just now.
            gently: Whether a function that hears of it by itself is left to end in its own way.

        Returns:
            Whether it was so; else the others go on.
        """
        if self.run is None or member not in self.members:
            return False
        while self._interrupted < len(self._order) and self._order[self._interrupted].job.interrupted:
            self._interrupted += 1
        if self._interrupted < len(self._order):
            return False
        if not (gently and self.job.listener is not None):
            self.run.cancel()
        return True

    def ended(self, run: asyncio.Task[None]) -> None:
        """Tell those that have got no answer, as the run was cancelled."""
        self.leave_slot()
        if not run.cancelled():
            run.exception()
        for member in self.members:
            member.tell(asyncio.CancelledError())


class Member:
    """One job that takes part; what its job's listener is while the function runs."""

    __slots__ = ("_answer", "_gathering", "item", "job")

    def __init__(self, gathering: Gathering, job: Job[Any], item: Any) -> None:
        self._gathering, self.job, self.item = gathering, job, item
        answer: asyncio.Future[tuple[Any, TracebackType | None]] = asyncio.get_running_loop().create_future()
        self._answer = answer

    def tell(self, value: Any) -> None:
        """Give it its answer, unless it has one; an error is raised where it waits."""
        if not self._answer.done():
            self._answer.set_result((value, getattr(value, "__traceback__", None)))

    def interrupt(self) -> None:
        """End it alone, unless it is one of the last, whose function is interrupted."""
        # A worker that stops interrupts all of them in this turn.
        asyncio.get_running_loop().call_soon(self._let_go)

    def _let_go(self) -> None:
        if not self._answer.done() and not self._gathering.interrupt(self, gently=True):
            self.tell(asyncio.CancelledError())

    async def result(self) -> Any:
        """Wait for its answer.

        Raises:
            asyncio.CancelledError: It was cancelled, and the others go on; or the function was.
        """
        try:
            await asyncio.shield(self._answer)
        except asyncio.CancelledError:
            if not self._answer.done() and not self._gathering.interrupt(self, gently=False):
                raise
            await asyncio.shield(self._answer)  # the function cleans up
        value, trace = self._answer.result()
        if isinstance(value, BaseException):
            raise value.with_traceback(trace)  # several raise the same one, and each would add to it
        return value


class RunJob(Job[Any]):
    """Stands for the jobs of a run where their function is called; it is never stored.

    Args:
        function: The task's name.
        kwargs: The list of the items, by the parameter's name.
        jobs: The jobs; of their time limits the longest counts, so that nobody is ended before its time.
    """

    def __init__(self, function: str, kwargs: dict[str, Any], jobs: list[Job[Any]]) -> None:
        limits = [job.timeout or 0 for job in jobs]
        super().__init__(function=function, key=jobs[0].key, kwargs=kwargs, timeout=max(limits) if all(limits) else 0)
        self.jobs = jobs

    @property
    def deadline(self) -> Deadline | None:
        """The deadline of the run, which is that of its jobs."""
        return self._deadline

    @deadline.setter
    def deadline(self, deadline: Deadline | None) -> None:
        self._deadline = deadline
        for job in self.jobs:
            job.deadline = deadline

    _deadline: Deadline | None = None


class BatchContext(Context):
    """What the function of a batched task is given: ``jobs``, and nothing that is one job's alone."""

    run: RunJob

    @property
    def jobs(self) -> Sequence[Job[Any]]:
        """The jobs, in the order of the list."""
        return self.run.jobs

    def __missing__(self, name: str) -> NoReturn:
        if name == "job":
            raise TaskDefinitionError(self.task.name, f"{SEVERAL}; ctx.jobs has them in the order of the list")
        raise KeyError(name)

    def is_aborted(self) -> bool:
        """Tell whether the run is to end: its time limit has passed, or each of its jobs was interrupted."""
        jobs = self.run.jobs
        if not self.run.interrupted and not all(job.interrupted for job in jobs):
            return False
        for job in jobs:
            job.told = True
        return True

    def set_progress(self, current: float, total: float, **meta: Any) -> NoReturn:
        """Refuse: how far a run is, is no job's progress.

        Raises:
            TaskDefinitionError: Always.
        """
        del current, total, meta
        raise TaskDefinitionError(self.task.name, f"{SEVERAL}, which have no progress of their own")

    async def _extend(self, expression: Any, *, replaces: bool) -> NoReturn:
        del expression, replaces
        raise WorkflowError("none", f"task {self.task.name!r} cannot add to a workflow: {SEVERAL}")
