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
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any

import anyio
import anyio.to_thread

from knapsaq import events
from knapsaq.codec import copied, to_json_types, utf8
from knapsaq.context import Context
from knapsaq.deadline import Deadline
from knapsaq.errors import InvalidArgumentsError, TaskDefinitionError, TaskTimeoutError, UnknownTaskError
from knapsaq.flows import inputs
from knapsaq.job import META_KEY, UNKNOWN_SINCE, Job, backed_off
from knapsaq.outcomes import Aborted, Dead, Discard, Failed, Outcome, Released, Retried, Retry, Succeeded
from knapsaq.providers import NOTHING, Injector, Plan
from knapsaq.registry import Registry
from knapsaq.settings import Settings
from knapsaq.task import Task
from knapsaq.timing import now_ms

MAX_ERROR_CHARACTERS = 16_384
NEVER_RETRIED = (InvalidArgumentsError, TaskDefinitionError)
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
        self._threads = anyio.CapacityLimiter(threads)
        self._unlimited = anyio.CapacityLimiter(math.inf)

    async def run(self, job: Job[Any], ctx: Context) -> Outcome:
        """Run one attempt.

        Raises:
            asyncio.CancelledError: The attempt was cancelled from outside; its dependencies are finished.
        """
        task = self._registry.find(job.function)
        if task is not None:
            ctx["task"] = task
        elif job.function not in self._functions:
            return self._unknown(job)
        if job.meta:
            _forget_unknown(job)
        try:
            return Succeeded(*_stored(job, await self._attempt(task, job, ctx)))
        except Retry as signal:
            return self._retried(task, job, signal)
        except Discard as signal:
            return Aborted(_storable(f"discarded: {signal.reason}"))
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever a task raises is its own outcome
            ctx["exception"] = error  # where SAQ's after_process functions look for it
            return self._failed(task, job, error)

    def _unknown(self, job: Job[Any]) -> Outcome:
        """Put back a job whose task nobody here knows, as another worker may, or this one's next release."""
        now, extras = now_ms(), dict(job.extras)
        since = extras.setdefault(UNKNOWN_SINCE, now)
        waited = (now - since) / 1000
        reason = str(UnknownTaskError(job.function, self._registry.names()))
        left = self._settings.unknown_task_limit - waited
        if left <= 0:
            return Dead(reason)
        job.meta = {**job.meta, META_KEY: extras}
        after = min(max(FIRST_UNKNOWN_DELAY, waited), LONGEST_UNKNOWN_DELAY, left)
        events.task_unknown(job, after)
        return Released(reason, after)

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
        deadline = job.deadline = Deadline(job.timeout) if job.timeout else None
        over = False
        try:
            if task is None:
                return await self._call_plain(job, ctx)
            provided = await plan.resolve(ctx, stack, self._injector.shared) if stack else NONE_PROVIDED
            arguments = (await inputs(job) if job.meta else job.kwargs) or {}
            args, kwargs = task.signature.unbind(arguments, provided)
            if task.takes_context:
                args = (ctx, *args)
            if task.is_async:
                return await task.function(*args, **kwargs)
            return await self._in_thread(job, functools.partial(task.function, *args, **kwargs))
        except asyncio.CancelledError as error:
            over = deadline is not None and deadline.close()
            if over:
                raise TaskTimeoutError(job.function, float(job.timeout)) from error
            raise
        finally:
            job.deadline = None
            if deadline is not None and not over:
                deadline.close()

    async def _call_plain(self, job: Job[Any], ctx: Context) -> Any:
        function = self._functions[job.function]
        kwargs = copied((await inputs(job) if job.meta else job.kwargs) or {})
        if inspect.iscoroutinefunction(function):
            return await function(ctx, **kwargs)
        return await self._in_thread(job, functools.partial(function, ctx, **kwargs))

    async def _in_thread(self, job: Job[Any], function: Callable[[], Any]) -> Any:
        call = _ThreadCall(function, self._threads)
        await self._free_thread(job, call)
        try:
            result = await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._unlimited)
        finally:
            if call.leave():
                events.thread_abandoned(job)
        return await result if inspect.isawaitable(result) else result

    async def _free_thread(self, job: Job[Any], call: _ThreadCall) -> None:
        """Wait until there is a thread; that does not count towards the job's time limit."""
        with suppress(anyio.WouldBlock):
            self._threads.acquire_on_behalf_of_nowait(call)
            return
        events.thread_awaited(job, int(self._threads.total_tokens))
        deadline = job.deadline
        left = deadline.put_off() if deadline is not None else 0.0
        await self._threads.acquire_on_behalf_of(call)
        if deadline is not None:
            deadline.go_on(left)

    def _retried(self, task: Task[..., Any, Any] | None, job: Job[Any], signal: Retry) -> Outcome:
        said = task is None or task.options.retries is not None or job.retries != 1 or "retries" in job.extras
        attempts = job.retries if said else self._settings.task_max_retries + 1
        error = _text(signal.__cause__ or signal.__context__ or signal)
        if job.attempts >= attempts:
            return Failed(error)
        return Retried(error, _delay(task, job) if signal.after is None else signal.after)

    def _failed(self, task: Task[..., Any, Any] | None, job: Job[Any], error: BaseException) -> Outcome:
        text = _text(error)
        if job.attempts >= job.retries or isinstance(error, NEVER_RETRIED):
            return Failed(text)
        if task is not None:
            options = task.options
            if isinstance(error, options.give_up_on) or not isinstance(error, options.retry_on):
                return Failed(text)
        return Retried(text, _delay(task, job))


class _ThreadCall:
    """A function on its way through a thread, and the holder of a token until that thread has really ended.

    Args:
        function: What the thread runs.
        tokens: Where the token came from; made on the loop that runs.
    """

    def __init__(self, function: Callable[[], Any], tokens: anyio.CapacityLimiter) -> None:
        self._function, self._tokens = function, tokens
        self._loop = asyncio.get_running_loop()
        self._taken = threading.Lock()  # by the thread that runs it, or by the loop that has left before
        self._ended = False

    def __call__(self) -> Any:
        """Run the function, in the thread; nothing happens if nobody waits for it any more."""
        if not self._taken.acquire(blocking=False):
            return None
        try:
            return self._function()
        finally:
            self._ended = True
            with suppress(RuntimeError):  # the loop is closed, and the tokens are gone with it
                self._loop.call_soon_threadsafe(self._tokens.release_on_behalf_of, self)

    def leave(self) -> bool:
        """Say on the loop that nobody waits any more; returns whether the thread runs on."""
        if self._taken.acquire(blocking=False):
            self._tokens.release_on_behalf_of(self)
            return False
        return not self._ended


def _forget_unknown(job: Job[Any]) -> None:
    """Forget that a worker did not know the task, now that one does."""
    extras = job.extras
    if UNKNOWN_SINCE in extras:
        job.meta = {**job.meta, META_KEY: {name: extras[name] for name in extras if name != UNKNOWN_SINCE}}


def _stored(job: Job[Any], result: Any) -> tuple[Any, str | None]:
    """Return the result for JSON, or None and why it cannot be stored; the work is done in both cases."""
    try:
        return to_json_types(result), None
    except (TypeError, ValueError, RecursionError) as error:
        return None, f"the result of task {job.function!r} cannot be stored: {error}; return what JSON can carry"


def _delay(task: Task[..., Any, Any] | None, job: Job[Any]) -> float:
    if task is None:
        return job.next_retry_delay()
    source = job if job.retries > 1 else task.options
    return backed_off(source.retry_delay, source.retry_backoff, job.attempts, jitter=task.options.retry_jitter)


def _text(error: BaseException) -> str:
    """Return a traceback, which has the cause at its end."""
    return _storable("".join(traceback.format_exception(error)))


def _storable(text: str) -> str:
    """Return text that UTF-8 can carry, of a long one its beginning and its end."""
    text = utf8(text)
    if len(text) <= MAX_ERROR_CHARACTERS:
        return text
    half = MAX_ERROR_CHARACTERS // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} characters left out ...\n{text[-half:]}"
