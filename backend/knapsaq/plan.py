"""Plan: what an expression is made of: nodes, and which follow which. One mechanism runs them all.

Where in the flow: between ``enqueue()`` of an expression and Redis. A node is one job. A join is a node without a job:
it stands behind a group where something follows, so that n members and m followers need n + m edges, not n * m.

Invariants, each a test in ``tests/unit/test_plan.py``:

* each signature is one node, and nothing else is a job;
* a node follows from others with lower numbers alone;
* every argument is bound and checked before anything is sent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, NamedTuple, TypeAlias

from knapsaq.canvas import Chain, Expression, FlowOptions, Group, OnFailure, Sig, Workflow, refuse_misfit
from knapsaq.errors import OptionError
from knapsaq.job import Job
from knapsaq.limits import WAYS
from knapsaq.options import CallOptions
from knapsaq.workflow_errors import WorkflowDefinitionError

Shape: TypeAlias = "int | list[Shape] | dict[str, Shape]"
"""Where a result is found: a node's number, or a list or a dict of such."""

FAILURES = -1
"""In place of a node's number: what the nodes of the workflow have failed with."""


class Taken(NamedTuple):
    """A parameter of a node that is given another one's result."""

    parameter: str
    node: int


@dataclass(frozen=True, slots=True)
class Node:
    """One node.

    Attributes:
        number: Its number in the workflow.
        name: Its name, if it was given one.
        sig: What it calls; None is a join.
        job: The job, not addressed yet; None for a join.
        takes: Which of its parameters get results.
        parents: How many nodes have to end before it.
        parent: The number of the first of them that has a job, if any.
        shape: Of a join, the shape of its result.
    """

    number: int
    name: str | None = None
    sig: Sig[Any] | None = None
    job: Job[Any] | None = None
    takes: tuple[Taken, ...] = ()
    parents: int = 0
    parent: int | None = None
    shape: Shape | None = None

    @property
    def queue(self) -> str:
        """The queue of its job."""
        return self.sig.options.queue or self.sig.task.options.queue if self.sig else ""


@dataclass(frozen=True, slots=True)
class Plan:
    """Nodes and edges.

    Attributes:
        nodes: The nodes, by rising numbers.
        children: Which nodes follow a node; True for those that run after its failure too.
        ends: The nodes that nothing follows.
        shape: Where the result is found.
        result: A number without a node, under which the shape is kept.
        on_success: What runs at the end, if all went well.
        on_failure: What runs at the end otherwise.
    """

    nodes: tuple[Node, ...]
    children: dict[int, list[tuple[int, bool]]]
    ends: tuple[int, ...]
    shape: Shape
    result: int
    on_success: Node | None = None
    on_failure: Node | None = None

    @property
    def everything(self) -> tuple[Node, ...]:
        """All nodes, those that run at the end among them."""
        return (*self.nodes, *(node for node in (self.on_success, self.on_failure) if node))

    @property
    def first_ones(self) -> tuple[int, ...]:
        """The nodes that wait for no other."""
        return tuple(node.number for node in self.nodes if not node.parents)


class _After(NamedTuple):
    """What an expression comes after: the nodes that have to end, and those whose results it takes."""

    nodes: tuple[int, ...] = ()
    results: tuple[int, ...] = ()


@dataclass(slots=True)
class _Planner:
    headers: dict[str, str]
    first: int = 0
    nodes: list[Node] = field(default_factory=list)
    children: dict[int, list[tuple[int, bool]]] = field(default_factory=lambda: defaultdict(list))

    def place(
        self, what: Expression, after: _After, mode: OnFailure, name: str | None
    ) -> tuple[tuple[int, ...], Shape]:
        """Add the nodes of an expression; returns those that it ends with, and the shape of its result."""
        if isinstance(what, Sig):
            number = self.add(what, after, mode, name)
            return (number,), number
        if isinstance(what, Chain):
            return self._place_chain(what, after, mode)
        if isinstance(what, Group):
            placed = [self.place(member, after, mode, None) for member in what.members]
            ends = tuple(end for ends, _ in placed for end in ends)
            return (ends if placed else after.nodes), [shape for _, shape in placed]
        if isinstance(what, Workflow):
            return self._place_graph(what, after, mode)
        raise WorkflowDefinitionError("the whole", "a part", "an expression", repr(what))

    def _place_chain(self, what: Chain, after: _After, mode: OnFailure) -> tuple[tuple[int, ...], Shape]:
        ends, shape = self.place(what.steps[0], after, mode, None)
        for step in what.steps[1:]:
            ends, shape = self.place(step, self.joined(ends, shape), "cancel", None)
        return ends, shape

    def _place_graph(self, what: Workflow, after: _After, mode: OnFailure) -> tuple[tuple[int, ...], Shape]:
        points: dict[str, _After] = {}
        placed: dict[str, tuple[tuple[int, ...], Shape]] = {}
        followed = {name for step in what.steps for name in step.after}
        for step in what.steps:
            before, step_mode = after, mode
            if step.after:
                each = [points[name] for name in step.after]
                step_mode = step.on_failure
                before = _After(
                    tuple(dict.fromkeys(node for point in each for node in point.nodes)),
                    tuple(node for point in each for node in point.results),
                )
            ends, shape = placed[step.name] = self.place(step.expression, before, step_mode, step.name)
            if step.name in followed:
                points[step.name] = self.joined(ends, shape)
        last = {name: part for name, part in placed.items() if name not in followed}
        if not last:
            raise WorkflowDefinitionError("Workflow()", "nodes", "at least one", "none")
        return tuple(end for ends, _ in last.values() for end in ends), {
            name: shape for name, (_, shape) in last.items()
        }

    def joined(self, ends: tuple[int, ...], shape: Shape) -> _After:
        """Return what comes after some ends: a single node, or a join behind several."""
        if isinstance(shape, int):
            return _After(ends, (shape,))
        number = self._number()
        for end in ends:
            self.children[end].append((number, True))
        self.nodes.append(Node(number, shape=shape, parents=len(ends), parent=self._job_before(ends)))
        return _After((number,), (number,))

    def add(self, sig: Sig[Any], after: _After, mode: OnFailure, name: str | None) -> int:
        """Add the node of a signature."""
        number = self._number()
        runs_on = "continue" in (mode, sig.on_failure)
        for parent in after.nodes:
            self.children[parent].append((number, runs_on))
        self.nodes.append(self.node(number, sig, after, name))
        return number

    def node(self, number: int, sig: Sig[Any], after: _After, name: str | None) -> Node:
        """Return the node of a signature, its arguments bound and checked.

        Raises:
            InvalidArgumentsError: They do not fit the task.
            OptionError: It has a key of its own or is to be unique, or a limit goes by a result.
        """
        task, results = sig.task, () if sig.immutable else after.results
        arguments, takers = task.signature.bind_after(len(results), sig.args, sig.kwargs, task.injected)
        job = task.blueprint.node(self._options(sig), arguments, takers)
        takes = tuple(Taken(*pair) for pair in zip(takers, results, strict=True))
        return Node(number, name, sig, job, takes, len(after.nodes), self._job_before(after.nodes))

    def _options(self, sig: Sig[Any]) -> CallOptions:
        options, place = sig.options, f".set() of task {sig.task.name!r} in a workflow"
        if options.key is not None:
            raise OptionError(place, "key", options.key, "nothing, as a workflow names its jobs itself")
        for way in WAYS if options.controlled else ():
            if given := getattr(options, way):
                raise OptionError(place, way, given, "nothing, as each node of a workflow has a job of its own")
        if not self.headers:
            return options
        return replace(options, headers={**self.headers, **(options.headers or {})})

    def _job_before(self, nodes: Sequence[int]) -> int | None:
        if not nodes:
            return None
        first = self.nodes[nodes[0] - self.first] if nodes[0] >= self.first else None
        return first.parent if first is not None and first.sig is None else nodes[0]

    def _number(self) -> int:
        return self.first + len(self.nodes)


def compiled(expression: Expression, options: FlowOptions, *, first: int = 0) -> Plan:
    """Return the plan of an expression.

    Args:
        expression: What is to be run.
        options: What is said of it as a whole.
        first: The number of its first node.

    Raises:
        InvalidArgumentsError: Arguments do not fit a task.
        OptionError: A signature has an option that has no place in a workflow.
        WorkflowDefinitionError: Its parts do not fit together.
    """
    planner = _Planner(dict(options.headers), first)
    ends, shape = planner.place(expression, _After(), "cancel", None)
    numbers = count(first + len(planner.nodes))
    result = next(numbers)
    finals: list[Node | None] = []
    ways: tuple[tuple[Sig[Any] | None, int, Any], ...] = (
        (options.on_success, result, expression.returned),
        (options.on_failure, FAILURES, list[dict[str, str]]),
    )
    for sig, taken, returned in ways:
        if sig is not None:
            refuse_misfit("", [returned], sig)
        finals.append(planner.node(next(numbers), sig, _After((), (taken,)), None) if sig else None)
    # An empty group behind a node ends with that node, which may be followed by the group's neighbours all the same.
    last = tuple(dict.fromkeys(end for end in ends if not planner.children.get(end)))
    return Plan(tuple(planner.nodes), dict(planner.children), last, shape, result, *finals)
