"""Executor: runs one attempt of a job and says how it ended.

Where in the flow: between claim and settle. It decides and writes nothing: what it
returns is an ``Outcome``, which the queue turns into a record.

The steps: find the task, make its dependencies, decode its arguments, run the
function under the time limit, encode the result. Whatever goes wrong in them is
the outcome of this job alone.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from knapsaq import events
from knapsaq.blueprint import NO_OPTIONS
from knapsaq.child import find_again
from knapsaq.codec import copied
from knapsaq.context import Context
from knapsaq.deadline import Deadline, SoftDeadline, Steered
from knapsaq.errors import KnapsaqError, SoftTimeLimitExceeded, TaskProcessError, TaskTimeoutError, UnknownTaskError
from knapsaq.flows import inputs
from knapsaq.gathering import Attempt, Gatherings
from knapsaq.job import CONTROL, UNKNOWN_SINCE, Job, backed_off
from knapsaq.middleware import Stack
from knapsaq.nodes import place_of
from knapsaq.options import NEVER_RETRIED
from knapsaq.outcomes import (
    Aborted,
    Dead,
    Discard,
    Elsewhere,
    Failed,
    Outcome,
    Released,
    Retried,
    Retry,
    Snooze,
    Snoozed,
    TaskSignal,
    error_text,
    storable,
    succeeded,
)
from knapsaq.providers import NOTHING, Injector, Plan
from knapsaq.registry import Registry
from knapsaq.settings import Settings
from knapsaq.task import Task
from knapsaq.timing import now_ms
from knapsaq.variables import Variables

if TYPE_CHECKING:
    from knapsaq.children import Children
    from knapsaq.threads import Threads

# Seconds for which a job of an unknown task is put back; short, as other workers that do not know it claim it too.
FIRST_UNKNOWN_DELAY, LONGEST_UNKNOWN_DELAY = 1.0, 5.0
NONE_PROVIDED: Mapping[str, Any] = {}


class Executor:
    """Runs the jobs of one worker.

    Args:
        registry: The tasks.
        injector: Makes their dependencies.
        settings: Limits of jobs that name none.
        functions: Further functions by name, called as SAQ calls them.
        threads: How many plain functions run at once, those counted that time-outs have left behind.

    Raises:
        TaskDefinitionError: Another process would not find the function of a ``run="process"`` task.
    """

    def __init__(
        self,
        registry: Registry,
        injector: Injector,
        settings: Settings,
        functions: Mapping[str, Callable[..., Any]],
        threads: int,
    ) -> None:
        self._registry = registry
        self._injector = injector
        self._settings = settings
        self._functions = functions
        self._number_of_threads = threads
        self._gatherings = Gatherings(self._attempt)
        tasks = registry.get_all_tasks()
        for task in tasks:
            find_again(task)
        if any(not task.is_async and task.options.run != "process" for task in tasks):
            _ = self._threads
        if any(task.options.run == "process" for task in tasks):
            _ = self._children

    async def open(self, *, hurried: bool = False) -> None:
        """Make the worker's own dependencies.

        Args:
            hurried: Whether jobs of a batch do not wait for others.

        Raises:
            ProviderError: A provider raised; it is named, with the cause chained.
        """
        await self._injector.open()
        self._gatherings.open(hurried=hurried)

    def hurry(self) -> None:
        """Have no job wait for others of its batch any longer, as the worker stops."""
        self._gatherings.hurry()

    async def close(self) -> None:
        """End the processes that still run something, and functions that nobody waits for."""
        self._gatherings.close()
        if "_children" in vars(self):
            await self._children.close()

    # Both import anyio, 2 MiB that a worker of coroutine functions does without.
    @functools.cached_property
    def _threads(self) -> Threads:
        from knapsaq.threads import Threads  # noqa: PLC0415 - see above

        return Threads(self._number_of_threads)

    @functools.cached_property
    def _children(self) -> Children:
        from knapsaq.children import Children  # noqa: PLC0415 - see above

        return Children()

    async def run(self, job: Job[Any], ctx: Context) -> Outcome:
        """Run one attempt.

        Raises:
            asyncio.CancelledError: The attempt was cancelled from outside; its dependencies are finished.
        """
        task = self._registry.find(job.function)
        if task is None:
            if job.function not in self._functions:
                return self._unknown(job)
        elif task.blueprint.controls is not None and self._is_held_now(task, job):
            return Released("it came without the limits of its task")
        if task is not None:
            ctx["task"] = task
        if job.meta:
            job.forget(UNKNOWN_SINCE)
        try:
            is_plain = task is None or task.options.batch is None
            attempt: Attempt = self._attempt if is_plain else self._gatherings.join
            stack = ctx.stack if ctx.stack is not None and ctx.stack.around else None
            result = await (self._surrounded(task, job, ctx, stack, attempt) if stack else attempt(task, job, ctx))
            outcome = succeeded(job.function, result)
            chosen = outcome.problem is not None and isinstance(result, TaskSignal)
            return self._chosen(task, job, ctx, result) if chosen else outcome
        except TaskSignal as signal:
            return self._chosen(task, job, ctx, signal)
        except SoftTimeLimitExceeded as error:  # it is a CancelledError too
            ctx["exception"] = error
            return self._failed(task, job, error)
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever a task raises is its own outcome
            ctx["exception"] = error  # where SAQ's after_process functions look for it
            return self._failed(task, job, error)

    def _is_held_now(self, task: Task[..., Any, Any], job: Job[Any]) -> bool:
        """Give a job its limits that came without, as from a program of SAQ; False if it needs none."""
        if job.control or place_of(job.key):
            return False
        try:
            control = task.blueprint.control(NO_OPTIONS, job.kwargs or {}, unique=False)
        except KnapsaqError:
            return False  # the attempt tells what is wrong with its arguments
        if control is not None:
            job.note(**{CONTROL: control})
        return control is not None

    def _unknown(self, job: Job[Any]) -> Outcome:
        """Put back a job whose task nobody here knows, as another worker may, or this one's next release."""
        now = now_ms()
        since = job.extras.get(UNKNOWN_SINCE, now)
        waited = (now - since) / 1000
        reason = str(UnknownTaskError(job.function, self._registry.names()))
        left = self._settings.unknown_task_limit - waited
        if left <= 0:
            return Dead(reason)
        job.note(**{UNKNOWN_SINCE: since})
        after = min(max(FIRST_UNKNOWN_DELAY, waited), LONGEST_UNKNOWN_DELAY, left)
        events.task_unknown(job, after)
        return Released(reason, after)

    async def _surrounded(
        self, task: Task[..., Any, Any] | None, job: Job[Any], ctx: Context, stack: Stack, inner: Attempt
    ) -> Any:
        """Run the attempt inside of all ``around``; these see results as values and signals as exceptions."""
        elsewhere: Elsewhere | None = None

        async def attempt() -> Any:
            nonlocal elsewhere
            result = await inner(task, job, ctx)
            if isinstance(result, Elsewhere):
                elsewhere = result
                return result.outcome.result
            if isinstance(result, TaskSignal):
                raise result
            return result

        result = await stack.run(ctx, attempt)
        # What came encoded, perhaps with the reason why it could not be stored, is so still where nobody changed it.
        return elsewhere if elsewhere is not None and result is elsewhere.outcome.result else result

    async def _attempt(self, task: Task[..., Any, Any] | None, job: Job[Any], ctx: Context) -> Any:
        plan = NOTHING if task is None else self._injector.plan(task)
        if not plan.wanted:
            return await self._within_limit(task, job, ctx, plan)
        failure: BaseException
        async with AsyncExitStack() as stack:
            try:
                return await self._within_limit(task, job, ctx, plan, stack)
            except BaseException as error:
                failure = error
                raise
        # A provider that caught the exception and went on does not turn a failure into a success.
        raise failure

    async def _within_limit(
        self,
        task: Task[..., Any, Any] | None,
        job: Job[Any],
        ctx: Context,
        plan: Plan,
        stack: AsyncExitStack | None = None,
    ) -> Any:
        soft = None if task is None else task.options.soft_timeout
        deadline = job.deadline = _deadline(job, soft) if soft else Deadline(job.timeout) if job.timeout else None
        over = False
        try:
            if task is None:
                return await self._call_plain(job, ctx)
            arguments = (await inputs(job) if job.meta else job.kwargs) or {}
            if not task.is_async and task.options.run == "process":
                return await self._children.run(task, job, arguments)
            provided = await plan.resolve(ctx, stack, self._injector.shared) if stack else NONE_PROVIDED
            args, kwargs = task.signature.unbind(arguments, provided)
            if task.takes_context:
                args = (ctx, *args)
            if task.is_async and not soft:
                return await task.function(*args, **kwargs)
            return await self._call(task, job, ctx, functools.partial(task.function, *args, **kwargs))
        except asyncio.CancelledError as error:
            over = deadline is not None and deadline.close()
            if over:
                job.interrupted = True
                raise TaskTimeoutError(job.function, float(job.timeout)) from error
            raise
        finally:
            job.deadline = None
            if deadline is not None and not over:
                deadline.close()

    async def _call(self, task: Task[..., Any, Any], job: Job[Any], ctx: Context, function: Callable[[], Any]) -> Any:
        """Call a task's function where it runs, with what reminds it of its soft limit."""
        soft = task.options.soft_timeout
        if not task.is_async:
            return await self._threaded(job, ctx, function, hears=task.takes_context, soft=soft)
        steered = Steered(function(), SoftTimeLimitExceeded(task.name, soft or 0.0))
        if job.deadline is not None:
            job.deadline.remind(steered.interrupt)
        return await steered

    async def _call_plain(self, job: Job[Any], ctx: Context) -> Any:
        function = self._functions[job.function]
        kwargs = copied((await inputs(job) if job.meta else job.kwargs) or {})
        if inspect.iscoroutinefunction(function):
            return await function(ctx, **kwargs)
        return await self._threaded(job, ctx, functools.partial(function, ctx, **kwargs))

    async def _threaded(
        self,
        job: Job[Any],
        ctx: Context,
        function: Callable[[], Any],
        *,
        hears: bool = False,
        soft: float | None = None,
    ) -> Any:
        """Call a function in a thread; where something is done around it, with what it sets there brought back."""
        if ctx.stack is None or not ctx.stack.around:
            result = await self._threads.run(job, function, hears=hears, soft=soft)
        else:
            with Variables(function) as bringing_back:
                result = await self._threads.run(job, bringing_back, hears=hears, soft=soft)
        return await result if inspect.isawaitable(result) else result

    def _chosen(self, task: Task[..., Any, Any] | None, job: Job[Any], ctx: Context, signal: TaskSignal) -> Outcome:
        """Return the outcome that the task itself has chosen."""
        if isinstance(signal, Retry):
            ctx["exception"] = signal.__cause__ or signal.__context__ or signal
            return self._retried(task, job, signal)
        if isinstance(signal, Snooze):
            return Snoozed(str(signal), signal.after)
        if isinstance(signal, Elsewhere):
            return signal.outcome
        if isinstance(signal, Discard):
            return Aborted(storable(f"discarded: {signal.reason}"))
        ctx["exception"] = signal
        return self._failed(task, job, signal)

    def _retried(self, task: Task[..., Any, Any] | None, job: Job[Any], signal: Retry) -> Outcome:
        said = task is None or task.options.retries is not None or job.retries != 1 or "retries" in job.extras
        attempts = job.retries if said else self._settings.task_max_retries + 1
        error = error_text(signal.__cause__ or signal.__context__ or signal)
        if job.attempts >= attempts:
            return Failed(error)
        return Retried(error, _delay(task, job) if signal.after is None else signal.after)

    def _failed(self, task: Task[..., Any, Any] | None, job: Job[Any], error: BaseException) -> Outcome:
        text = error_text(error)
        if isinstance(error, TaskProcessError):
            again = error.again
        else:
            again = not isinstance(error, NEVER_RETRIED) if task is None else task.options.retries_after(error)
        return Retried(text, _delay(task, job)) if again and job.attempts < job.retries else Failed(text)


def _deadline(job: Job[Any], soft: float) -> Deadline:
    """Return the deadline of an attempt that begins now; a soft limit that the hard one comes before never passes."""
    hard = float(job.timeout or math.inf)
    return SoftDeadline(hard, soft) if soft < hard else Deadline(hard)


def _delay(task: Task[..., Any, Any] | None, job: Job[Any]) -> float:
    if task is None:
        return job.next_retry_delay()
    source = job if job.retries > 1 else task.options
    return backed_off(source.retry_delay, source.retry_backoff, job.attempts, jitter=task.options.retry_jitter)
