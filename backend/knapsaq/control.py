"""Control: what the options on priority, limits and uniqueness come to for one job.

Where in the flow: a task builds its ``Controls`` with its first job, and each job carries what they give for its
arguments as ``meta["knapsaq"]["control"]``; the scripts that accept, claim and settle jobs obey that and know no task.
A task without such options has no ``Controls``, and its jobs no entry.

Invariants, each a test in ``tests/unit/test_control.py``:

* two calls with the same arguments have one identity, however and wherever they are written;
* two limits of a task have two names, and a job's key gets into none unless it is short and plain;
* what a key cannot be made of is refused before anything is queued.
"""

from __future__ import annotations

import base64
import hashlib
import inspect
import math
import re
import types
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from knapsaq.codec import SECRET, canonical, to_json_types
from knapsaq.errors import OptionError, closest
from knapsaq.job import CONTROL, Job
from knapsaq.limits import Concurrency, Key, Limit, Rate, Way, refuse_moment
from knapsaq.options import CallOptions, TaskOptions
from knapsaq.signature import INJECTED, Signature
from knapsaq.timing import now_ms

Kind = inspect.Parameter
PLAIN = re.compile(r"[!-~]{1,100}")
KEY = "text, a number, a UUID, a date or an Enum, or None for no key"


class _Named(NamedTuple):
    """A limit, and what the names begin with under which Redis keeps its state."""

    option: str
    stem: str
    limit: Limit


class Controls:
    """The options of a task, or of one call of it, that its jobs carry.

    Args:
        task: The task's name.
        signature: Its parameters.
        own: Its options.
        call: Those of the call, which win.

    Raises:
        OptionError: One names a parameter that there is not.
    """

    def __init__(self, task: str, signature: Signature, own: TaskOptions, call: CallOptions) -> None:
        refuse_unknown(f"task {task!r}", own, signature.parameters)
        refuse_unknown(f"a call of task {task!r}", call, signature.parameters)
        self._task, self._signature = task, signature
        annotated = tuple(_annotated(task, signature))
        rates = (*own.rate_limit, *(limit for limit in annotated if isinstance(limit, Rate)))
        slots = (*own.concurrency, *(limit for limit in annotated if isinstance(limit, Concurrency)))
        self._rates = tuple(_named(task, "rate_limit", rates if call.rate_limit is None else call.rate_limit))
        self._slots = tuple(_named(task, "concurrency", slots if call.concurrency is None else call.concurrency))
        self._priority = own.priority if call.priority is None else call.priority
        self._fair = own.fair_key if call.fair_key is None else call.fair_key
        self._way = _way(own, call)

    def __bool__(self) -> bool:
        return bool(self._rates or self._slots or self._priority or self._fair or self._way)

    @property
    def parameters(self) -> frozenset[str]:
        """The parameters that it goes by, by name."""
        keys: list[Any] = [self._fair, *(named.limit.key for named in (*self._rates, *self._slots))]
        by = self._way.by if self._way else None
        return frozenset({key for key in keys if isinstance(key, str)}.union(by or ()))

    def apply(self, job: Job[Any], options: CallOptions, arguments: Mapping[str, Any]) -> None:
        """Give a job what it carries.

        Args:
            job: The job, with the options of its call.
            options: Those options.
            arguments: Its arguments as they are stored.

        Raises:
            OptionError: A key cannot be made of them; or the job is debounced, and the call says when it runs.
        """
        if self._way:
            self._time(job, options, self._way)
        if entry := self.entry(arguments, key=options.key):
            job.note(**{CONTROL: entry})

    def entry(
        self,
        arguments: Mapping[str, Any],
        *,
        key: str | None = None,
        unique: bool = True,
        unknown: Collection[str] = (),
    ) -> dict[str, Any]:
        """Return what a job with these arguments carries; the shape is described in ``docs/design.md``.

        Args:
            arguments: The arguments as they are stored.
            key: What stands for them where the job is unique.
            unique: Whether it can be.
            unknown: Parameters that results of other jobs will be given to.

        Raises:
            OptionError: A key cannot be made of them.
        """
        entry: dict[str, Any] = {}
        if self._priority:
            entry["priority"] = self._priority
        if self._fair and self._fair not in unknown:
            fair = self._text("fair_key", self._fair, self._fair, arguments)
            entry |= {} if fair is None else {"fair": fair}
        rates = [[name, *_numbers(limit)] for name, limit in self._names(self._rates, arguments, unknown)]
        slots = [[name, *_numbers(limit)] for name, limit in self._names(self._slots, arguments, unknown)]
        entry |= {name: limits for name, limits in (("rates", rates), ("slots", slots)) if limits}
        if self._way and unique:
            identity = self._identity(self._way, arguments) if key is None else f"{self._task}/key={key}"
            entry["unique"] = [identity, self._way.until, self._way.clash]
        return entry

    def _time(self, job: Job[Any], options: CallOptions, way: Way) -> None:
        """Set when a debounced job is due, and how long one is kept that is unique for some time."""
        fields = vars(job)
        if way.delay:
            refuse_moment(f"a call of task {self._task!r}", {"delay": options.delay, "eta": options.eta})
            job.delay, fields["scheduled"] = way.delay, now_ms() / 1000 + way.delay
        if isinstance(way.until, int):
            kept = math.ceil(way.until / 1000)
            if fields["ttl"] is None:
                job.keep = kept
            elif fields["ttl"]:
                fields["ttl"] = max(kept, fields["ttl"])

    def _names(
        self, limits: Iterable[_Named], arguments: Mapping[str, Any], unknown: Collection[str]
    ) -> Iterator[tuple[str, Limit]]:
        for option, stem, limit in limits:
            if limit.key is None:
                yield stem, limit
                continue
            if limit.key in unknown:
                expected = f"a key that is known beforehand; {limit.key!r} is given the result of another job"
                raise OptionError(f"task {self._task!r} in a workflow", option, limit, expected)
            text = self._text(option, limit.key, limit, arguments)
            if text is not None:
                yield f"{stem}={text}", limit

    def _text(self, option: str, key: Key, given: object, arguments: Mapping[str, Any]) -> str | None:
        """Return the text of a key; None for no key."""
        place = f"a call of task {self._task!r}"
        if isinstance(key, str):
            read = [key]
            value = self._signature.typed(arguments, (key,)).get(key)
        else:
            read = [_label(key), *arguments]  # nobody can tell which of them it looks at
            values = MappingProxyType(self._signature.typed(arguments))
            try:
                value = key(values)
            except Exception as error:
                expected = f"a key whose function returns {KEY}; it raised {type(error).__name__}"
                raise OptionError(place, option, given, expected) from error
        try:
            return key_text(value, hidden=any(map(SECRET.search, read)))
        except (TypeError, ValueError) as error:
            expected = f"a key that is {KEY}, not of type {type(value).__name__}"
            raise OptionError(place, option, given, expected) from error

    def _identity(self, way: Way, arguments: Mapping[str, Any]) -> str:
        return f"{self._task}/{_digest(canonical(self._signature.typed(arguments, way.by)))}"


def key_text(value: object, *, hidden: bool = False) -> str | None:
    """Return a key as text of 1 to 100 visible ASCII characters; other text becomes 22 characters of its digest.

    Args:
        value: The key; None is none.
        hidden: Whether it does so in any case.

    Raises:
        TypeError: It is of another kind.
        ValueError: JSON cannot carry it.
    """
    plain = to_json_types(value)
    if plain is None:
        return None
    if isinstance(plain, bool):
        plain = "true" if plain else "false"
    elif isinstance(plain, (int, float)):
        plain = str(plain)
    if not isinstance(plain, str):
        raise TypeError(value)
    return plain if not hidden and PLAIN.fullmatch(plain) else _digest(plain.encode())


def refuse_unknown(place: str, options: TaskOptions | CallOptions, parameters: Mapping[str, inspect.Parameter]) -> None:
    """Refuse keys that are no parameters.

    Raises:
        OptionError: With the legal ones.
    """
    several = {name for name, one in parameters.items() if one.kind is Kind.VAR_POSITIONAL}
    for option, given, names in _named_in(options):
        legal = {
            name: None
            for name, one in parameters.items()
            if one.kind is not Kind.VAR_KEYWORD and one.default is not INJECTED
        }
        if option not in ("unique", "debounce", "throttle"):
            legal = {name: None for name in legal if name not in several}
        for name in names:
            if name not in legal and not any(one.kind is Kind.VAR_KEYWORD for one in parameters.values()):
                close = closest(name, legal)
                hint = f" (did you mean {close!r}?)" if close else ""
                expected = (
                    f"one of the parameters {', '.join(legal)}{hint}" if legal else "none, as it has none to give"
                )
                raise OptionError(place, option, given, f"to go by {expected}, not {name!r}")


def _named_in(options: TaskOptions | CallOptions) -> Iterator[tuple[str, object, tuple[str, ...]]]:
    """Yield for each option what was given, and the parameters that it names."""
    for option, limits in (("rate_limit", options.rate_limit), ("concurrency", options.concurrency)):
        for limit in limits or ():
            yield option, limit, (limit.key,) if isinstance(limit.key, str) else ()
    for option, way in (("unique", options.unique), ("debounce", options.debounce), ("throttle", options.throttle)):
        if way:
            yield option, way, way.way.by or ()
    if isinstance(options.fair_key, str):
        yield "fair_key", options.fair_key, (options.fair_key,)


def _annotated(task: str, signature: Signature) -> Iterator[Limit]:
    """Yield the limits in the annotations of parameters, each with its parameter as its key."""
    for name, parameter in signature.parameters.items():
        place, limits = f"parameter {name!r} of task {task!r}", signature.limits.get(name, ())
        annotation = signature.annotation(name)
        if _buries_limits(annotation) or (limits and parameter.kind in (Kind.VAR_POSITIONAL, Kind.VAR_KEYWORD)):
            raise OptionError(place, "annotation", annotation, "limits at a whole parameter that has one value")
        for limit in limits:
            if limit.key is not None:
                expected = "nothing, as a limit in an annotation goes by its parameter"
                raise OptionError(place, "key", limit.key, expected)
            yield replace(limit, key=name)


def _buries_limits(annotation: Any) -> bool:
    """Tell whether there are limits deeper in an annotation, such as at the items of a list, where no key is."""
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _buries_limits(parts[0])
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return any(map(_buries_limits if is_union else _has_limits, parts))


def _has_limits(part: Any) -> bool:
    return isinstance(part, (Rate, Concurrency)) or any(_has_limits(one) for one in get_args(part))


def _named(task: str, option: str, limits: Iterable[Limit]) -> Iterator[_Named]:
    """Yield limits with names of their own."""
    taken: Counter[str] = Counter()
    for limit in limits:
        stem = task if limit.key is None else f"{task}/{_label(limit.key)}"
        taken[stem] += 1
        yield _Named(option, stem if taken[stem] == 1 else f"{stem}#{taken[stem]}", limit)


def _label(key: Key) -> str:
    name = key if isinstance(key, str) else getattr(key, "__name__", "")
    return name if isinstance(name, str) and name.isidentifier() and name.isascii() else "key"


def _way(own: TaskOptions, call: CallOptions) -> Way | None:
    said = [one for one in (call.unique, call.debounce, call.throttle) if one is not None]
    chosen = next((one for one in said or (own.unique, own.debounce, own.throttle) if one), None)
    return chosen.way if chosen else None


def _numbers(limit: Limit) -> tuple[int, ...]:
    return (limit.interval_us, limit.burst) if isinstance(limit, Rate) else (limit.limit,)


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.blake2b(data, digest_size=16).digest())[:22].decode()
