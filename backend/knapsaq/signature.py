"""Signature: a call's arguments, bound to the function's parameters and checked against its annotations.

Where in the flow: ``Task.enqueue`` binds a call here, and the arguments are encoded and checked before anything
is queued. In the worker the same ``Signature`` turns them back into the annotated types.

Invariants, each a test in ``tests/unit/test_codec.py`` or ``test_signature.py``:

* what ``bind`` accepts, ``unbind`` gives back equal and of the annotated type;
* what ``bind`` refuses names the parameter, what it expects and what it got;
* no value of a stored argument, nor one whose name looks secret, gets into an error;
* what a function does to its arguments leaves those of the job as they were stored;
* a parameter's name never collides with a field of SAQ's Job.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_type_hints

import msgspec

from knapsaq.codec import SECRET, copied, from_json_types, shown, to_json_types
from knapsaq.errors import InvalidArgumentsError, TaskDefinitionError
from knapsaq.limits import Limit, without_limits
from knapsaq.outcomes import without_signals

Kind = inspect.Parameter


class _InjectedType:
    """The default of a parameter that a provider fills; see ``INJECTED``."""

    def __repr__(self) -> str:
        return "INJECTED"


INJECTED: Any = _InjectedType()
"""Default of a parameter that a provider fills, so that a call without it is right for type checkers too."""


class _Unresolved:
    """Stands for an annotation that names something which does not exist at run time."""

    def __init__(self, error: Exception) -> None:
        remedy = "import it outside of `if TYPE_CHECKING:`" if isinstance(error, NameError) else "write it as a type"
        self.problem = f"{error}; {remedy}"


class _Shape:
    """The signature that callers see once the injected parameters are taken away."""

    def __init__(self, parameters: list[inspect.Parameter]) -> None:
        self.signature = inspect.Signature(parameters)
        self.plain = all(parameter.kind in _BY_NAME for parameter in parameters)
        self.names = frozenset(parameter.name for parameter in parameters)
        self.required = frozenset(parameter.name for parameter in parameters if parameter.default is Kind.empty)
        self._positional = tuple(p.name for p in parameters if p.kind is Kind.POSITIONAL_OR_KEYWORD)

    def arranged(self, values: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return values by name as positional and named arguments."""
        args: list[Any] = []
        for name in self._positional:
            if name not in values:
                break
            args.append(values.pop(name))
        return tuple(args), values


class Signature:
    """What a task's function takes and returns, resolved once.

    Args:
        task: The task's name, for errors.
        function: The user's function.
        takes_context: Whether its first parameter is the context.
    """

    def __init__(self, task: str, function: Callable[..., Any], *, takes_context: bool) -> None:
        self._task = task
        parameters = list(inspect.signature(function).parameters.values())[1 if takes_context else 0 :]
        self.parameters = {parameter.name: parameter for parameter in parameters}
        self.open_ended = any(parameter.kind is Kind.VAR_KEYWORD for parameter in parameters)
        self._annotations = {name: _resolve(function, name) for name in (*self.parameters, "return")}
        self._annotations["return"] = without_signals(self._annotations["return"])
        self.limits: dict[str, tuple[Limit, ...]] = {}
        for name in self.parameters:
            self._annotations[name], limits = without_limits(self._annotations[name])
            self.limits.update({name: limits} if limits else {})
        self._shapes: dict[frozenset[str], _Shape] = {}
        self._all = self._shape(frozenset())
        self.left_to_providers = self.injectable(())

    def injectable(self, provided: Iterable[str]) -> frozenset[str]:
        """Return the parameters that are filled by providers when the job runs."""
        names = frozenset(provided)
        return frozenset(
            name
            for name, parameter in self.parameters.items()
            if parameter.default is INJECTED or (name in names and parameter.kind in _BY_NAME)
        )

    def verify(self, injected: frozenset[str]) -> None:
        """Refuse annotations against which nothing can be checked.

        Raises:
            TaskDefinitionError: Naming the parameter and what to write instead.
        """
        for name, annotation in self._annotations.items():
            if name in injected:
                continue
            if isinstance(annotation, _Unresolved):
                raise TaskDefinitionError(
                    self._task, f"the annotation of {name!r} cannot be read: {annotation.problem}"
                )
            try:
                msgspec.inspect.type_info(annotation)
            except (TypeError, ValueError, RuntimeError) as error:
                problem = f"the annotation of {name!r} cannot be checked: {error}; use Any or a simpler type"
                raise TaskDefinitionError(self._task, problem) from error

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], injected: frozenset[str]) -> dict[str, Any]:
        """Return a call's arguments by parameter name, encoded for JSON and checked.

        ``*args`` are stored as a list under their parameter's name, ``**kwargs`` beside the others.

        Args:
            args: The positional arguments, without the context.
            kwargs: The arguments by name.
            injected: Parameters that a provider fills; they may not be given.

        Raises:
            InvalidArgumentsError: Naming the parameter, what it expects and what was given.
        """
        shape = self._shape(injected) if injected else self._all
        if not args and shape.plain and shape.required <= kwargs.keys() <= shape.names:
            return {name: self._encode(name, name, value) for name, value in kwargs.items()}
        for name in injected & kwargs.keys():
            raise InvalidArgumentsError(self._task, name, "nothing, as a provider fills it", _given(name, kwargs[name]))
        try:
            bound = shape.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise self._misfit(shape, args, kwargs, error) from None
        encoded: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if self.parameters[name].kind is Kind.VAR_KEYWORD:
                encoded.update((extra, self._encode(extra, name, item)) for extra, item in value.items())
            elif self.parameters[name].kind is Kind.VAR_POSITIONAL:
                encoded[name] = [self._encode(name, name, item) for item in value]
            else:
                encoded[name] = self._encode(name, name, value)
        return encoded

    def bind_after(
        self, taken: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], injected: frozenset[str]
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return a call's arguments as ``bind`` does, where so many results of other jobs come before them.

        Returns:
            The encoded arguments, and for each result its parameter; ``*args`` have their star before the name.

        Raises:
            InvalidArgumentsError: As ``bind``; or no parameter is left for a result.
        """
        takers = self.takers(taken, kwargs, injected)
        rest = {name for name in takers if not name.startswith("*")}
        return self.bind(args, kwargs, injected | rest if rest else injected), takers

    def takers(self, taken: int, kwargs: Mapping[str, Any], injected: frozenset[str]) -> tuple[str, ...]:
        """Return the parameters that results of other jobs go to: the first positional ones that no name is given for.

        Of a function without positional parameters these are the named ones, those without a default first.

        Raises:
            InvalidArgumentsError: There are too few.
        """
        free = [p for p in self._shape(injected).signature.parameters.values() if p.name not in kwargs]
        names = [p.name for p in free if p.kind in _BY_POSITION]
        variadic = [p.name for p in free if p.kind is Kind.VAR_POSITIONAL]
        if not names and not variadic:
            named = [p for p in free if p.kind is Kind.KEYWORD_ONLY]
            names = [p.name for p in sorted(named, key=lambda p: p.default is not Kind.empty)]
        names = names[:taken] + [f"*{name}" for name in variadic] * (taken - len(names[:taken]))
        if len(names) < taken:
            expected = "a parameter that is free for the result of the step before it; or make the step with .si(...)"
            raise InvalidArgumentsError(self._task, "*", expected, ", ".join(self.parameters) or "no parameters")
        return tuple(names)

    def annotation(self, name: str) -> Any:
        """Return the type of a parameter, with a star of each of ``*args``, or of the result: ``"return"``."""
        annotation = self._annotations.get(name.removeprefix("*"), Any)
        return Any if isinstance(annotation, _Unresolved) else annotation

    def readable(self, name: str) -> bool:
        """Tell whether the annotation of a parameter, or of the result, names what exists by now."""
        return not isinstance(self._annotations[name], _Unresolved)

    def result(self, stored: Any) -> Any:
        """Return a stored result as the annotated type.

        Raises:
            msgspec.ValidationError: It does not fit the annotation.
        """
        returns = self._annotations["return"]
        return stored if isinstance(returns, _Unresolved) else from_json_types(stored, returns)

    def _shape(self, injected: frozenset[str]) -> _Shape:
        shape = self._shapes.get(injected)
        if shape is None:
            shape = _Shape([p for p in self.parameters.values() if p.name not in injected])
            self._shapes[injected] = shape
        return shape

    def unbind(self, stored: Mapping[str, Any], provided: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and named arguments with which the function is called in the worker.

        Args:
            stored: What ``bind`` gave, after its way through JSON; or the kwargs of a job that SAQ itself queued. The
                function gets copies, as a retry writes this again.
            provided: Injected values by parameter name.

        Raises:
            InvalidArgumentsError: The stored arguments do not fit the function as it is deployed here.
        """
        values: dict[str, Any] = {}
        if self._all.plain and stored.keys() <= self._all.names:
            for name, item in stored.items():
                plain = _is_plain(item, self._annotations[name])
                values[name] = item if plain else self._decode(name, name, copied(item))
            values.update(provided)
            if self._all.required <= values.keys():
                return self._all.arranged(values)
        values = {}
        extra: dict[str, Any] = {}
        for name, item in copied(dict(stored)).items():
            parameter = self.parameters.get(name)
            if parameter is None or parameter.kind is Kind.VAR_KEYWORD:
                extra[name] = self._decode(name, self._extra_name(name), item)
            elif parameter.kind is Kind.VAR_POSITIONAL:
                values[name] = tuple(self._decode(name, name, one) for one in item)
            else:
                values[name] = self._decode(name, name, item)
        return self._call(values | dict(provided), extra)

    def typed(self, stored: Mapping[str, Any], names: Iterable[str] | None = None) -> dict[str, Any]:
        """Return arguments by name as the annotated types, and the default of each that is not stored and has one.

        Args:
            stored: What ``bind`` gave, or the kwargs of a job that SAQ itself queued.
            names: Those that are asked for; all unless given.

        Raises:
            InvalidArgumentsError: A stored one does not fit.
        """
        every = dict.fromkeys((*self.parameters, *stored)) if names is None else names
        return {name: value for name in every if (value := self._typed(name, stored)) is not Kind.empty}

    def _typed(self, name: str, stored: Mapping[str, Any]) -> Any:
        parameter = self.parameters.get(name)
        several = parameter is not None and parameter.kind is Kind.VAR_POSITIONAL
        if name not in stored:
            default = parameter.default if parameter else Kind.empty
            return () if several else Kind.empty if default is INJECTED else default
        item = stored[name]
        if several:
            return tuple(self._decode(name, name, one) for one in copied(item))
        known = parameter is not None and parameter.kind is not Kind.VAR_KEYWORD
        own = name if known else self._extra_name(name)
        return item if _is_plain(item, self._annotations[own]) else self._decode(name, own, copied(item))

    def _call(self, values: dict[str, Any], extra: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        positional = True
        for name, parameter in self.parameters.items():
            if parameter.kind is Kind.VAR_KEYWORD:
                continue
            given = name in values
            if not given and parameter.default is Kind.empty and parameter.kind is not Kind.VAR_POSITIONAL:
                raise InvalidArgumentsError(self._task, name, self._expected(name), "nothing")
            if parameter.kind is Kind.VAR_POSITIONAL:
                args.extend(values.get(name, ()))
            elif parameter.kind is Kind.KEYWORD_ONLY or not positional:
                kwargs.update({name: values[name]} if given else {})
            elif given:
                args.append(values[name])
            else:
                positional = False
        return tuple(args), kwargs | extra

    def _extra_name(self, name: str) -> str:
        for parameter in self.parameters.values():
            if parameter.kind is Kind.VAR_KEYWORD:
                return parameter.name
        raise InvalidArgumentsError(self._task, name, f"one of {', '.join(self.parameters) or 'no arguments'}", "it")

    def _encode(self, shown_name: str, name: str, value: Any) -> Any:
        if _is_plain(value, self._annotations[name]):
            return value
        try:
            encoded = to_json_types(value)
        except (TypeError, ValueError, RecursionError) as error:
            detail = "" if SECRET.search(shown_name) else f" ({error})"
            expected = f"{self._expected(name)}, made of what JSON can carry{detail}"
            raise InvalidArgumentsError(self._task, shown_name, expected, _given(shown_name, value)) from None
        self._decode(shown_name, name, encoded, value)
        return encoded

    def _decode(self, shown_name: str, name: str, encoded: Any, given: Any = Kind.empty) -> Any:
        annotation = self._annotations[name]
        if isinstance(annotation, _Unresolved):
            raise TaskDefinitionError(self._task, f"the annotation of {name!r} cannot be read: {annotation.problem}")
        try:
            return from_json_types(encoded, annotation)
        except (msgspec.ValidationError, TypeError, ValueError) as error:
            if given is Kind.empty or SECRET.search(shown_name):
                detail, value = _without_values(error), _kind(encoded if given is Kind.empty else given)
            else:
                detail, value = str(error), shown(given)
            expected = f"{self._expected(name)} ({detail})" if detail else self._expected(name)
            raise InvalidArgumentsError(self._task, shown_name, expected, value) from None

    def _expected(self, name: str) -> str:
        annotation = self._annotations[name]
        return "any value" if annotation is Any else inspect.formatannotation(annotation)

    def _misfit(
        self, shape: _Shape, args: tuple[Any, ...], kwargs: Mapping[str, Any], error: TypeError
    ) -> InvalidArgumentsError:
        """Return the error of a call that does not bind, with the parameter that is to blame."""
        legal = ", ".join(shape.signature.parameters) or "no arguments"
        for name, value in kwargs.items():
            if name not in shape.names and not self.open_ended:
                return InvalidArgumentsError(self._task, name, f"one of {legal}", _given(name, value))
        positional = [p.name for p in shape.signature.parameters.values() if p.kind in _BY_POSITION]
        given = {*positional[: len(args)], *kwargs}
        for name, parameter in shape.signature.parameters.items():
            if name not in given and parameter.default is Kind.empty and parameter.kind in _SINGLE:
                return InvalidArgumentsError(self._task, name, self._expected(name), "nothing")
        return InvalidArgumentsError(self._task, "*", f"{legal} ({error})", f"{len(args)} positional")


_BY_NAME = (Kind.POSITIONAL_OR_KEYWORD, Kind.KEYWORD_ONLY)
_BY_POSITION = (Kind.POSITIONAL_ONLY, Kind.POSITIONAL_OR_KEYWORD)
_SINGLE = (*_BY_POSITION, Kind.KEYWORD_ONLY)


def _is_plain(value: Any, annotation: Any) -> bool:
    """Tell a value that is of the annotated type and the same in JSON, as most are; nothing need be done to it."""
    kind = value.__class__
    if kind is not annotation:
        return False
    if kind is int:
        return bool(-_INT64 <= value < _INT64)
    return kind is bool or (kind is str and value.isascii())


_INT64 = 1 << 63


def _resolve(function: Callable[..., Any], name: str) -> Any:
    """Return one annotation, resolved by itself, so that a name missing at run time costs only its own parameter."""
    inner = inspect.unwrap(function)  # a decorator's module does not have the names of the function's
    annotation = inspect.get_annotations(inner).get(name, Any)
    holder = types.SimpleNamespace(__annotations__={name: annotation})
    try:
        return get_type_hints(holder, getattr(inner, "__globals__", {}), include_extras=True)[name]
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        return _Unresolved(error)


def _given(name: str, value: object) -> str:
    return _kind(value) if SECRET.search(name) else shown(value)


def _kind(value: object) -> str:
    return f"a value of type {type(value).__name__}"


_WITHOUT_VALUES = re.compile(
    r"(Expected `[^`]+`, got `[^`]+`|Object missing required field `[^`]+`)( - at `\$[^`]*`)?", re.DOTALL
)
_PLACE = re.compile(r"at `\$[^`]*`\Z")


def _without_values(error: Exception) -> str:
    """Return what an error tells without quoting the data: of msgspec's the kind and the place, else the place."""
    text = str(error)
    if isinstance(error, msgspec.ValidationError) and _WITHOUT_VALUES.fullmatch(text):
        return text
    place = _PLACE.search(text)
    return place[0] if place else ""
