"""Items: the signature of a task whose function gets a list of calls, and whose callers give one item each.

Where in the flow: beside ``signature``, whose place it takes for a task with ``batch=...``. To callers, workflows and
schedules the task has one parameter, of the type of the list's items, and one result; only the run knows of lists.

Invariants, each a test in ``tests/unit/test_items.py``:

* a call is checked against the type of the items, and its result decoded as that of the results;
* a function that takes no list, or takes something besides that no provider fills, is refused where it is defined.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from knapsaq.codec import copied
from knapsaq.errors import InvalidArgumentsError, TaskDefinitionError
from knapsaq.signature import INJECTED, Signature

Kind = inspect.Parameter
LISTS = (list, Sequence)


class ItemSignature(Signature):
    """What a caller gives and gets: one item, and the result in its place.

    Args:
        task: The task's name, for errors.
        function: The user's function.
        takes_context: Whether its first parameter is the context.

    Attributes:
        item: The name of the parameter that takes the list.

    Raises:
        TaskDefinitionError: The function takes or returns no list; an annotation that cannot be read yet is let pass.
    """

    def __init__(self, task: str, function: Callable[..., Any], *, takes_context: bool) -> None:
        super().__init__(task, function, takes_context=takes_context)
        first = next(iter(self.parameters.values()), None)
        if first is None or first.kind not in (Kind.POSITIONAL_ONLY, Kind.POSITIONAL_OR_KEYWORD):
            found = "it has no such parameter" if first is None else f"'{first}' is none that is given by position"
            raise _wrong_parameter(task, found)
        if first.default is not Kind.empty:
            raise _wrong_parameter(task, f"'{first}' has a default, and each call gives an item")
        self.item = first.name
        given, returned = self.annotation(self.item), self.annotation("return")
        taken, given_back = _item_of(given), _item_of(returned)
        if self.readable(self.item):
            if taken is None:
                raise _wrong_parameter(task, f"{self.item!r} is annotated {_shown(given)}")
            self._annotations[self.item] = taken[0]
            self.parameters[self.item] = first.replace(annotation=taken[0])
        if self.readable("return"):
            if given_back is None and returned is not Any:
                expected = "with batch=... a function returns a list with one result for each item, `-> list[...]`"
                raise TaskDefinitionError(task, f"{expected}; it is annotated {_shown(returned)}")
            self._annotations["return"] = Any if given_back is None else without_errors(given_back[0])

    def refuse_unfilled(self, provided: Iterable[str]) -> None:
        """Refuse further parameters that no provider is known to fill.

        Args:
            provided: The names of the task's own providers.

        Raises:
            TaskDefinitionError: Naming the parameter.
        """
        names = frozenset(provided)
        for name, parameter in self.parameters.items():
            is_filled = name in names or parameter.default is INJECTED
            if name == self.item and is_filled:
                raise _wrong_parameter(self._task, f"{name!r} takes the list, and a provider would fill it")
            if name != self.item and not is_filled:
                problem = f"{name!r} is one more parameter; one that a provider fills is marked `= INJECTED`"
                raise _wrong_parameter(self._task, problem)

    def verify(self, injected: frozenset[str]) -> None:
        """Refuse annotations against which nothing can be checked, and a provider under the list's own name.

        Raises:
            TaskDefinitionError: Naming the parameter and what to write instead.
        """
        super().verify(injected)
        if self.item in injected:
            raise _wrong_parameter(self._task, f"{self.item!r} takes the list, and a provider would fill it")

    def item_in(self, stored: Mapping[str, Any]) -> Any:
        """Return the item of one job as the annotated type; the function gets a copy.

        Raises:
            InvalidArgumentsError: What is stored does not fit the function as it is deployed here.
        """
        for name, value in stored.items():
            if name != self.item:
                raise InvalidArgumentsError(self._task, name, f"{self.item!r} alone", f"{type(value).__name__} too")
        if self.item not in stored:
            raise InvalidArgumentsError(self._task, self.item, self._expected(self.item), "nothing")
        return self._decode(self.item, self.item, copied(stored[self.item]))

    def unbind(self, stored: Mapping[str, Any], provided: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with which the function is called in the worker.

        Args:
            stored: Under the name of its parameter the list of the items, each as ``item_in`` gave it.
            provided: Injected values by parameter name.
        """
        return (stored[self.item],), dict(provided)


def without_errors(annotation: Any) -> Any:
    """Return the type of results as callers see it: of ``str | Exception | Snooze`` remains ``str``."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    kept = [kind for kind in kinds if not (isinstance(kind, type) and issubclass(kind, BaseException))]
    return Union[tuple(kept)] if kept else None  # noqa: UP007 - built at run time


def _item_of(annotation: Any) -> tuple[Any] | None:
    """Return the type of a list's items in a tuple, as it may be None; None where it is no list."""
    if annotation in LISTS:
        return (Any,)
    origin = get_origin(annotation)
    return (get_args(annotation)[0],) if origin in LISTS else None


def _wrong_parameter(task: str, found: str) -> TaskDefinitionError:
    expected = "with batch=... a function takes, beside the context, one list of items, such as `texts: list[str]`"
    return TaskDefinitionError(task, f"{expected}; {found}")


def _shown(annotation: Any) -> str:
    return inspect.formatannotation(annotation)
