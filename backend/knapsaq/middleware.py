"""Middleware: what is done around every job of a program, a queue or a task.

Where in the flow: ``before_enqueue`` as the queue accepts a job; ``around`` in the executor, outside of dependencies,
arguments, time limit and clean-up; the other hooks in the worker, once the attempt has ended. The hooks of all that
concern a job are put together once, at the first job of a task and a queue.

Invariants, each a test in ``tests/unit/test_middleware.py`` or ``tests/redis/test_middleware.py``:

* the program's middlewares are outside of the queue's, these outside of the task's;
* in a program without middlewares a job costs one look at a flag, and no call or object;
* a hook that raises after the end harms nothing, and one that does not end is given up.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from saq.job import Job as SaqJob

from knapsaq import events
from knapsaq.context import Context
from knapsaq.deadline import Deadline
from knapsaq.errors import MiddlewareError, OptionError
from knapsaq.hooks import EXPECTED, HOOKS, UnfitError, middlewares
from knapsaq.job import Job
from knapsaq.job_errors import JobFailedError
from knapsaq.lineage import origin
from knapsaq.outcomes import Aborted, Failed, Outcome, Retried, Succeeded

HOOK_SECONDS = 30.0
"""How long a hook, or the code of ``around`` before or after the task, may take before it is cancelled."""

CallNext: TypeAlias = Callable[[], Awaitable[Any]]
Hook: TypeAlias = Callable[..., Any]


class Middleware:
    """What may be done around jobs; override what you need. Objects of other classes with such methods do as well.

    Any of them but ``around`` may be a plain ``def``, which runs on the event loop: whatever waits is ``async def``.
    """

    def before_enqueue(self, job: Job[Any]) -> Awaitable[None] | None:
        """Look at a job that is about to be queued, or change it; what this raises refuses it.

        Args:
            job: ``job.function`` is the task's name, ``job.kwargs`` its arguments as they are stored, None without
                any; other headers go on it with ``job.add_headers``.
        """

    async def around(self, ctx: Context, call_next: CallNext) -> Any:  # noqa: ARG002 - what others look at
        """Run an attempt: whatever is to be done before, ``await call_next()`` once, and what is to be done after.

        Dependencies are made and finished inside, and the time limit counts inside. What this raises is the attempt's
        failure, what it returns its result; without ``call_next()`` the task does not run.
        """
        return await call_next()

    def on_success(self, ctx: Context, result: Any) -> Awaitable[None] | None:
        """Hear that a job is complete; ``result`` is as it is stored."""

    def on_failure(self, ctx: Context, error: BaseException) -> Awaitable[None] | None:
        """Hear that a job has failed for good."""

    def on_retry(self, ctx: Context, error: BaseException, after: float) -> Awaitable[None] | None:
        """Hear that an attempt has failed, and that another one is due in ``after`` seconds."""

    def on_revoked(self, ctx: Context, reason: str) -> Awaitable[None] | None:
        """Hear that a running job was ended on purpose: somebody aborted it, or the task discarded it."""


@dataclass(frozen=True, slots=True)
class Stack:
    """The hooks that concern the jobs of one task in one queue, outermost first."""

    before_enqueue: tuple[Hook, ...] = ()
    around: tuple[Hook, ...] = ()
    on_success: tuple[Hook, ...] = ()
    on_failure: tuple[Hook, ...] = ()
    on_retry: tuple[Hook, ...] = ()
    on_revoked: tuple[Hook, ...] = ()

    @classmethod
    def of(cls, found: Iterable[Any]) -> Stack:
        """Return the hooks of middlewares; one that comes twice counts where it comes first."""
        unique = list({id(middleware): middleware for middleware in found}.values())
        return cls(**{name: tuple(_overridden(name, unique)) for name in HOOKS})

    async def admits(self, job: SaqJob, *, once: bool = False) -> bool:
        """Show a job to those who may refuse it.

        Args:
            job: The job.
            once: Whether it is queued by the clock: nobody would hear an error, so it is logged and the job skipped.

        Returns:
            Whether the job may be queued.
        """
        for hook in self.before_enqueue:
            try:
                await _done(hook(_ours(job)))
            except Exception as error:
                if not once:
                    raise
                events.hook_failed("before_enqueue", job, error)
                return False
        return True

    async def run(self, ctx: Context, attempt: CallNext) -> Any:
        """Run an attempt inside of all ``around``.

        Raises:
            MiddlewareError: Their own code took too long, or one called ``call_next()`` twice.
        """
        limits = [Deadline(HOOK_SECONDS)]
        late = False
        try:
            return await _Layer(self.around, ctx, attempt, limits)()
        except asyncio.CancelledError as error:
            late = limits[-1].close()
            if not late:
                raise
            problem = f"its `around` took longer than {HOOK_SECONDS:g} s before or after the task and was cancelled"
            raise MiddlewareError(ctx.job.function, problem) from error
        finally:
            if not late:
                limits[-1].close()

    def tell(self, ctx: Context, outcome: Outcome) -> Coroutine[Any, Any, None] | None:
        """Tell how an attempt has ended; what a hook raises is logged.

        Returns:
            What is left to be awaited, if a hook has to wait for something.
        """
        name = _name(outcome)
        hooks: tuple[Hook, ...] = getattr(self, name) if name else ()
        if not hooks:
            return None
        facts = _facts(ctx, outcome)
        token = origin.set(ctx.job)
        try:
            answers = [_called(name, hook, ctx, facts) for hook in hooks]
        finally:
            origin.reset(token)
        waiting = [answer for answer in answers if answer is not None and inspect.isawaitable(answer)]
        return _awaited(name, ctx, waiting) if waiting else None


NO_STACK = Stack()


class Layers:
    """The middlewares of a registry.

    Attributes:
        in_use: Whether there is any; as long as there is none, nobody asks for a stack.
    """

    def __init__(self) -> None:
        self.in_use = False
        self._everywhere: list[Any] = []
        self._in_queue: dict[str, list[Any]] = {}
        self._stacks: dict[tuple[str, str], Stack] = {}

    def add(self, given: Sequence[Any], queue: str | None = None) -> None:
        """Add middlewares of the whole program, or of one queue, inside of those that are there.

        Raises:
            OptionError: One cannot be a middleware; the error names the legal methods.
        """
        try:
            checked = middlewares(given)
        except UnfitError as error:
            raise OptionError("registry.use()", "middleware", given, f"{EXPECTED}: {error}") from error
        (self._everywhere if queue is None else self._in_queue.setdefault(queue, [])).extend(checked)
        self.changed()

    def changed(self, *, in_use: bool = True) -> None:
        """Put the stacks together anew."""
        self.in_use |= in_use
        self._stacks.clear()

    def stack(self, task: str, queue: str, own: Sequence[Any]) -> Stack:
        """Return the hooks around a task's jobs in a queue; ``own`` are the task's middlewares."""
        stack = self._stacks.get((task, queue))
        if stack is None:
            stack = Stack.of([*self._everywhere, *self._in_queue.get(queue, ()), *own])
            self._stacks[task, queue] = stack
        return stack


class _Layer:
    """Calls the outermost of some ``around``, which calls the next; the last one calls the attempt."""

    __slots__ = ("_around", "_attempt", "_called", "_ctx", "_limits")

    def __init__(self, around: Sequence[Hook], ctx: Context, attempt: CallNext, limits: list[Deadline]) -> None:
        self._around, self._ctx, self._attempt, self._limits = around, ctx, attempt, limits
        self._called = False

    async def __call__(self) -> Any:
        if self._called:
            problem = "its `around` has called call_next() twice; to run a task again, give it retries"
            raise MiddlewareError(self._ctx.job.function, problem)
        self._called = True
        if self._around:
            return await self._around[0](self._ctx, _Layer(self._around[1:], self._ctx, self._attempt, self._limits))
        self._limits[-1].close()
        try:
            return await self._attempt()
        finally:
            self._limits.append(Deadline(HOOK_SECONDS))


def _overridden(name: str, found: Iterable[Any]) -> Iterable[Hook]:
    """Yield the hooks of a name, without those of ``Middleware`` itself, which do nothing."""
    for middleware in found:
        hook = getattr(middleware, name, None)
        if hook is not None and getattr(hook, "__func__", hook) is not getattr(Middleware, name):
            yield hook


def _name(outcome: Outcome) -> str:
    for kind, name in _NAMES.items():
        if isinstance(outcome, kind):
            return name
    return ""


def _facts(ctx: Context, outcome: Outcome) -> tuple[Any, ...]:
    """Return what a hook is told of an outcome."""
    if isinstance(outcome, Succeeded):
        return (outcome.result,)
    if isinstance(outcome, Aborted):
        return (outcome.reason,)
    job = ctx.job
    error = ctx.get("exception") or JobFailedError(job.function, job.key, getattr(outcome, "error", ""))
    return (error, outcome.after) if isinstance(outcome, Retried) else (error,)


def _called(name: str, hook: Hook, ctx: Context, facts: tuple[Any, ...]) -> Any:
    try:
        return hook(ctx, *facts)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - the attempt has ended already
        events.hook_failed(name, ctx.job, error)
        return None


async def _awaited(name: str, ctx: Context, waiting: Iterable[Awaitable[Any]]) -> None:
    origin.set(ctx.job)
    for answer in waiting:
        try:
            async with asyncio.timeout(HOOK_SECONDS):
                await answer
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - the attempt has ended already
            events.hook_failed(name, ctx.job, error)


_NAMES: dict[type, str] = {
    Succeeded: "on_success",
    Failed: "on_failure",
    Retried: "on_retry",
    Aborted: "on_revoked",
}


def _ours(job: SaqJob) -> Job[Any]:
    """Return a job of SAQ as one of ours with the very same fields."""
    if isinstance(job, Job):
        return job
    ours: Job[Any] = object.__new__(Job)
    ours.__dict__ = job.__dict__
    return ours


async def _done(answer: Any) -> None:
    if inspect.isawaitable(answer):
        await answer
