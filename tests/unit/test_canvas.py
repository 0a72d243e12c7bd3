from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from knapsaq import (
    InvalidArgumentsError,
    NotConnectedError,
    OptionError,
    Registry,
    UnknownTaskError,
    Workflow,
    WorkflowDefinitionError,
    chain,
    chord,
    group,
    signature,
)
from knapsaq.canvas import Chain


class Tasks:
    """Tasks of all kinds of parameters."""

    def __init__(self, registry: Registry) -> None:
        @registry.task
        async def fetch(url: str) -> int:
            return len(url)

        @registry.task
        async def double(x: int, by: int = 2) -> int:
            return x * by

        @registry.task
        async def total(xs: list[int]) -> int:
            return sum(xs)

        @registry.task
        async def named(*, to: str = "", amount: int) -> None: ...

        @registry.task
        async def nothing() -> None: ...

        @registry.task
        async def several(*items: int) -> list[int]:
            return list(items)

        @registry.task
        async def when(moment: datetime) -> datetime:
            return moment

        self.fetch, self.double, self.total, self.named = fetch, double, total, named
        self.nothing, self.several, self.when = nothing, several, when


@pytest.fixture
def tasks(registry: Registry) -> Tasks:
    """The tasks."""
    return Tasks(registry)


class TestSignatures:
    def test_an_argument_that_no_parameter_has_is_refused_at_once(self, tasks: Tasks) -> None:
        """The mistake is shown where it is made, with what is right."""
        with pytest.raises(InvalidArgumentsError, match="'bye': expected one of x, by, given 3"):
            tasks.double.s(1, bye=3)

    def test_an_immutable_signature_is_checked_whole(self, tasks: Tasks) -> None:
        """Nothing will be added to it."""
        with pytest.raises(InvalidArgumentsError, match="'x': expected int, given nothing"):
            tasks.double.si()
        with pytest.raises(InvalidArgumentsError, match="'x': expected int"):
            tasks.double.si("two")

    def test_a_signature_by_name_is_the_one_of_the_task(self, registry: Registry, tasks: Tasks) -> None:
        """Celery's words: name, args, kwargs."""
        made = signature("double", args=(2,), kwargs={"by": 3}, registry=registry, queue="mail")
        assert (made.task, made.args, made.kwargs, made.options.queue) == (tasks.double, (2,), {"by": 3}, "mail")

    def test_a_name_that_is_not_known_is_refused(self, registry: Registry, tasks: Tasks) -> None:
        """With the nearest one."""
        with pytest.raises(UnknownTaskError, match="did you mean 'double'"):
            signature("duoble", registry=registry)

    def test_set_gives_back_another_signature(self, tasks: Tasks) -> None:
        """Signatures are values: who holds one sees no change."""
        plain = tasks.double.s(1)
        later = plain.set(countdown=60, on_failure="continue")
        assert (later.options.delay, later.on_failure) == (60, "continue")
        assert (plain.options.delay, plain.on_failure) == (None, "cancel")

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"countdwn": 3}, "'countdwn' is 3; expected one of the options"),
            ({"queue": "no such name!"}, "'queue'"),
            ({"on_failure": "ignore"}, "'on_failure' is 'ignore'; expected 'cancel' or 'continue'"),
            ({"countdown": -1}, "'delay' is -1"),
        ],
    )
    def test_a_wrong_option_is_refused(self, tasks: Tasks, options: dict[str, Any], said: str) -> None:
        """As everywhere, with what is right."""
        with pytest.raises(OptionError, match=said):
            tasks.double.s(1).set(**options)

    async def test_nothing_is_sent_without_a_connection(self, tasks: Tasks) -> None:
        """The error says how to open one."""
        with pytest.raises(NotConnectedError, match="connect"):
            await chain(tasks.fetch.s("a"), tasks.double.s()).enqueue()
        with pytest.raises(NotConnectedError):
            await tasks.fetch.s("a").enqueue()


class TestFits:
    """What one step returns and the next one takes."""

    @pytest.mark.parametrize(
        "made",
        [
            lambda t: t.fetch.s("a") | t.double.s(),
            lambda t: t.fetch.s("a") | t.double.s(3),
            lambda t: t.fetch.s("a") | t.named.s(to="you"),
            lambda t: t.fetch.s("a") | t.nothing.si(),
            lambda t: t.fetch.s("a") | t.several.s(1, 2),
            lambda t: t.when.s("2031-01-01T00:00:00Z") | t.when.s(),
            lambda t: t.when.s("2031-01-01T00:00:00Z") | t.fetch.s(),
            lambda t: group(t.fetch.s("a"), t.fetch.s("b")) | t.total.s(),
            lambda t: chord([], t.total.s()),
            lambda t: t.fetch.s("a") | group(t.double.s(), t.double.s(3)) | t.total.s(),
        ],
    )
    def test_steps_that_can_take_what_comes_are_accepted(self, tasks: Tasks, made: Callable[[Tasks], Any]) -> None:
        """By position, by name, as one of ``*args``, as a list; or not at all with ``.si()``."""
        assert isinstance(made(tasks), Chain)

    @pytest.mark.parametrize(
        ("made", "said"),
        [
            (
                lambda t: t.double.s(1) | t.fetch.s(),
                "step 'fetch', argument 'url' of task 'fetch': expected str, given",
            ),
            (lambda t: t.nothing.s() | t.double.s(), "given None"),
            (lambda t: t.fetch.s("a") | t.total.s(), "given int, the result of the step before"),
            (lambda t: group(t.fetch.s("a")) | t.double.s(), "expected int, given a list of int"),
            (lambda t: group(t.when.s(), t.nothing.s()) | t.total.s(), "given a list of datetime and None"),
            (lambda t: group(group(t.fetch.s("a"))) | t.total.s(), "given a list of a list of int"),
            (lambda t: t.double.s(1) | group(t.double.s(), t.fetch.s()), "argument 'url'"),
            (lambda t: t.double.s(1) | (t.fetch.s() | t.double.s()), "argument 'url'"),
            (lambda t: t.nothing.s() | chord([t.double.s()], t.total.s()), "argument 'x'"),
        ],
    )
    def test_types_that_plainly_disagree_are_refused_where_the_steps_meet(
        self, tasks: Tasks, made: Callable[[Tasks], Any], said: str
    ) -> None:
        """Step, parameter, expected and given are named, and nothing was queued."""
        with pytest.raises(WorkflowDefinitionError, match=said):
            made(tasks)

    @pytest.mark.parametrize(
        "made",
        [
            lambda t: t.fetch.s("a") | t.nothing.s(),
            lambda t: t.fetch.s("a") | t.named.s(to="you", amount=1),
            lambda t: Workflow().add("a", t.fetch.s("a")).add("b", t.total.s(), after=["a", "a"]),
        ],
    )
    def test_a_step_without_a_free_parameter_is_refused(self, tasks: Tasks, made: Callable[[Tasks], Any]) -> None:
        """And the error says how to ignore the result."""
        with pytest.raises(InvalidArgumentsError, match=r"or make the step with \.si"):
            made(tasks)


class TestExpressions:
    def test_chains_in_chains_are_one_chain(self, tasks: Tasks) -> None:
        """How they were put together makes no difference."""
        a, b, c = tasks.fetch.s("a"), tasks.double.s(), tasks.double.s(3)
        assert (a | (b | c)).steps == ((a | b) | c).steps == chain([a, b, c]).steps == (a, b, c)

    def test_a_group_takes_members_one_by_one_as_a_list_or_from_a_generator(self, tasks: Tasks) -> None:
        """As Celery's does."""
        a, b = tasks.fetch.s("a"), tasks.fetch.s("b")
        assert group(a, b).members == group([a, b]).members == group(one for one in (a, b)).members == (a, b)
        assert group().members == group([]).members == ()

    def test_map_and_chunks_make_groups(self, tasks: Tasks) -> None:
        """A call for each item, and a call for each so many."""
        assert [one.args for one in tasks.fetch.map("abc").signatures()] == [("a",), ("b",), ("c",)]
        assert [one.args for one in tasks.total.chunks(range(5), 2).signatures()] == [([0, 1],), ([2, 3],), ([4],)]
        assert tasks.total.chunks([], 2).members == ()

    @pytest.mark.parametrize("size", [0, -1, True, "2", 1.5])
    def test_a_wrong_size_of_chunks_is_refused(self, tasks: Tasks, size: Any) -> None:
        """A whole number from 1."""
        with pytest.raises(OptionError, match="'size'"):
            tasks.total.chunks([1], size)

    @pytest.mark.parametrize(
        ("made", "said"),
        [
            (lambda t: chain(), "at least one, given none"),
            (lambda t: chain([]), "at least one, given none"),
            (lambda t: chain(t.fetch), "a signature such as"),
            (lambda t: group([t.fetch.s("a"), 3]), r"given 3 \(int\)"),
            (lambda t: group("abc"), "given 'abc'"),
            (lambda t: group(7), "given 7"),
            (lambda t: t.fetch.s("a") | 5, "given 5"),
            (lambda t: Workflow().add("", t.fetch.s("a")), "text that no other node has"),
            (lambda t: Workflow().add("a", t.fetch.s("a")).add("a", t.fetch.s("b")), "text that no other node has"),
            (lambda t: Workflow().add("a", t.fetch.s("a"), after="b"), "expected one of no nodes, given 'b'"),
            (lambda t: Workflow().add("a", 3), "a signature such as"),
        ],
    )
    def test_what_is_no_expression_is_refused(self, tasks: Tasks, made: Callable[[Tasks], Any], said: str) -> None:
        """With what was given."""
        with pytest.raises(WorkflowDefinitionError, match=said):
            made(tasks)

    def test_a_wrong_mode_of_an_edge_is_refused(self, tasks: Tasks) -> None:
        """There are two."""
        with pytest.raises(OptionError, match="'cancel' or 'continue'"):
            Workflow().add("a", tasks.fetch.s("a"), on_failure="stop")  # type: ignore[arg-type]

    def test_add_gives_back_another_workflow(self, tasks: Tasks) -> None:
        """One can be the beginning of several."""
        first = Workflow().add("a", tasks.fetch.s("a"))
        first.add("b", tasks.double.s(), after="a")
        assert [step.name for step in first.steps] == ["a"]

    async def test_an_expression_without_a_task_cannot_be_sent(self) -> None:
        """There is nobody to send it."""
        with pytest.raises(WorkflowDefinitionError, match="at least one, given none"):
            await group([]).enqueue()
        with pytest.raises(WorkflowDefinitionError, match="at least one, given none"):
            await Workflow().enqueue()
