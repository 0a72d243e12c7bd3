"""Canvas: calls that are sent later, and how they follow each other.

Where in the flow: before anything is sent. ``task.s(...)`` makes a ``Sig``; ``|``, ``chain``, ``group``, ``chord`` and
``Workflow`` put signatures together. All are values that never change; ``plan`` turns each into nodes and edges.

Invariants, each a test in ``tests/unit/test_canvas.py``:

* a step that cannot take what the step before it returns is refused where the two meet;
* how an expression is nested changes the shape of its result, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from knapsaq.agreement import Results, disagree, shown_type
from knapsaq.checks import check
from knapsaq.codec import shown
from knapsaq.errors import InvalidArgumentsError, OptionError
from knapsaq.options import CALL_CHECKS, CHECKS, CallOptions
from knapsaq.timing import Duration
from knapsaq.workflow import WorkflowJob
from knapsaq.workflow_errors import WorkflowDefinitionError

if TYPE_CHECKING:
    from knapsaq.job import Job
    from knapsaq.task import Task

R = TypeVar("R")
OnFailure = Literal["cancel", "continue"]
NO_OPTIONS = CallOptions()
MODES = ("cancel", "continue")


@dataclass(frozen=True, slots=True)
class FlowOptions:
    """What is said of a workflow as a whole.

    Attributes:
        headers: Text by name that travels with each of its jobs.
        ttl: Seconds that it is kept after its end, at least 60; 0 for ever, None as ``Settings.result_ttl`` says.
        on_success: What runs once it has succeeded; it takes the workflow's result unless made with ``.si()``.
        on_failure: What runs once it has failed; it takes what its nodes failed with, see ``Expression.enqueue``.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    ttl: int | None = None
    on_success: Sig[Any] | None = None
    on_failure: Sig[Any] | None = None


class Expression:
    """One signature, or several that are put together."""

    __slots__ = ()

    def __or__(self, following: Expression) -> Chain:
        """Return the two in a row."""
        return chain(self, following)

    def signatures(self) -> Iterator[Sig[Any]]:
        """Yield all signatures in it."""
        raise NotImplementedError

    def entries(self) -> Iterator[Sig[Any]]:
        """Yield the signatures that take the result of what comes before."""
        raise NotImplementedError

    @property
    def returned(self) -> Any:
        """The annotation of its result; ``Results`` for several."""
        raise NotImplementedError


class Sendable(Expression):
    """What can be sent as a workflow."""

    __slots__ = ()

    async def enqueue(
        self,
        *,
        headers: Mapping[str, str] | None = None,
        ttl: int | None = None,
        on_success: Sig[Any] | None = None,
        on_failure: Sig[Any] | None = None,
    ) -> WorkflowJob:
        """Send it: all of it is accepted in one step, or nothing.

        Args:
            headers: Text by name that travels with each of its jobs; a signature's own headers win.
            ttl: Seconds that it and its results are kept after its end, at least 60; 0 for ever.
            on_success: What runs once it has succeeded; it takes the workflow's result, unless made with ``.si()``.
            on_failure: What runs once it has ended and failed; it takes a list with an object for each node that
                failed, of ``node``, ``task`` and ``error``, unless it was made with ``.si()``.

        Raises:
            InvalidArgumentsError: Arguments do not fit a task; nothing was queued.
            WorkflowDefinitionError: Its parts do not fit together; nothing was queued.
            PayloadTooLargeError: Arguments are too large; nothing was queued.
            OptionError: An option is wrong; nothing was queued.
            NotConnectedError: There is no connection.
            UnknownQueueError: The queue of a task is not connected.
            BrokerError: Redis cannot be reached.
        """
        given = check(".enqueue() of a workflow", {"headers": headers, "ttl": ttl}, _FLOW_CHECKS)
        options = FlowOptions(given.get("headers", {}), given.get("ttl"), on_success, on_failure)
        first = next(self.signatures(), None)
        if first is None:
            raise WorkflowDefinitionError("the whole", "tasks", "at least one", "none")
        sent: WorkflowJob = await first.sender.start(self, options)
        return sent

    async def delay(self) -> WorkflowJob:
        """Send it: another spelling of ``enqueue``."""
        return await self.enqueue()

    async def apply_async(
        self,
        *,
        headers: Mapping[str, str] | None = None,
        link: Sig[Any] | None = None,
        link_error: Sig[Any] | None = None,
    ) -> WorkflowJob:
        """Send it, in Celery's words: ``link`` is ``on_success``, and ``link_error`` is ``on_failure``."""
        return await self.enqueue(headers=headers, on_success=link, on_failure=link_error)

    async def __call__(self) -> WorkflowJob:
        """Send it: Celery's third spelling."""
        return await self.enqueue()


@dataclass(frozen=True, slots=True, eq=False)
class Sig(Expression, Generic[R]):
    """A call of a task that is sent later; made by ``task.s(...)``, ``task.si(...)`` or ``signature("name", ...)``.

    Attributes:
        task: The task.
        args: Its positional arguments; results of steps before it come first.
        kwargs: Its arguments by name.
        options: The options of the call.
        immutable: Whether it ignores the results of steps before it.
        on_failure: Whether it is cancelled or runs all the same when a step before it has failed.
    """

    task: Task[..., R, Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: CallOptions = NO_OPTIONS
    immutable: bool = False
    on_failure: OnFailure = "cancel"

    def __post_init__(self) -> None:
        signature = self.task.signature
        if self.kwargs and not signature.open_ended:
            for name in self.kwargs.keys() - set(self.task.parameters):
                expected = f"one of {', '.join(self.task.parameters) or 'no arguments'}"
                raise InvalidArgumentsError(self.task.name, name, expected, shown(self.kwargs[name]))
        if self.immutable:
            signature.bind(self.args, self.kwargs, self.task.injected)

    def __repr__(self) -> str:
        return f"<Sig of {self.task.name}>"

    def set(self, **options: Any) -> Sig[R]:
        """Return it with other options, those of ``.using()``, and two more.

        Args:
            options: ``queue`` and so on as in ``.using()``; ``countdown``, which is ``delay``, counted from the end of
                the steps before it; ``on_failure="continue"``, so that it runs although one of them has failed, with
                None for the result of that.

        Raises:
            OptionError: An option is unknown or out of range.
        """
        place = f".set() of task {self.task.name!r}"
        mode = options.pop("on_failure", None)
        if mode is not None and mode not in MODES:
            raise OptionError(place, "on_failure", mode, "'cancel' or 'continue'")
        if "countdown" in options:
            options["delay"] = options.pop("countdown")
        return replace(self, options=self.options.merged(place, options), on_failure=mode or self.on_failure)

    async def enqueue(self) -> Job[R]:
        """Queue one job of it; see ``Task.enqueue``.

        Raises:
            The same as ``Task.enqueue``.
        """
        return await self.task._send(self.options, self.args, self.kwargs)  # noqa: SLF001 - the two are one idea

    async def delay(self) -> Job[R]:
        """Queue one job of it: another spelling of ``enqueue``."""
        return await self.enqueue()

    async def apply_async(
        self, *, countdown: Duration | None = None, headers: Mapping[str, str] | None = None
    ) -> Job[R]:
        """Queue one job of it, in Celery's words."""
        given = {"countdown": countdown, "headers": headers}
        return await self.set(**{name: value for name, value in given.items() if value is not None}).enqueue()

    def signatures(self) -> Iterator[Sig[Any]]:
        """Yield itself."""
        yield self

    entries = signatures

    @property
    def returned(self) -> Any:
        """The annotation of the task's result."""
        return self.task.signature.annotation("return")

    @property
    def sender(self) -> Any:
        """Who sends it.

        Raises:
            NotConnectedError: There is no connection.
        """
        return self.task._sender  # noqa: SLF001


@dataclass(frozen=True, slots=True, eq=False)
class Chain(Sendable):
    """Steps in a row: each gets the result of the one before. Made by ``chain(...)``, ``a | b`` or ``chord(...)``."""

    steps: tuple[Expression, ...]

    def signatures(self) -> Iterator[Sig[Any]]:
        """Yield all signatures in it."""
        for step in self.steps:
            yield from step.signatures()

    def entries(self) -> Iterator[Sig[Any]]:
        """Yield those of the first step."""
        return self.steps[0].entries()

    @property
    def returned(self) -> Any:
        """What its last step returns."""
        return self.steps[-1].returned


@dataclass(frozen=True, slots=True, eq=False)
class Group(Sendable):
    """Members that run side by side; the result is the list of theirs. Made by ``group(...)``."""

    members: tuple[Expression, ...]

    def signatures(self) -> Iterator[Sig[Any]]:
        """Yield all signatures in it."""
        for member in self.members:
            yield from member.signatures()

    def entries(self) -> Iterator[Sig[Any]]:
        """Yield those of all members."""
        for member in self.members:
            yield from member.entries()

    @property
    def returned(self) -> Any:
        """What its members return."""
        return Results(member.returned for member in self.members)


@dataclass(frozen=True, slots=True)
class Step:
    """One node of a ``Workflow``: its name, what it runs, what has to end before, and what a failure of that means."""

    name: str
    expression: Expression
    after: tuple[str, ...]
    on_failure: OnFailure


@dataclass(frozen=True, slots=True, eq=False)
class Workflow(Sendable):
    """A graph of named nodes; ``add`` returns a workflow with one more."""

    steps: tuple[Step, ...] = ()

    def add(
        self, name: str, expression: Expression, *, after: str | Iterable[str] = (), on_failure: OnFailure = "cancel"
    ) -> Workflow:
        """Return the workflow with one more node.

        Args:
            name: Its name, unique in the workflow.
            expression: A signature, or anything that is put together of them.
            after: The nodes that have to end before it begins; it gets their results as its first arguments, one
                each in this order, unless it was made with ``.si()``.
            on_failure: Whether it is cancelled or runs all the same when one of them has failed.

        Raises:
            WorkflowDefinitionError: A name is given twice or is not known, or the node cannot take a result.
            OptionError: ``on_failure`` is neither.
        """
        before = (after,) if isinstance(after, str) else tuple(after)
        known = {step.name: step for step in self.steps}
        given: Any = name
        if not isinstance(given, str) or not given or given in known:
            raise WorkflowDefinitionError(str(name), "its name", "text that no other node has", shown(name))
        if on_failure not in MODES:
            raise OptionError(f"node {name!r} of a workflow", "on_failure", on_failure, "'cancel' or 'continue'")
        for other in before:
            if other not in known:
                raise WorkflowDefinitionError(name, "after", f"one of {', '.join(known) or 'no nodes'}", repr(other))
        step = Step(name, _expression(expression, name), before, on_failure)
        refuse_misfit(name, [known[other].expression.returned for other in before], step.expression)
        return Workflow((*self.steps, step))

    def signatures(self) -> Iterator[Sig[Any]]:
        """Yield all signatures in it."""
        for step in self.steps:
            yield from step.expression.signatures()

    def entries(self) -> Iterator[Sig[Any]]:
        """Yield those of the nodes that come after no other."""
        for step in self.steps:
            if not step.after:
                yield from step.expression.entries()

    @property
    def returned(self) -> Any:
        """A dict of what the nodes return that nothing follows."""
        return dict[str, Any]


def chain(*steps: Expression | Iterable[Expression]) -> Chain:
    """Return steps in a row, each of which gets the result of the one before as its first argument.

    A step may be anything: each member of a group gets the result, and what follows a group gets the list of results.

    Raises:
        WorkflowDefinitionError: There is no step, or one cannot take the result of the one before.
    """
    flat: list[Expression] = []
    for step in _several(steps, "chain"):
        flat += step.steps if isinstance(step, Chain) else (step,)
    if not flat:
        raise WorkflowDefinitionError("chain()", "steps", "at least one", "none")
    for before, step in pairwise(flat):
        refuse_misfit("", [before.returned], step)
    return Chain(tuple(flat))


def group(*members: Expression | Iterable[Expression]) -> Group:
    """Return members that run side by side: given one by one, as a list or by a generator. It may be empty."""
    return Group(_several(members, "group"))


def chord(members: Iterable[Expression] | Group, callback: Expression) -> Chain:
    """Return a group and what runs once all its members have ended; it gets the list of their results.

    Raises:
        WorkflowDefinitionError: The callback cannot take a list of results.
    """
    return chain(members if isinstance(members, Group) else group(members), callback)


def _several(given: Iterable[Any], place: str) -> tuple[Expression, ...]:
    parts = tuple(given)
    if len(parts) == 1 and not isinstance(parts[0], Expression):
        if isinstance(parts[0], (str, bytes, Mapping)) or not isinstance(parts[0], Iterable):
            _expression(parts[0], place)
        parts = tuple(parts[0])
    return tuple(_expression(part, place) for part in parts)


def _expression(part: Any, place: str) -> Expression:
    if isinstance(part, Expression):
        return part
    expected = "a signature such as task.s(...), or a chain, group or chord"
    raise WorkflowDefinitionError(place, "a part", expected, shown(part))


def refuse_misfit(name: str, before: list[Any], step: Expression) -> None:
    """Refuse a step that cannot take the results before it; ``before`` has their annotations."""
    checked: set[tuple[int, tuple[str, ...]]] = set()
    for sig in step.entries() if before else ():
        if sig.immutable:
            continue
        shape = (id(sig.task), tuple(sig.kwargs))
        if shape in checked:
            continue  # the members of a group are alike as a rule
        checked.add(shape)
        takers = sig.task.signature.takers(len(before), sig.kwargs, sig.task.injected)
        for taker, returned in zip(takers, before, strict=True):
            annotation = sig.task.signature.annotation(taker)
            if disagree(returned, annotation):
                part = f"argument {taker!r} of task {sig.task.name!r}"
                given = f"{shown_type(returned)}, the result of the step before it"
                raise WorkflowDefinitionError(name or sig.task.name, part, shown_type(annotation), given)


_FLOW_CHECKS = {"headers": CALL_CHECKS["headers"], "ttl": CHECKS["ttl"]}
