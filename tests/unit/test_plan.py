from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsaq import InvalidArgumentsError, OptionError, Registry, Workflow, WorkflowDefinitionError, chain, chord, group
from knapsaq.canvas import Expression, FlowOptions
from knapsaq.plan import FAILURES, Plan, compiled

registry = Registry()


@registry.task
async def one(given: Any = None, own: int = 0) -> Any: ...


@registry.task
async def two(first: int, second: list[Any], *rest: Any, name: str = "") -> None: ...


def plan_of(expression: Expression, **options: Any) -> Plan:
    return compiled(expression, FlowOptions(**options))


def sketch(plan: Plan) -> list[str]:
    """A line a node: its number, a j for a join, its children, and what it takes."""
    return [
        f"{node.number}{'' if node.sig else 'j'}"
        f" -> {','.join(str(child) for child, _ in plan.children.get(node.number, ()))}"
        f" <- {','.join(str(taken.node) for taken in node.takes)}"
        for node in plan.nodes
    ]


class TestShapes:
    @pytest.mark.parametrize(
        ("expression", "lines", "shape"),
        [
            (chain(one.s()), ["0 ->  <- "], 0),
            (one.s() | one.s() | one.si(), ["0 -> 1 <- ", "1 -> 2 <- 0", "2 ->  <- "], 2),
            (group(one.s(), one.s()), ["0 ->  <- ", "1 ->  <- "], [0, 1]),
            (
                chord([one.s(), one.s()], one.s()),
                ["0 -> 2 <- ", "1 -> 2 <- ", "2j -> 3 <- ", "3 ->  <- 2"],
                3,
            ),
            (
                group(one.s(), one.s()) | group(one.s(), one.s()),
                ["0 -> 2 <- ", "1 -> 2 <- ", "2j -> 3,4 <- ", "3 ->  <- 2", "4 ->  <- 2"],
                [3, 4],
            ),
            (
                one.s() | chord([one.s(), one.s()], one.s()) | one.s(),
                ["0 -> 1,2 <- ", "1 -> 3 <- 0", "2 -> 3 <- 0", "3j -> 4 <- ", "4 -> 5 <- 3", "5 ->  <- 4"],
                5,
            ),
            (group(group(one.s()), one.s() | one.s()), ["0 ->  <- ", "1 -> 2 <- ", "2 ->  <- 1"], [[0], 2]),
            (chord([], one.s()), ["0j -> 1 <- ", "1 ->  <- 0"], 1),
            (one.s() | group([]) | one.s(), ["0 -> 1 <- ", "1j -> 2 <- ", "2 ->  <- 1"], 2),
            (group(group([]), one.s()), ["0 ->  <- "], [[], 0]),
        ],
    )
    def test_each_expression_has_its_nodes_and_edges(
        self, expression: Expression, lines: list[str], shape: object
    ) -> None:
        """A join stands behind a group that something follows; an empty group passes on who came before."""
        plan = plan_of(expression)
        assert sketch(plan) == lines
        assert plan.shape == shape

    def test_a_graph_has_the_edges_that_it_names(self) -> None:
        """Each of ``after`` gives an argument of its own; the result names the nodes that nothing follows."""
        graph = (
            Workflow()
            .add("a", one.s())
            .add("b", group(one.s(), one.s()))
            .add("c", two.s("x", name="n"), after=["a", "b"], on_failure="continue")
            .add("d", one.s(), after="a")
        )
        plan = plan_of(graph)
        assert sketch(plan) == ["0 -> 4,5 <- ", "1 -> 3 <- ", "2 -> 3 <- ", "3j -> 4 <- ", "4 ->  <- 0,3", "5 ->  <- 0"]
        assert plan.shape == {"c": 4, "d": 5}
        assert [node.name for node in plan.nodes] == ["a", None, None, None, "c", "d"]
        assert plan.children[0] == [(4, True), (5, False)]
        assert [taken.parameter for taken in plan.nodes[4].takes] == ["first", "second"]
        assert plan.nodes[4].job is not None
        assert plan.nodes[4].job.kwargs == {"rest": ["x"], "name": "n"}

    def test_what_runs_at_the_end_takes_the_result_or_the_failures(self) -> None:
        """They are nodes like the others, which nobody waits for."""
        plan = plan_of(group(one.s(), one.s()), on_success=one.s(), on_failure=one.s())
        assert plan.on_success is not None
        assert plan.on_failure is not None
        assert [taken.node for taken in plan.on_success.takes] == [plan.result]
        assert [taken.node for taken in plan.on_failure.takes] == [FAILURES]
        assert len({node.number for node in plan.everything} | {plan.result}) == 5

    def test_what_runs_at_the_end_has_to_fit(self) -> None:
        """The list of failures, or the result."""

        async def takes_number(number: int) -> int:
            return number

        number = Registry().task(takes_number)
        assert plan_of(chain(number.s(1)), on_success=number.s(), on_failure=number.si(1)).on_success
        with pytest.raises(WorkflowDefinitionError, match="expected int, given a list of int"):
            plan_of(group(number.s(1)), on_success=number.s())
        with pytest.raises(WorkflowDefinitionError, match="expected int, given list"):
            plan_of(chain(number.s(1)), on_failure=number.s())

    def test_headers_of_the_whole_go_to_each_node_and_those_of_a_signature_win(self) -> None:
        """The nearer word counts."""
        plan = plan_of(one.s() | one.s().set(headers={"a": "mine"}), headers={"a": "1", "b": "2"})
        assert [dict(node.job.headers) for node in plan.nodes if node.job] == [
            {"a": "1", "b": "2"},
            {"a": "mine", "b": "2"},
        ]

    @pytest.mark.parametrize(
        ("expression", "error"),
        [
            (lambda: chain(two.s(1)), InvalidArgumentsError),
            (lambda: chain(two.s("no", [])), InvalidArgumentsError),
            (lambda: group(one.s(own="no")), InvalidArgumentsError),
            (lambda: chain(one.s().set(key="mine")), OptionError),
        ],
    )
    def test_wrong_arguments_of_any_node_are_refused(
        self, expression: Callable[[], Expression], error: type[Exception]
    ) -> None:
        """Before anything is sent."""
        with pytest.raises(error):
            plan_of(expression())


expressions = st.recursive(
    st.sampled_from([one.s(), one.si(), one.s(own=1)]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(chain),
        st.lists(inner, max_size=3).map(group),
    ),
    max_leaves=12,
)


def leaves(shape: Any) -> Iterator[int]:
    if isinstance(shape, int):
        yield shape
    else:
        for part in shape:
            yield from leaves(part)


def test_an_empty_group_beside_others_ends_where_they_do() -> None:
    """The node before it is followed by them, and the workflow has not ended with it."""
    plan = plan_of(chain(one.s(own=1), group([chain(one.s()), group([])])))
    assert plan.ends == (1,)


@given(expressions)
def test_a_plan_of_any_expression_can_be_run(expression: Expression) -> None:
    """Each signature is one node; nodes follow lower ones; counts of parents are right; and the result is at an end."""
    plan = plan_of(chain(expression))
    assert sum(node.sig is not None for node in plan.nodes) == len(list(expression.signatures()))
    parents = dict.fromkeys(range(len(plan.nodes)), 0)
    for number, children in plan.children.items():
        for child, _ in children:
            assert number < child
            parents[child] += 1
    assert [node.parents for node in plan.nodes] == list(parents.values())
    assert [node.number for node in plan.nodes] == list(parents)
    without_children = {node.number for node in plan.nodes if not plan.children.get(node.number)}
    assert set(leaves(plan.shape)) <= without_children
    assert set(plan.ends) <= without_children
    for node in plan.nodes:
        assert all(taken.node < node.number for taken in node.takes)
