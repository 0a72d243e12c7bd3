"""Decorators: the types of ``@task``, and what it does with its options before a registry makes the task.

Where in the flow: as a module with tasks is imported. A registry hands out such decorators; a preset is one more, with
options of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, Unpack, overload

from saq.types import Context as SaqContext

from knapsaq.batch import Batch
from knapsaq.context import Context
from knapsaq.options import TaskKeywords, merged, preset
from knapsaq.task import Task

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)
F = TypeVar("F", bound=Callable[..., Any])
X = TypeVar("X")
X_contra = TypeVar("X_contra", contravariant=True)
K = TypeVar("K", Context, SaqContext)


class NoTask(Protocol):
    """Anything but a task, whose type says that it has not what every object has."""

    def __sizeof__(self) -> int:
        """Return its size."""


class TakesNone(NoTask, Protocol[P, R_co]):
    """A function without a context."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run it."""


class TakesCtx(NoTask, Protocol[X_contra, P, R_co]):
    """A function whose first parameter is the context, by its name."""

    def __call__(self, ctx: X_contra, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run it."""


class TakesContext(NoTask, Protocol[X_contra, P, R_co]):
    """Likewise, by its other name and its annotation."""

    def __call__(self, context: X_contra, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run it."""


class LeavesCtx(NoTask, Protocol[X_contra, P, R_co]):
    """Likewise, for a function that does not look at it."""

    def __call__(self, _ctx: X_contra, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run it."""


class Decorator(Protocol):
    """``@task``: with or without options. The type of the task follows from the function's; a task keeps its own.

    Type checkers know the context under the names ``ctx``, ``_ctx`` and ``context``. Protocols with its name, and not
    ``Concatenate``, so that all overloads that fit infer the same function type: else mypy takes every function whose
    annotations hold an ``Any``, such as ``dict[str, Any]``, for ambiguous and gives up on its task's type.
    """

    @overload
    def __call__(self, function: Task[P, R, F], /) -> Task[P, R, F]: ...
    @overload
    def __call__(
        self, function: TakesCtx[X, P, Coroutine[Any, Any, R]], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], Coroutine[Any, Any, R]]]: ...
    @overload
    def __call__(
        self, function: TakesCtx[X, P, R], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], R]]: ...
    @overload
    def __call__(
        self, function: LeavesCtx[K, P, Coroutine[Any, Any, R]], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], Coroutine[Any, Any, R]]]: ...
    @overload
    def __call__(
        self, function: LeavesCtx[K, P, R], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], R]]: ...
    @overload
    def __call__(
        self, function: TakesContext[K, P, Coroutine[Any, Any, R]], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], Coroutine[Any, Any, R]]]: ...
    @overload
    def __call__(
        self, function: TakesContext[K, P, R], /
    ) -> Task[P, R, Callable[Concatenate[Mapping[str, Any], P], R]]: ...
    @overload
    def __call__(
        self, function: TakesNone[P, Coroutine[Any, Any, R]], /
    ) -> Task[P, R, Callable[P, Coroutine[Any, Any, R]]]: ...
    @overload
    def __call__(self, function: TakesNone[P, R], /) -> Task[P, R, Callable[P, R]]: ...
    @overload
    def __call__(self, /, **options: Unpack[TaskKeywords]) -> Decorator: ...
    @overload
    def __call__(self, /, *, batch: Batch, **options: Unpack[TaskKeywords]) -> BatchDecorator: ...

    def preset(self, **options: Unpack[TaskKeywords]) -> Decorator:
        """Return a decorator like this one with other defaults; presets are made of presets, too.

        An option of the task wins over the preset's. ``middleware`` is added inside of the preset's, ``dependencies``
        are added by name, everything else replaces. None is as if not given.

        Raises:
            OptionError: An option is unknown or out of range, or is ``name`` or ``batch``.
        """


class BatchDecorator(Protocol):
    """``@task(batch=...)``: the function takes a list and returns one, callers give an item and get a result.

    An exception that may stand in a result's place is no part of the result's type; so a call in place, whose list may
    hold such, gives a list of ``Any``.
    """

    @overload
    def __call__(
        self, function: TakesCtx[X, Concatenate[list[T], P], Coroutine[Any, Any, Sequence[R | BaseException]]], /
    ) -> Task[[T], R, Callable[Concatenate[Mapping[str, Any], list[T], P], Coroutine[Any, Any, list[Any]]]]: ...
    @overload
    def __call__(
        self, function: TakesCtx[X, Concatenate[list[T], P], Sequence[R | BaseException]], /
    ) -> Task[[T], R, Callable[Concatenate[Mapping[str, Any], list[T], P], list[Any]]]: ...
    @overload
    def __call__(
        self, function: LeavesCtx[K, Concatenate[list[T], P], Coroutine[Any, Any, Sequence[R | BaseException]]], /
    ) -> Task[[T], R, Callable[Concatenate[Mapping[str, Any], list[T], P], Coroutine[Any, Any, list[Any]]]]: ...
    @overload
    def __call__(
        self, function: LeavesCtx[K, Concatenate[list[T], P], Sequence[R | BaseException]], /
    ) -> Task[[T], R, Callable[Concatenate[Mapping[str, Any], list[T], P], list[Any]]]: ...
    @overload
    def __call__(
        self, function: TakesContext[K, Concatenate[list[T], P], Coroutine[Any, Any, Sequence[R | BaseException]]], /
    ) -> Task[[T], R, Callable[Concatenate[Mapping[str, Any], list[T], P], Coroutine[Any, Any, list[Any]]]]: ...
    @overload
    def __call__(
        self, function: TakesContext[K, Concatenate[list[T], P], Sequence[R | BaseException]], /
    ) -> Task[[T], R, Callable[Concatenate[Mapping[str, Any], list[T], P], list[Any]]]: ...
    @overload
    def __call__(
        self, function: TakesNone[Concatenate[list[T], P], Coroutine[Any, Any, Sequence[R | BaseException]]], /
    ) -> Task[[T], R, Callable[Concatenate[list[T], P], Coroutine[Any, Any, list[Any]]]]: ...
    @overload
    def __call__(
        self, function: TakesNone[Concatenate[list[T], P], Sequence[R | BaseException]], /
    ) -> Task[[T], R, Callable[Concatenate[list[T], P], list[Any]]]: ...


class TaskDecorator:
    """What ``Decorator`` describes.

    Args:
        define: Makes a task of a function and options, and registers it.
        defaults: Options of a preset, checked.
    """

    def __init__(
        self, define: Callable[[Any, Mapping[str, Any]], Task[..., Any, Any]], defaults: Mapping[str, Any]
    ) -> None:
        self._define, self._defaults = define, defaults

    def __call__(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Make a task of a function; without one, return what does so with these options."""
        options = merged(self._defaults, options)
        if function is None:
            return lambda decorated: self._define(decorated, options)
        return self._define(function, options)

    def preset(self, **options: Any) -> TaskDecorator:
        """Return a decorator like this one with other defaults."""
        return TaskDecorator(self._define, preset("task.preset()", self._defaults, options))
