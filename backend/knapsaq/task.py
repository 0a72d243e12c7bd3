"""Task: a function that can be queued.

Where in the flow: the first step. ``@task`` makes a ``Task`` of a function and hands
it to the registry; ``Task.enqueue`` binds and checks the arguments, builds the Job
and gives it to whoever is connected. A task knows of queues only that there is a
``Sender``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, Unpack

from typing_extensions import TypeVar as TypeVarWithDefault

from knapsaq.codec import INJECTED, Signature
from knapsaq.context import Context
from knapsaq.errors import InvalidArgumentsError, NotConnectedError, TaskDefinitionError
from knapsaq.job import META_KEY, Job, new_key
from knapsaq.options import CallKeywords, CallOptions, TaskOptions
from knapsaq.schedules import Schedule
from knapsaq.timing import Duration, now_ms

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVarWithDefault("C", bound=Callable[..., Any], default=Callable[..., Any])


class Sender(Protocol):
    """Whoever can accept jobs: a connected client."""

    async def send(self, queue: str, job: Job[Any]) -> Job[Any]:
        """Accept the job, or return the one that already has its key."""


class Home(Protocol):
    """What a task asks of the registry that it belongs to."""

    @property
    def sender(self) -> Sender | None:
        """The connected client, if there is one."""

    @property
    def dependencies(self) -> Mapping[str, Any]:
        """The providers by parameter name."""


class Task(Generic[P, R, C]):
    """A function that can be queued; calling it runs the function in place.

    Attributes:
        name: Its name in the registry and on the wire.
        function: The user's function.
        options: What ``@task`` was told.
        schedules: When it runs by itself.
        takes_context: Whether the function's first parameter is the context.
        is_async: Whether the function is a coroutine function.
    """

    __name__: str
    __wrapped__: Callable[..., Any]

    def __init__(self, function: C, options: TaskOptions, *, home: Home, schedules: tuple[Schedule, ...] = ()) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.options = options
        self.schedules = schedules
        self.name = options.name or str(getattr(function, "__name__", ""))
        if not self.name:
            raise TaskDefinitionError(repr(function), "it has no name of its own; give it one with @task(name=...)")
        self.takes_context = _takes_context(function)
        self.is_async = inspect.iscoroutinefunction(inspect.unwrap(function)) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object whose __call__ is a coroutine function
        )
        self._home = home
        if options.run == "async" and not self.is_async:
            raise TaskDefinitionError(self.name, "run='async' needs an `async def`; a plain `def` runs in a thread")
        if options.run == "thread" and self.is_async:
            raise TaskDefinitionError(self.name, "run='thread' needs a plain `def`; an `async def` runs on the loop")

    def __repr__(self) -> str:
        return f"<Task {self.name!r} at {self.location}>"

    if TYPE_CHECKING:

        @property
        def __call__(self) -> C:
            """Run the function in place."""
    else:

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Run the function in place, with any mapping as its context."""
            if self.takes_context and args and isinstance(args[0], Mapping):
                args = (Context.of(args[0]), *args[1:])
            self._refuse_uninjected(kwargs)
            return self.function(*args, **kwargs)

    @functools.cached_property
    def location(self) -> str:
        """Where the function is defined: file and line."""
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(self.function)

    @functools.cached_property
    def signature(self) -> Signature:
        """The function's parameters and result, without the context."""
        return Signature(self.name, self.function, takes_context=self.takes_context)

    @property
    def providers(self) -> Mapping[str, Any]:
        """All providers that may fill its parameters: its own before the registry's."""
        own = self.options.dependencies
        return {**self._home.dependencies, **own} if own else self._home.dependencies

    @property
    def injected(self) -> frozenset[str]:
        """The names of the parameters that providers fill."""
        return self.signature.injectable(self.providers)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters that a caller may give."""
        return tuple(name for name in self.signature.parameters if name not in self.injected)

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Queue one job of this task.

        Returns:
            The job; ``await job.wait()`` gives its result.

        Raises:
            InvalidArgumentsError: The arguments do not fit the function; nothing was queued.
            PayloadTooLargeError: They are too large; nothing was queued.
            NotConnectedError: There is no connection; the text says how to open one.
            UnknownQueueError: The task's queue is not connected.
            BrokerError: Redis cannot be reached.
        """
        return await self._send(CallOptions(), args, kwargs)

    async def delay(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Queue one job of this task: another spelling of ``enqueue``."""
        return await self._send(CallOptions(), args, kwargs)

    def using(self, **options: Unpack[CallKeywords]) -> BoundTask[P, R]:
        """Return this task with other options for one call: ``queue, key, delay, eta, timeout, retries, ttl, headers``.

        Raises:
            OptionError: An option is unknown or out of range.
        """
        return BoundTask(self, CallOptions().merged(f".using() of task {self.name!r}", options))

    async def apply_async(
        self,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        countdown: Duration | None = None,
        eta: datetime | None = None,
        queue: str | None = None,
        time_limit: Duration | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Job[R]:
        """Queue one job of this task, in Celery's words; arguments are checked when it is called.

        Args:
            args: The positional arguments.
            kwargs: The arguments by name.
            countdown: Seconds or a ``timedelta`` from now before which it does not run.
            eta: The aware moment before which it does not run.
            queue: Another queue.
            time_limit: Hard limit of one attempt.
            headers: Text by name that travels with the job.

        Raises:
            The same as ``enqueue``, and ``OptionError``.
        """
        options = CallOptions().merged(
            f".apply_async() of task {self.name!r}",
            {"delay": countdown, "eta": eta, "queue": queue, "timeout": time_limit, "headers": headers},
        )
        return await self._send(options, tuple(args), dict(kwargs or {}))

    def build_job(self, options: CallOptions, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Job[R]:
        """Return the job of one call, not queued yet; its timeout and ttl are None where nobody named one.

        Raises:
            InvalidArgumentsError: The arguments do not fit the function.
        """
        own = self.options
        retries = own.retries if options.retries is None else options.retries
        timeout = own.timeout if options.timeout is None else options.timeout
        ttl = own.ttl if options.ttl is None else options.ttl
        job: Job[R] = Job(
            function=self.name,
            kwargs=self.signature.bind(args, kwargs, self.injected) or None,
            key=options.key or new_key(),
            retries=1 + (retries or 0),
            retry_delay=own.retry_delay,
            retry_backoff=own.retry_backoff,
            scheduled=_due(options),  # type: ignore[arg-type]  # SAQ stores whole seconds, we to the millisecond
            timeout=timeout,  # type: ignore[arg-type]  # the sender fills in its default
            ttl=ttl,  # type: ignore[arg-type]
        )
        job.delay = options.delay or 0.0
        extras: dict[str, Any] = {"headers": dict(options.headers)} if options.headers else {}
        if options.retries == 0:
            extras["retries"] = 0  # job.retries does not tell it from a call that says nothing
        if extras:
            job.meta = {META_KEY: extras}
        return job

    async def _send(self, options: CallOptions, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Job[R]:
        job = self.build_job(options, args, kwargs)
        sender = self._home.sender
        if sender is None:
            raise NotConnectedError(self.name)
        return await sender.send(options.queue or self.options.queue, job)

    def _refuse_uninjected(self, kwargs: Mapping[str, Any]) -> None:
        """Refuse a direct call that leaves an injected parameter to a provider, who is not asked."""
        for name, parameter in inspect.signature(self.function).parameters.items():
            if parameter.default is INJECTED and parameter.kind is parameter.KEYWORD_ONLY and name not in kwargs:
                raise InvalidArgumentsError(self.name, name, "a value, as a direct call asks no provider", "nothing")


class BoundTask(Generic[P, R]):
    """A task with the options of one call; made by ``Task.using``."""

    def __init__(self, task: Task[P, R, Any], options: CallOptions) -> None:
        self.task, self.options = task, options

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Queue one job with these options; see ``Task.enqueue``."""
        return await self.task._send(self.options, args, kwargs)  # noqa: SLF001 - the two are one idea

    def using(self, **options: Unpack[CallKeywords]) -> BoundTask[P, R]:
        """Return the task with further options on top of these.

        Raises:
            OptionError: An option is unknown or out of range.
        """
        return BoundTask(self.task, self.options.merged(f".using() of task {self.task.name!r}", options))


def _due(options: CallOptions) -> float:
    """Return the moment in seconds since 1970 before which the job may not run; 0 is at once."""
    if options.eta is not None:
        return max(0.0, options.eta)
    return now_ms() / 1000 + options.delay if options.delay else 0


def _takes_context(function: Callable[..., Any]) -> bool:
    """Tell whether the first parameter is the context, by its name or by its annotation."""
    first = next(iter(inspect.signature(function).parameters.values()), None)
    if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        return False
    annotation = first.annotation
    if isinstance(annotation, str):
        named = annotation.rsplit(".", 1)[-1] == "Context"
    else:
        named = getattr(annotation, "__name__", "") == "Context"
    return first.name == "ctx" or named
