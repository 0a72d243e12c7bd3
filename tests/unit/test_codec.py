from __future__ import annotations

import dataclasses
import enum
import functools
import math
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import named

from knapsaq.codec import shown
from knapsaq.errors import InvalidArgumentsError
from knapsaq.job import FIELDS
from knapsaq.signature import Signature

NOTHING: frozenset[str] = frozenset()


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Flags(enum.IntFlag):
    READ = 1
    WRITE = 2


class Address(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    street: str = pydantic.Field(alias="streetName")
    since: datetime
    tags: set[str] = set()


class Secret(pydantic.BaseModel):
    password: pydantic.SecretStr


class Point(msgspec.Struct):
    x: int
    y: float | None = None


class Pair(NamedTuple):
    left: int
    right: str


class Row(TypedDict):
    id: uuid.UUID
    note: str | None


@dataclasses.dataclass
class Customer:
    name: str
    address: Address
    points: list[Point]
    born: date | None = None
    balance: Decimal = Decimal(0)


class Opaque:
    """A class that nobody can put into JSON."""


def signature(function: Callable[..., Any]) -> Signature:
    return Signature("t", function, takes_context=False)


def through_json(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Send a call's arguments the way a job's go: bound, as JSON, and back."""
    seen = signature(function)
    stored = msgspec.json.decode(msgspec.json.encode(seen.bind(args, kwargs, NOTHING)))
    return seen.unbind(stored, {})


def taking(annotation: Any) -> Callable[..., Any]:
    """Return a function with one parameter of that type."""

    def function(value):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return value

    function.__annotations__ = {"value": annotation}
    return function


# --- Types and values of them ----------------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]))
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
finite = st.floats(allow_nan=False, allow_infinity=False)
addresses = st.builds(
    lambda street, since, tags: Address(streetName=street, since=since, tags=tags),
    text,
    st.datetimes(timezones=offsets),
    st.sets(text, max_size=3),
)
points = st.builds(Point, st.integers(), st.none() | finite)
dates = st.dates()
decimals = st.decimals(allow_nan=False, allow_infinity=False)
customers = st.builds(Customer, text, addresses, st.lists(points, max_size=3), st.none() | dates, decimals)

keys: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, text),
    (int, st.integers()),
    (uuid.UUID, st.uuids()),
    (Colour, st.sampled_from(Colour)),
    (date, dates),
]
hashable: list[tuple[Any, st.SearchStrategy[Any]]] = [
    *keys,
    (bool, st.booleans()),
    (float, finite),
    (bytes, st.binary()),
    (Decimal, decimals),
    (datetime, st.datetimes() | st.datetimes(timezones=offsets)),
    (timedelta, st.timedeltas()),
    (time, st.times()),
    (Level, st.sampled_from(Level)),
    (Literal["a", 7], st.sampled_from(["a", 7])),
    (Annotated[int, msgspec.Meta(ge=0)], st.integers(0)),
    (int | None, st.none() | st.integers()),
]
leaves: list[tuple[Any, st.SearchStrategy[Any]]] = [
    *hashable,
    (None, st.none()),
    (Flags, st.sampled_from([Flags.READ, Flags.WRITE])),
    (Address, addresses),
    (Point, points),
    (Pair, st.builds(Pair, st.integers(), text)),
    (Row, st.fixed_dictionaries({"id": st.uuids(), "note": st.none() | text})),
    (Customer, customers),
]


@st.composite
def typed_values(draw: st.DrawFn, depth: int = 2) -> tuple[Any, Any]:
    """Draw an annotation and a value of it, nested up to ``depth`` containers deep."""
    annotation, values = draw(annotated(depth))
    return annotation, draw(values)


@st.composite
def annotated(draw: st.DrawFn, depth: int) -> tuple[Any, st.SearchStrategy[Any]]:
    """Draw an annotation and the strategy of its values."""
    kind = draw(st.sampled_from(["leaf", "set", *NESTED])) if depth else "leaf"
    if kind == "leaf":
        return draw(st.sampled_from(leaves))
    if kind == "set":
        inner, values = draw(st.sampled_from(hashable))
        return set[inner], st.sets(values, max_size=4)
    inner, values = draw(annotated(depth - 1))
    key, names = draw(st.sampled_from(keys))
    return NESTED[kind](inner, values, key, names)


NESTED: dict[str, Callable[[Any, Any, Any, Any], tuple[Any, st.SearchStrategy[Any]]]] = {
    "list": lambda inner, values, _key, _names: (list[inner], st.lists(values, max_size=4)),
    "row": lambda inner, values, _key, _names: (tuple[inner, ...], st.lists(values, max_size=4).map(tuple)),
    "tuple": lambda inner, values, _key, _names: (tuple[inner, int], st.tuples(values, st.integers())),
    "dict": lambda inner, values, key, names: (dict[key, inner], st.dictionaries(names, values, max_size=4)),
    "optional": lambda inner, values, _key, _names: (inner if inner is None else inner | None, st.none() | values),
}


def same(left: Any, right: Any) -> bool:
    """Compare values and their types, all the way down; a time's zone by its offset."""
    if type(left) is not type(right) or left != right:
        return False
    if isinstance(left, dict):
        return all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return all(map(same, left, right))
    if isinstance(left, datetime):
        return left.utcoffset() == right.utcoffset()
    return not isinstance(left, float) or math.copysign(1, left) == math.copysign(1, right)


class TestRoundTrip:
    @given(typed_values())
    def test_what_is_accepted_arrives_equal_and_of_the_annotated_type(self, drawn: tuple[Any, Any]) -> None:
        """A task gets the very values that it was called with, whatever its annotations."""
        annotation, value = drawn
        args, kwargs = through_json(taking(annotation), value)
        assert kwargs == {}
        assert same(args[0], value)

    @given(st.recursive(st.none() | st.booleans() | st.integers() | finite | text, st.lists))
    def test_a_parameter_without_annotation_takes_what_json_has(self, value: Any) -> None:
        """Untyped tasks work, too."""
        args, _ = through_json(taking(Any), value)
        assert same(args[0], value)

    def test_parameters_may_be_named_like_the_fields_of_a_job(self) -> None:
        """``timeout``, ``key``, ``status`` and all the others are names like any other, which SAQ itself takes away."""
        source = f"def function(*, {', '.join(sorted(FIELDS))}): ..."
        scope: dict[str, Any] = {}
        exec(source, scope)  # noqa: S102 - one parameter for each field that there is
        given_values = {name: number for number, name in enumerate(sorted(FIELDS))}
        assert through_json(scope["function"], **given_values) == ((), given_values)

    def test_every_kind_of_parameter_gets_its_own_arguments(self) -> None:
        """Positional-only, ``*args``, keyword-only and ``**kwargs`` are told apart after the way through JSON."""

        def function(a: int, /, b: date, *rest: Decimal, c: bytes = b"", **more: timedelta) -> None: ...

        today = date(2026, 3, 1)
        args, kwargs = through_json(function, 1, today, Decimal(1), Decimal(2), c=b"x", later=timedelta(1))
        assert args == (1, today, Decimal(1), Decimal(2))
        assert kwargs == {"c": b"x", "later": timedelta(1)}

    def test_defaults_are_left_to_the_worker(self) -> None:
        """A default that is changed by a deployment counts also for jobs that wait already."""

        def function(a: int = 1, b: int = 2, *, c: int = 3) -> None: ...

        assert signature(function).bind((), {}, NOTHING) == {}
        assert through_json(function, b=5) == ((), {"b": 5})

    def test_a_decorated_function_keeps_its_annotations(self) -> None:
        """The annotations are looked up where the function was written, not where its decorator was."""
        wrapped = functools.wraps(pays)(functools.partial(pays))
        assert through_json(wrapped, amount=Decimal("1.10")) == ((Decimal("1.10"),), {})


def pays(amount: Decimal) -> None: ...


class TestCopies:
    @pytest.mark.parametrize("annotation", [Any, dict, dict[str, Any], dict[str, list[Any]]], ids=repr)
    def test_what_a_function_does_to_its_arguments_stays_with_it(self, annotation: Any) -> None:
        """The stored arguments are those of the next attempt."""
        stored = {"value": {"rows": [[1], {"a": 1}]}}
        (value,), _ = signature(taking(annotation)).unbind(stored, {})
        assert value == {"rows": [[1], {"a": 1}]}
        value["rows"][0].append(2)
        value["rows"][1].clear()
        value["rows"].append(3)
        value["more"] = 4
        assert stored == {"value": {"rows": [[1], {"a": 1}]}}


class TestRefusal:
    @pytest.mark.parametrize(
        ("annotation", "value"),
        [
            (int, True),
            (int, "1"),
            (int, 1.5),
            (str, 1),
            (bool, 1),
            (float, "1.5"),
            (float, 10**400),
            (datetime, "yesterday"),
            (uuid.UUID, "no uuid"),
            (Colour, "green"),
            (Literal["a", "b"], "c"),
            (Annotated[int, msgspec.Meta(ge=0)], -1),
            (list[int], [1, "2"]),
            (dict[str, int], {"a": None}),
            (tuple[int, str], (1,)),
            (Point, {"x": "1"}),
            (Customer, {"name": "A"}),
            (Address, {"street": "A", "since": "never"}),
            (Any, math.nan),
            (Any, (1, math.nan)),
            (float, math.inf),
            (Any, {"deep": [1, (2, -math.inf)]}),
            (Any, lambda: None),
            (Any, Opaque()),
            (Any, [Opaque()]),
            (Any, {(1, 2): 3}),
            (Opaque, Opaque()),
            (str, "file \udcff"),
            (list[str], ["file \udcff"]),
            (Any, {"file \udcff": 1}),
        ],
        ids=named,
    )
    def test_a_value_that_does_not_fit_names_its_parameter(self, annotation: Any, value: Any) -> None:
        """The caller hears which argument is wrong, what it has to be and what it was."""
        with pytest.raises(InvalidArgumentsError) as caught:
            signature(taking(annotation)).bind((value,), {}, NOTHING)
        error = caught.value
        assert (error.task, error.parameter) == ("t", "value")
        assert type(value).__name__ in error.given
        assert error.expected
        assert error.given in str(error)

    def test_a_value_that_contains_itself_is_refused(self) -> None:
        """Endless data is an error of the call, not of the process."""
        value: list[Any] = []
        value.append(value)
        with pytest.raises(InvalidArgumentsError) as caught:
            signature(taking(Any)).bind((value,), {}, NOTHING)
        assert caught.value.parameter == "value"

    def test_a_secret_that_json_would_turn_into_asterisks_is_refused_and_not_shown(self) -> None:
        """A pydantic model that would arrive with other contents is not sent."""
        with pytest.raises(InvalidArgumentsError, match="does not come back") as caught:
            signature(taking(Secret)).bind((Secret(password=pydantic.SecretStr("hunter2")),), {}, NOTHING)
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize("name", ["password", "client_secret", "token", "api_key", "authorization", "card_number"])
    @pytest.mark.parametrize(
        ("annotation", "value"),
        [(int, "hunter2"), (Literal["a"], "hunter2"), (Address, {"street": "hunter2", "since": "hunter2"})],
    )
    def test_a_value_whose_name_looks_secret_is_not_shown(self, name: str, annotation: Any, value: Any) -> None:
        """Of it there is only the kind, whatever is wrong; other names show the value to whoever gave it."""

        def function(**fields: Any) -> None: ...

        function.__annotations__ = {"fields": annotation}
        with pytest.raises(InvalidArgumentsError) as caught:
            signature(function).bind((), {name: value}, NOTHING)
        assert "hunter2" not in str(caught.value)
        assert caught.value.given == f"a value of type {type(value).__name__}"
        with pytest.raises(InvalidArgumentsError, match="hunter2"):
            signature(function).bind((), {"name": value}, NOTHING)
        with pytest.raises(InvalidArgumentsError) as caught:
            signature(taking(Any)).bind((), {name: "hunter2"}, NOTHING)
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize(
        ("annotation", "stored", "detail"),
        [
            (int, "hunter2", "Expected `int`, got `str`"),
            (dict[str, int], {"hunter2": "x"}, "Expected `int`, got `str` - at `$[...]`"),
            (Point, {"y": 1.5}, "Object missing required field `x`"),
            (Literal["a"], "hunter2", ""),
            (list[Colour], ["hunter2"], "at `$[0]`"),
            (Address, {"street": "hunter2", "since": "hunter2"}, ""),
            (uuid.UUID, "hunter2", ""),
            (Opaque, "hunter2", ""),
        ],
        ids=named,
    )
    def test_in_the_worker_no_value_is_shown(self, annotation: Any, stored: Any, detail: str) -> None:
        """The error becomes the job's, which is logged; it names the parameter, the kind and the place."""
        seen = signature(taking(annotation))
        with pytest.raises(InvalidArgumentsError) as caught:
            seen.unbind({"value": stored}, {})
        error = caught.value
        assert "hunter2" not in str(error)
        assert error.given == f"a value of type {type(stored).__name__}"
        assert detail in error.expected

    def test_a_large_value_is_shown_shortened(self) -> None:
        """An error's text fits a screen, and a broken ``repr`` does not hide it."""
        assert len(shown("x" * 10_000)) < 300

        class Broken:
            def __repr__(self) -> str:
                raise RuntimeError

        assert shown(Broken()) == "<no repr> (Broken)"


def test_aware_and_naive_times_stay_what_they_are() -> None:
    """A naive ``datetime`` is not moved into some zone, and an aware one keeps its moment."""
    naive = datetime(2026, 3, 29, 2, 30)  # noqa: DTZ001 - that is the point
    ((arrived,), _) = through_json(taking(datetime), naive)
    assert (arrived, arrived.tzinfo) == (naive, None)
    aware = datetime(2026, 3, 29, 2, 30, tzinfo=UTC)
    assert through_json(taking(datetime), aware)[0] == (aware,)
