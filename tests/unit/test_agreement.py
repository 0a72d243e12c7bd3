from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, TypedDict
from uuid import UUID

import msgspec
import pytest

from knapsaq.agreement import Results, disagree


@dataclass
class Order:
    number: int


class Pair(msgspec.Struct, array_like=True):
    a: int


class Row(TypedDict):
    a: int


class Colour(enum.Enum):
    RED = "red"


class Opaque: ...


@pytest.mark.parametrize(
    ("returned", "taken"),
    [
        (int, str),
        (str, int),
        (None, int),
        (list[int], int),
        (int, list[int]),
        (dict[str, int], list[int]),
        (Order, str),
        (Order, Pair),
        (bool, str),
        (int | None, str | list[int]),
        (Annotated[int, msgspec.Meta(ge=0)], str),
        (Results([int]), int),
        (Results([int, str]), list[int]),
        (Results([Results([int])]), list[int]),
        (Results([]), dict[str, Any]),
    ],
)
def test_types_without_a_common_form_disagree(returned: Any, taken: Any) -> None:
    """No value of one could be of the other."""
    assert disagree(returned, taken)


@pytest.mark.parametrize(
    ("returned", "taken"),
    [
        (int, int),
        (int, float),
        (float, int),
        (Any, int),
        (int, Any),
        (None, int | None),
        (int | None, int),
        (datetime, str),
        (str, UUID),
        (Decimal, str),
        (float, Decimal),
        (Colour, str),
        (str, Colour),
        (Order, dict[str, int]),
        (Row, Order),
        (Pair, list[int]),
        (tuple[int, str], list[Any]),
        (Opaque, int),
        (int, Opaque),
        (Results([int, int]), list[int]),
        (Results([int]), list[Any]),
        (Results([int]), set[int]),
        (Results([]), list[str]),
        (Results([int]), Any),
        (Results([Results([int])]), list[list[int]]),
        (Results([Opaque]), list[int]),
        (int, "not a type"),
    ],
)
def test_what_is_not_known_to_disagree_agrees(returned: Any, taken: Any) -> None:
    """The worker decides then, on the value itself."""
    assert not disagree(returned, taken)
