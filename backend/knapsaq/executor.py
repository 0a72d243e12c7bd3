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
import random
import traceback
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.to_thread

from knapsaq import events
from knapsaq.codec import to_json_types
from knapsaq.context import Context
from knapsaq.errors import InvalidArgumentsError, TaskDefinitionError, TaskTimeoutError, UnknownTaskError
from knapsaq.job import Job
from knapsaq.outcomes import Aborted, Discard, Failed, Outcome, Retried, Retry, Succeeded
from knapsaq.providers import Injector
from knapsaq.registry import Registry
from knapsaq.settings import Settings
from knapsaq.task import Task

MAX_ERROR_CHARACTERS = 16_384
UNLIMITED_BACKOFF = 24 * 3600.0
NEVER_RETRIED = (InvalidArgumentsError, TaskDefinitionError, UnknownTaskError)


class Executor:
    """Runs the jobs of one worker.

    Args:
        registry: The tasks.
        injector: Makes their dependencies.
        settings: Limits of jobs that name none.
        functions: Further functions by name, called as SAQ calls them.
        threads: How many plain functions run at once.
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
        self._limiter = anyio.CapacityLimiter(threads)

    async def run(self, job: Job[Any], ctx: Context) -> Outcome:
        """Run one attempt.

        Raises:
            asyncio.CancelledError: The attempt was cancelled from outside; its dependencies are finished.
        """
        task = self._registry.find(job.function)
        if task is not None:
            ctx["task"] = task
        try:
            return Succeeded(*_stored(job, await self._attempt(task, job, ctx)))
        except Retry as signal:
            return self._retried(task, job, signal)
        except Discard as signal:
            return Aborted(f"discarded: {signal.reason}")
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever a task raises is its own outcome
            ctx["exception"] = error  # where SAQ's after_process functions look for it
            return self._failed(task, job, error)

    async def _attempt(self, task: Task[..., Any, Any] | None, job: Job[Any], ctx: Context) -> Any:
        failure: BaseException
        async with AsyncExitStack() as stack:
            try:
                return await self._within_limit(task, job, ctx, stack)
            except BaseException as error:
                failure = error
                raise
        # A provider that caught the exception and went on does not turn a failure into a success.
        raise failure

    async def _within_limit(
        self, task: Task[..., Any, Any] | None, job: Job[Any], ctx: Context, stack: AsyncExitStack
    ) -> Any:
        try:
            async with asyncio.timeout(job.timeout or None) as limit:
                if task is None:
                    return await self._call_plain(job, ctx)
                plan = self._injector.plan(task)
                provided = await plan.resolve(ctx, stack, self._injector.shared) if plan.wanted else {}
                args, kwargs = task.signature.unbind(job.kwargs or {}, provided)
                if task.takes_context:
                    args = (ctx, *args)
                if task.is_async:
                    return await task.function(*args, **kwargs)
                return await self._in_thread(task.function, args, kwargs)
        except TimeoutError as error:
            if not limit.expired():
                raise
            if task is None or not task.is_async:
                events.thread_abandoned(job)
            raise TaskTimeoutError(job.function, float(job.timeout)) from error

    async def _call_plain(self, job: Job[Any], ctx: Context) -> Any:
        function = self._functions.get(job.function)
        if function is None:
            raise UnknownTaskError(job.function, self._registry.names())
        if inspect.iscoroutinefunction(function):
            return await function(ctx, **(job.kwargs or {}))
        return await self._in_thread(function, (ctx,), job.kwargs or {})

    async def _in_thread(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        call = functools.partial(function, *args, **kwargs)
        result = await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)
        return await result if inspect.isawaitable(result) else result

    def _retried(self, task: Task[..., Any, Any] | None, job: Job[Any], signal: Retry) -> Outcome:
        asked_for = task is not None and task.options.retries is None and job.retries == 1
        attempts = self._settings.task_max_retries + 1 if asked_for else job.retries
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


def _stored(job: Job[Any], result: Any) -> tuple[Any, str | None]:
    """Return the result for JSON, or None and why it cannot be stored; the work is done in both cases."""
    try:
        return to_json_types(result), None
    except (TypeError, ValueError, RecursionError) as error:
        return None, f"the result of task {job.function!r} cannot be stored: {error}; return what JSON can carry"


def _delay(task: Task[..., Any, Any] | None, job: Job[Any]) -> float:
    """Return the seconds until the next attempt: doubled with each one, drawn from the upper half of that.

    Source: "equal jitter", M. Brooker, AWS Architecture Blog, 2015.
    """
    delay = float(job.retry_delay)
    if job.retry_backoff is not False:
        longest = UNLIMITED_BACKOFF if job.retry_backoff is True else float(job.retry_backoff)
        delay = min(longest, delay * 2.0 ** min(job.attempts - 1, 60))
    if task is None or task.options.retry_jitter:
        delay *= random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret
    return delay


def _text(error: BaseException) -> str:
    """Return a traceback; of a long one its beginning and its end, where the cause is."""
    text = "".join(traceback.format_exception(error))
    if len(text) <= MAX_ERROR_CHARACTERS:
        return text
    half = MAX_ERROR_CHARACTERS // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} characters left out ...\n{text[-half:]}"
