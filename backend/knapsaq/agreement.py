"""Agreement: whether what one task returns can be what another takes, as far as their annotations tell.

Where in the flow: a workflow asks when it is built. Only what cannot work is refused: types that have no form in JSON
in common. What is not known to disagree agrees.
"""

from __future__ import annotations

import functools
from typing import Any

from msgspec import inspect as kinds

TEXT = frozenset({"text"})
NUMBERS = frozenset({"whole number", "number"})
_FORMS: dict[type[kinds.Type], frozenset[str]] = {
    kinds.NoneType: frozenset({"null"}),
    kinds.BoolType: frozenset({"boolean"}),
    kinds.IntType: frozenset({"whole number"}),
    kinds.FloatType: NUMBERS,
    **dict.fromkeys((kinds.StrType, kinds.BytesType, kinds.ByteArrayType, kinds.UUIDType, kinds.TimeType), TEXT),
    **dict.fromkeys((kinds.DateTimeType, kinds.DateType, kinds.TimeDeltaType), TEXT | NUMBERS),
    **dict.fromkeys((kinds.ListType, kinds.SetType, kinds.FrozenSetType), frozenset({"list"})),
    **dict.fromkeys((kinds.VarTupleType, kinds.TupleType), frozenset({"list"})),
    **dict.fromkeys((kinds.DictType, kinds.DataclassType, kinds.TypedDictType), frozenset({"object"})),
}


class Results(tuple[Any, ...]):
    """The types of what the members of a group return, in their order."""

    __slots__ = ()

    def __str__(self) -> str:
        members = dict.fromkeys(shown_type(one) for one in self)
        return f"a list of {' and '.join(members)}" if members else "an empty list"


def disagree(returned: Any, taken: Any) -> bool:
    """Tell whether no value of one type could be of the other.

    Args:
        returned: The annotation of a result, or the ``Results`` of a group.
        taken: The annotation of a parameter.
    """
    return _apart(returned, _type(taken))


def shown_type(annotation: Any) -> str:
    """Return a type for an error."""
    if isinstance(annotation, Results):
        return str(annotation)
    return "any value" if annotation is Any else getattr(annotation, "__name__", None) or str(annotation)


def _apart(returned: Any, taken: kinds.Type | None) -> bool:
    takes = _forms(taken)
    if not isinstance(returned, Results):
        gives = _forms(_type(returned))
        return gives is not None and takes is not None and not gives & takes
    if takes is not None and "list" not in takes:
        return True
    item = getattr(taken, "item_type", None)
    return item is not None and any(_apart(one, item) for one in {id(one): one for one in returned}.values())


def _type(annotation: Any) -> kinds.Type | None:
    try:
        return _known_type(annotation)
    except TypeError:  # it cannot be hashed, or is none that is checked
        return None


@functools.lru_cache(maxsize=1000)
def _known_type(annotation: Any) -> kinds.Type | None:
    try:
        return kinds.type_info(annotation)
    except (TypeError, ValueError, RuntimeError):
        return None


def _forms(known: kinds.Type | None) -> frozenset[str] | None:
    """Return the forms that a type has in JSON; None where that is not known."""
    if isinstance(known, kinds.UnionType):
        each = [_forms(one) for one in known.types]
        return None if None in each else frozenset().union(*(forms for forms in each if forms))
    if isinstance(known, kinds.StructType):
        return frozenset({"list"}) if known.array_like else frozenset({"object"})
    return _FORMS.get(type(known)) if known is not None else None
