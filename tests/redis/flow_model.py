"""A workflow as a few dicts in Python: what each end of a job has to do to it.

``test_flow_model.py`` compares it with the true one step by step. It is written from the promises: no counters, no
keys. A node that waits has no state; the others are q (queued or running), d (done), f (failed), a (aborted) and
c (cancelled).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from knapsaq.plan import Plan, Shape


@dataclass
class FlowModel:
    """One workflow; a join is a node with a shape."""

    children: dict[int, list[tuple[int, bool]]] = field(default_factory=dict)
    shapes: dict[int, Shape] = field(default_factory=dict)
    nodes: set[int] = field(default_factory=set)
    takes: dict[int, list[int]] = field(default_factory=dict)
    finals: dict[str, int] = field(default_factory=dict)
    states: dict[int, str] = field(default_factory=dict)
    results: dict[int, Any] = field(default_factory=dict)
    voided: set[tuple[int, int]] = field(default_factory=set)
    stopped: bool = False
    state: str | None = None

    @classmethod
    def of(cls, plan: Plan) -> FlowModel:
        """Return the model of a plan that has just been sent."""
        model = cls()
        for name, node in (("complete", plan.on_success), ("failed", plan.on_failure)):
            if node:
                model.finals[name] = node.number
                model.takes[node.number] = []
        model.add(plan)
        return model

    def add(self, plan: Plan, replaced: int | None = None) -> None:
        """Add nodes, perhaps in the place of one."""
        for node in plan.nodes:
            self.nodes.add(node.number)
            self.takes[node.number] = [taken.node for taken in node.takes]
            if node.shape is not None:
                self.shapes[node.number] = node.shape
        for number, children in plan.children.items():
            self.children[number] = list(children)
        if replaced is not None:
            self.voided |= {(parent, replaced) for parent in self.parents(replaced)}
            for end in plan.ends:
                self.children.setdefault(end, []).append((replaced, True))
            self.shapes[replaced] = plan.shape
            del self.states[replaced]
            if not plan.ends:
                self.close(replaced, "d")
        self._begin(plan.first_ones)

    def close(self, node: int, state: str, result: Any = None) -> None:
        """End a node, and everything that follows from that."""
        self._close(node, state, result)
        self.close_if_all_ended()

    def revoke(self) -> bool:
        """Let nothing follow any more; returns whether it had not ended."""
        self.stopped |= self.state is None
        return self.state is None

    def retry_failed(self) -> int:
        """Reset what has not succeeded, and begin it where nothing is missing; returns how many jobs those are."""
        again = {node for node, state in self.states.items() if state in "fac" and node in self.nodes}
        if not again:
            return 0
        self.stopped, self.state = False, None
        for node in (*again, *(final for final in self.finals.values() if self.states.get(final) != "q")):
            self.states.pop(node, None)
        self._begin(node for node in sorted(again) if all(self.states.get(one) == "d" for one in self.parents(node)))
        self.close_if_all_ended()
        return len(again - self.shapes.keys())

    def parents(self, node: int) -> list[int]:
        """Return the nodes that it follows."""
        edges = ((number, child) for number, children in self.children.items() for child, _ in children)
        return [number for number, child in edges if child == node and (number, child) not in self.voided]

    def value(self, shape: Shape) -> Any:
        """Return what a node, or a shape of nodes, has given; None for what has not succeeded."""
        if isinstance(shape, list):
            return [self.value(one) for one in shape]
        if isinstance(shape, dict):
            return {name: self.value(one) for name, one in shape.items()}
        return self.value(self.shapes[shape]) if shape in self.shapes else self.results.get(shape)

    def _begin(self, nodes: Iterable[int]) -> None:
        for node in nodes:
            if node in self.shapes:
                self._close(node, "d")
            else:
                self.states[node] = "q"

    def _close(self, node: int, state: str, result: Any = None) -> None:
        self.states[node] = state
        if state == "d" and node not in self.shapes:
            self.results[node] = result
        for child, runs_on in self.children.get(node, ()):
            if child in self.states or (node, child) in self.voided:
                continue
            parents = [self.states.get(parent, "q") for parent in self.parents(child)]
            if child in self.shapes:
                if "q" not in parents:
                    self._close(child, "d" if set(parents) == {"d"} else "c")
            elif self.stopped or (state != "d" and not runs_on):
                self._close(child, "c")
            elif "q" not in parents:
                self.states[child] = "q"

    def close_if_all_ended(self) -> None:
        """Note how it has ended once it has, and run what is to run then."""
        if self.state is None and all(self.states.get(node, "q") != "q" for node in self.nodes):
            bad = any(self.states[node] != "d" for node in self.nodes if not self.children.get(node))
            self.state = ("aborted" if self.stopped else "failed") if bad else "complete"
            final = self.finals.get(self.state)
            if final is not None:
                self.states[final] = "q"
