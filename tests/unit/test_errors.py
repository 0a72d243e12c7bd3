from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Iterator

import pytest

import knapsaq
from knapsaq import errors
from knapsaq.errors import KnapsaqError, UnknownTaskError, nearest
from knapsaq.workflow_errors import NodeFailure, WorkflowFailedError

ARGUMENTS: dict[str, object] = {
    "str": "text",
    "object": ["given"],
    "int": 3,
    "bool": True,
    "float": 1.5,
    "tuple[str, ...]": ("a", "b"),
    "tuple[NodeFailure, ...]": (NodeFailure("a#1", "a", "ValueError: bad"),),
}


def tree(root: type[KnapsaqError] = KnapsaqError) -> Iterator[type[KnapsaqError]]:
    yield root
    for kind in root.__subclasses__():
        if kind.__module__.startswith("knapsaq."):
            yield from tree(kind)


KINDS = sorted(set(tree()), key=lambda kind: kind.__name__)


def made(kind: type[KnapsaqError]) -> KnapsaqError:
    """Make an error with an argument for each of its parameters."""
    if "__init__" not in {name for base in kind.__mro__ if base in KINDS for name in vars(base)}:
        return kind("what was wrong")
    parameters = list(inspect.signature(kind).parameters.values())
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)
    return kind(*(ARGUMENTS[parameter.annotation] for parameter in parameters))


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_keeps_its_facts_on_its_way_to_another_process(kind: type[KnapsaqError]) -> None:
    """Errors are raised in workers and shown elsewhere."""
    error = made(kind)
    arrived = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(arrived) is kind
    assert vars(arrived) == vars(error)
    assert arrived.args == error.args
    assert str(arrived) == str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_has_every_argument_as_an_attribute(kind: type[KnapsaqError]) -> None:
    """Programs read facts, not texts."""
    error = made(kind)
    if vars(error):
        assert list(vars(error)) == list(inspect.signature(kind).parameters)
        assert tuple(vars(error).values()) == error.args


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_public_and_described(kind: type[KnapsaqError]) -> None:
    """What can be raised can be caught with ``from knapsaq import ...``."""
    assert getattr(knapsaq, kind.__name__) is kind
    assert kind.__name__ in knapsaq.__all__
    assert kind.__doc__


def test_the_tree_at_the_head_of_the_module_is_the_tree() -> None:
    """The documentation names each error under the one that it is a kind of."""
    assert errors.__doc__
    drawn: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        if found := re.match(r"([ │├└─]+)(\w+(?:Error|Exceeded))\b", line):
            depth, name = len(found[1]), found[2]
            path = [step for step in path if step[0] < depth]
            drawn[name] = path[-1][1] if path else "Exception"
            path.append((depth, name))
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in KINDS}


class TestNearest:
    def test_a_close_name_is_proposed_and_the_others_are_listed(self) -> None:
        """One look is enough for a typing error."""
        assert nearest("mial", ["mail", "push"]) == "did you mean 'mail'? Known: mail, push"
        assert nearest("zzz", ["mail", "push"]) == "known: mail, push"
        assert nearest("zzz", []) == "none is known"

    def test_a_long_list_is_cut(self) -> None:
        """A program with a thousand tasks does not fill the screen with them."""
        text = str(UnknownTaskError("zzz", tuple(f"task{number:03}" for number in range(1000))))
        assert "task009 and 990 more" in text
        assert "task010" not in text


def test_a_failed_workflow_names_its_first_failures() -> None:
    """Ten of them, each with its node, its task and its last line; the others are in ``failures``."""
    failures = [NodeFailure(f"add#{number}", "add", f"Traceback\nValueError: {number}\n") for number in range(12)]
    error = WorkflowFailedError.of("default:abc", failures)
    assert str(error).startswith(
        "workflow default:abc failed: add#0 (add): ValueError: 0; add#1 (add): ValueError: 1; "
    )
    assert str(error).endswith("add#9 (add): ValueError: 9; and 2 more")
    assert error.failures == tuple(failures)
