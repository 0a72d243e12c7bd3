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
import random
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
                job.limit = limit
                if task is None:
                    return await self._call_plain(job, ctx, limit)
                plan = self._injector.plan(task)
                provided = await plan.resolve(ctx, stack, self._injector.shared) if plan.wanted else {}
                args, kwargs = task.signature.unbind(job.kwargs or {}, provided)
                if task.takes_context:
                    args = (ctx, *args)
                if task.is_async:
                    return await task.function(*args, **kwargs)
                return await self._in_thread(job, limit, functools.partial(task.function, *args, **kwargs))
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TaskTimeoutError(job.function, float(job.timeout)) from error
        finally:
            job.limit = None

    async def _call_plain(self, job: Job[Any], ctx: Context, limit: asyncio.Timeout) -> Any:
        function = self._functions.get(job.function)
        if function is None:
            raise UnknownTaskError(job.function, self._registry.names())
        kwargs = copied(job.kwargs or {})
        if inspect.iscoroutinefunction(function):
            return await function(ctx, **kwargs)
        return await self._in_thread(job, limit, functools.partial(function, ctx, **kwargs))

    async def _in_thread(self, job: Job[Any], limit: asyncio.Timeout, function: Callable[[], Any]) -> Any:
        call = _ThreadCall(function, self._threads)
        await self._free_thread(job, limit, call)
        try:
            result = await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._unlimited)
        finally:
            if call.leave():
                events.thread_abandoned(job)
        return await result if inspect.isawaitable(result) else result

    async def _free_thread(self, job: Job[Any], limit: asyncio.Timeout, call: _ThreadCall) -> None:
        """Wait until there is a thread; that does not count towards the job's time limit."""
        with suppress(anyio.WouldBlock):
            self._threads.acquire_on_behalf_of_nowait(call)
            return
        events.thread_awaited(job, int(self._threads.total_tokens))
        loop, end = asyncio.get_running_loop(), limit.when()
        began = loop.time()
        if end is None or limit.expired():
            await self._threads.acquire_on_behalf_of(call)
            return
        limit.reschedule(None)
        await self._threads.acquire_on_behalf_of(call)
        limit.reschedule(end + loop.time() - began)

    def _retried(self, task: Task[..., Any, Any] | None, job: Job[Any], signal: Retry) -> Outcome:
        said = task is None or task.options.retries is not None or job.retries != 1 or _says_no_retries(job)
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


def _says_no_retries(job: Job[Any]) -> bool:
    extras: Any = job.extras  # whatever the record holds
    return isinstance(extras, Mapping) and "retries" in extras


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
    """Return a traceback, which has the cause at its end."""
    return _storable("".join(traceback.format_exception(error)))


def _storable(text: str) -> str:
    """Return text that UTF-8 can carry, of a long one its beginning and its end."""
    text = utf8(text)
    if len(text) <= MAX_ERROR_CHARACTERS:
        return text
    half = MAX_ERROR_CHARACTERS // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} characters left out ...\n{text[-half:]}"
