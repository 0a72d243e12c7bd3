"""Task: a function that can be queued.

Where in the flow: the first step. ``@task`` makes a ``Task`` of a function and hands
it to the registry; ``Task.enqueue`` binds and checks the arguments, builds the Job
and gives it to whoever is connected. A task knows of queues only that there is a
``Sender``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, Unpack

from typing_extensions import TypeVar as TypeVarWithDefault

from knapsaq.blueprint import NO_OPTIONS, Blueprint
from knapsaq.callables import refuse_hidden, takes_context
from knapsaq.calls import each_call
from knapsaq.canvas import Expression, Group, Sig, group
from knapsaq.context import Context
from knapsaq.control import refuse_unknown
from knapsaq.errors import InvalidArgumentsError, NotConnectedError, OptionError, TaskDefinitionError
from knapsaq.home import Home, Sender
from knapsaq.items import ItemSignature
from knapsaq.job import Job
from knapsaq.limits import WAYS, refuse_moment
from knapsaq.options import CallKeywords, CallOptions, TaskOptions
from knapsaq.schedules import Schedule
from knapsaq.signature import INJECTED, Signature
from knapsaq.timing import Duration

P = ParamSpec("P")
R = TypeVar("R")
MAIN_MODULES = ("__main__", "__mp_main__")  # the second one in a process that multiprocessing has started
C = TypeVarWithDefault("C", bound=Callable[..., Any], default=Callable[..., Any])


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
        self.takes_context = takes_context(function)
        self.is_async = inspect.iscoroutinefunction(inspect.unwrap(function)) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object whose __call__ is a coroutine function
        )
        self._home = home
        refuse_unknown(f"@task of {self.name!r}", options, self._declared)
        if options.run == "async" and not self.is_async:
            raise TaskDefinitionError(self.name, "run='async' needs an `async def`; a plain `def` runs in a thread")
        if options.run in ("thread", "process") and self.is_async:
            problem = f"run={options.run!r} needs a plain `def`; an `async def` runs on the loop"
            raise TaskDefinitionError(self.name, problem)
        if options.run == "process":
            refuse_hidden(self.name, function)
        if options.batch is not None:
            signature = ItemSignature(self.name, function, takes_context=self.takes_context)
            signature.refuse_unfilled(options.dependencies)

    def __repr__(self) -> str:
        return f"<Task {self.name!r} at {self.location}>"

    if TYPE_CHECKING:
        __sizeof__: None  # type: ignore[assignment]  # so that type checkers tell it from a function: see Decorator

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

    @property
    def _declared(self) -> Mapping[str, inspect.Parameter]:
        """The parameters without the context; unlike ``signature`` it leaves the annotations alone."""
        parameters = list(inspect.signature(self.function).parameters.values())
        return {parameter.name: parameter for parameter in parameters[1 if self.takes_context else 0 :]}

    @functools.cached_property
    def signature(self) -> Signature:
        """The function's parameters and result as callers see them, without the context."""
        kind = Signature if self.options.batch is None else ItemSignature
        return kind(self.name, self.function, takes_context=self.takes_context)

    @property
    def path(self) -> str:
        """The dotted path of the function."""
        return f"{self.__module__}.{getattr(self, '__qualname__', self.name)}"

    def place(self, queue: str, *, named: bool) -> None:
        """Send its jobs to a queue from now on; ``named`` keeps ``Settings.task_routes`` from saying otherwise."""
        self.options = replace(self.options, queue=queue, names_queue=named)

    @functools.cached_property
    def module(self) -> str:
        """The module of the function; for one of the program itself its file, as every program's is ``__main__``."""
        module = str(getattr(inspect.unwrap(self.function), "__module__", ""))
        return f"file:{self.location.rpartition(':')[0]}" if module in MAIN_MODULES else module

    @property
    def providers(self) -> Mapping[str, Any]:
        """All providers that may fill its parameters: its own before the registry's."""
        own = self.options.dependencies
        return {**self._home.dependencies, **own} if own else self._home.dependencies

    @property
    def injected(self) -> frozenset[str]:
        """The names of the parameters that providers fill."""
        if not self.options.dependencies and not self._home.dependencies:
            return self.signature.left_to_providers
        return self.signature.injectable(self.providers)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters that a caller may give."""
        return tuple(name for name in self.signature.parameters if name not in self.injected)

    def verify(self, timeout: float) -> None:
        """Refuse a task that could not run as it is defined.

        Args:
            timeout: The hard limit in seconds of tasks that name none; 0 is no limit.

        Raises:
            TaskDefinitionError: Naming what is wrong, and what to write instead.
            OptionError: A limit in an annotation cannot be.
        """
        self.signature.verify(self.injected)
        controls = self.blueprint.controls
        if controls and (filled := controls.parameters & self.injected):
            problem = f"a limit, unique or fair_key goes by {min(filled)!r}, which a provider fills in the worker"
            raise TaskDefinitionError(self.name, f"{problem}; go by a parameter that the caller gives")
        if self.options.run == "process" and self.injected:
            problem = f"run='process' cannot be given {', '.join(sorted(self.injected))!r} by a provider"
            raise TaskDefinitionError(self.name, f"{problem}, as it is another process; make it inside of the function")
        soft = self.options.soft_timeout
        if soft and self.options.timeout is None and 0 < timeout <= soft:
            problem = f"soft_timeout={soft:g} is not below the limit of KNAPSAQ_TASK_TIMEOUT, {timeout:g} s"
            raise TaskDefinitionError(self.name, f"{problem}, which ends the attempt; give it a longer timeout")

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Queue one job of this task.

        Returns:
            The job; ``await job.wait()`` gives its result.

        Raises:
            InvalidArgumentsError: The arguments do not fit the function; nothing was queued.
            PayloadTooLargeError: They are too large; nothing was queued.
            NotConnectedError: There is no connection; the text says how to open one.
            UnknownQueueError: The task's queue is not connected.
            BrokerError: Redis cannot be reached, or gives no answer: then the job may be queued all the same, and is
                not queued twice if it is sent again with the same ``key``.
        """
        return await self._send(NO_OPTIONS, args, kwargs)

    async def delay(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Queue one job of this task: another spelling of ``enqueue``."""
        return await self._send(NO_OPTIONS, args, kwargs)

    async def enqueue_many(self, calls: Iterable[Mapping[str, Any]]) -> list[Job[R]]:
        """Queue a job for each mapping of arguments, hundreds with one round trip.

        Nothing is queued unless all calls are right; where the connection breaks in between, some may be queued.

        Returns:
            The jobs, in the order of the calls.

        Raises:
            The same as ``enqueue``.
        """
        return await self._send_many(NO_OPTIONS, calls)

    def using(self, **options: Unpack[CallKeywords]) -> BoundTask[P, R]:
        """Return this task with other options for one call, those of ``CallOptions``.

        Raises:
            OptionError: An option is unknown or out of range.
        """
        return BoundTask(self, self._told(NO_OPTIONS, "using", options))

    async def apply_async(
        self,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        countdown: Duration | None = None,
        eta: datetime | None = None,
        expires: Duration | datetime | None = None,
        queue: str | None = None,
        time_limit: Duration | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int | None = None,
    ) -> Job[R]:
        """Queue one job of this task, in Celery's words; arguments are checked when it is called.

        Args:
            args: The positional arguments.
            kwargs: The arguments by name.
            countdown: Seconds or a ``timedelta`` from now before which it does not run.
            eta: The aware moment before which it does not run.
            expires: Seconds or a ``timedelta`` from the moment at which it may run, or an aware moment; one that no
                worker has started by then never runs.
            queue: Another queue.
            time_limit: Hard limit of one attempt.
            headers: Text by name that travels with the job.
            priority: 0 to 9; higher ones begin first, which is the other way round on some of Celery's brokers.

        Raises:
            The same as ``enqueue``, and ``OptionError``.
        """
        options = self._told(
            NO_OPTIONS,
            "apply_async",
            {
                "delay": countdown,
                "eta": eta,
                "expires": expires,
                "queue": queue,
                "timeout": time_limit,
                "headers": headers,
                "priority": priority,
            },
        )
        return await self._send(options, tuple(args), dict(kwargs or {}))

    def s(self, *args: Any, **kwargs: Any) -> Sig[R]:
        """Return a call of this task that is sent later, alone or in a workflow.

        Results of steps before it come before ``args``; so they may be a part of what the function takes.

        Raises:
            InvalidArgumentsError: The function has no parameter of a name.
        """
        return Sig(self, args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Sig[R]:
        """Return a call that is sent later and ignores the results of steps before it.

        Raises:
            InvalidArgumentsError: The arguments do not fit the function.
        """
        return Sig(self, args, kwargs, immutable=True)

    def map(self, items: Iterable[Any]) -> Group:
        """Return a group with a call for each item, which is the first argument."""
        return group(Sig(self, (item,)) for item in items)

    def chunks(self, items: Iterable[Any], size: int) -> Group:
        """Return a group with a call for each so many items, which are as a list the first argument.

        Args:
            items: The items.
            size: How many a call gets, 1 or more; the last one may get fewer.

        Raises:
            OptionError: ``size`` is below 1.
        """
        given: Any = size
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            raise OptionError(f".chunks() of task {self.name!r}", "size", size, "a whole number from 1")
        each = list(items)
        return self.map(each[start : start + size] for start in range(0, len(each), size))

    def build_job(self, options: CallOptions, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Job[R]:
        """Return the job of one call, not queued yet; its timeout and ttl are None where nobody named one.

        Raises:
            InvalidArgumentsError: The arguments do not fit the function.
        """
        return self.blueprint.job(options, self.signature.bind(args, kwargs, self.injected))

    def control_of(self, options: CallOptions, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what a job of this task carries for the scripts to obey, for those who find a job that has nothing.

        Args:
            options: The options of the call.
            arguments: Its arguments by name, as they are stored or as Python has them.

        Returns:
            What ``Job.control`` is to be; None if nothing.

        Raises:
            InvalidArgumentsError: They do not fit the function.
            OptionError: The key of a limit cannot be made of them.
        """
        return self.blueprint.control(options, arguments)

    @functools.cached_property
    def blueprint(self) -> Blueprint:
        """How its jobs are made."""
        return Blueprint(self.name, self.signature, self.options)

    def _told(self, base: CallOptions, method: str, given: Mapping[str, Any]) -> CallOptions:
        """Return the options of a call, checked as far as annotations are not needed for it."""
        place = f".{method}() of task {self.name!r}"
        options = base.merged(place, given)
        if options.controlled:
            refuse_unknown(place, options, self._declared)
        if self.options.debounce and all(getattr(options, way) is None for way in WAYS):
            refuse_moment(place, {"delay": options.delay, "eta": options.eta})
        return options

    async def extend(self, job: Job[Any], expression: Expression, *, replaces: bool) -> None:
        """Add to the workflow of a job of this task that runs; see ``Context.spawn`` and ``Context.replace``."""
        await self._sender.extend(job, expression, replaces=replaces)

    def _send(self, options: CallOptions, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Awaitable[Job[R]]:
        job = self.build_job(options, args, kwargs)
        return self._sender.send(options.queue or self.options.queue, job)

    def _send_many(self, options: CallOptions, calls: Iterable[Mapping[str, Any]]) -> Awaitable[list[Job[R]]]:
        jobs = [self.build_job(options, (), kwargs) for kwargs in each_call(self.name, calls)]
        return self._sender.send_many(options.queue or self.options.queue, jobs)

    @property
    def _sender(self) -> Sender:
        sender = self._home.sender
        if sender is None:
            raise NotConnectedError(self.name)
        return sender

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

    async def enqueue_many(self, calls: Iterable[Mapping[str, Any]]) -> list[Job[R]]:
        """Queue a job with these options for each mapping of arguments; see ``Task.enqueue_many``.

        Raises:
            OptionError: The options hold a ``key``, which one job alone can have.
        """
        if self.options.key is not None:
            place = f".enqueue_many() of task {self.task.name!r}"
            raise OptionError(place, "key", self.options.key, "nothing, as one job alone can have it")
        return await self.task._send_many(self.options, calls)  # noqa: SLF001

    def using(self, **options: Unpack[CallKeywords]) -> BoundTask[P, R]:
        """Return the task with further options on top of these.

        Raises:
            OptionError: An option is unknown or out of range.
        """
        return BoundTask(self.task, self.task._told(self.options, "using", options))  # noqa: SLF001
