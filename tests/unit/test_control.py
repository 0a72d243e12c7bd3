from __future__ import annotations

import datetime as dt
import enum
import subprocess
import sys
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import pydantic
import pytest

from knapsaq import (
    INJECTED,
    Concurrency,
    Debounce,
    InvalidArgumentsError,
    Job,
    OptionError,
    Rate,
    Registry,
    TaskDefinitionError,
    Throttle,
    Unique,
    chain,
    group,
)
from knapsaq.canvas import FlowOptions
from knapsaq.control import key_text
from knapsaq.plan import compiled


class Plan(enum.Enum):
    FREE = "free"
    PAID = "paid"


class Tags(pydantic.BaseModel):
    names: set[str]


def built(task: Any, *args: Any, **kwargs: Any) -> Job[Any]:
    job: Job[Any] = task.build_job(task.using().options, args, kwargs)
    return job


def told(task: Any, options: Any, *args: Any, **kwargs: Any) -> Mapping[str, Any]:
    control: Mapping[str, Any] = task.build_job(task.using(**options).options, args, kwargs).control
    return control


class TestWhatAJobCarries:
    def test_a_job_without_such_options_carries_nothing(self, registry: Registry) -> None:
        """Not even an empty entry, and its task has no plan for one."""

        @registry.task(retries=3)
        def f(x: int) -> None: ...

        job = built(f, 1)
        assert (job.meta, job.control) == ({}, {})
        assert f.control_of(f.using().options, {"x": 1}) is None
        assert f.blueprint.controls is None
        assert told(f, {"priority": 0}, 1) == {}

    def test_it_carries_all_that_its_task_says(self, registry: Registry) -> None:
        """Each entry only if it says something."""

        @registry.task(priority=9, rate_limit="10/m", concurrency=3, fair_key="tenant", unique=True)
        def f(x: int, tenant: str | None = None) -> None: ...

        control = built(f, 1, tenant="acme").control
        assert control.keys() == {"priority", "fair", "rates", "slots", "unique"}
        assert (control["priority"], control["fair"]) == (9, "acme")
        assert (control["rates"], control["slots"]) == ([["f", 6_000_000, 1]], [["f", 3]])
        assert control["unique"][1:] == ["end", "existing"]
        assert "fair" not in built(f, 1).control

    def test_a_call_has_the_last_word(self, registry: Registry) -> None:
        """It replaces what the task says, and can switch it off."""

        @registry.task(priority=9, rate_limit="10/m", concurrency=3, fair_key="x", throttle=5)
        def f(x: int, y: Annotated[int, Rate("1/s")] = 0) -> None: ...

        off = {"priority": 0, "rate_limit": [], "concurrency": (), "unique": False, "fair_key": lambda _: None}
        assert told(f, off, 1) == {}
        other = told(f, {"rate_limit": "1/h", "concurrency": 1, "priority": 1, "unique": True, "fair_key": "y"}, 1, 2)
        assert (other["rates"], other["slots"]) == ([["f", 3_600_000_000, 1]], [["f", 1]])
        assert (other["priority"], other["fair"], other["unique"][1]) == (1, "2", "end")

    def test_it_stands_beside_what_else_is_stored(self, registry: Registry) -> None:
        """Headers of the call stay."""

        @registry.task
        def f() -> None: ...

        job = f.build_job(f.using(priority=3, headers={"a": "b"}).options, (), {})
        assert (job.headers, job.control) == ({"a": "b"}, {"priority": 3})

    def test_a_worker_can_work_it_out_for_jobs_of_others(self, registry: Registry) -> None:
        """From arguments as SAQ stores them, or as Python has them."""

        @registry.task(fair_key="plan", rate_limit=Rate("1/s", key=lambda arguments: arguments["on"].year))
        def f(on: dt.date, plan: Plan = Plan.FREE) -> None: ...

        expected = {"fair": "free", "rates": [["f/key=2026", 1_000_000, 1]]}
        none = f.using().options
        assert f.control_of(none, {"on": "2026-01-02"}) == expected
        assert f.control_of(none, {"on": dt.date(2026, 1, 2), "plan": Plan.FREE}) == expected
        assert built(f, dt.date(2026, 1, 2)).control == expected
        with pytest.raises(InvalidArgumentsError, match="'on'"):
            f.control_of(none, {"on": "never"})
        with pytest.raises(InvalidArgumentsError, match="JSON can carry"):
            f.control_of(none, {"on": object()})


class TestNames:
    def test_limits_of_one_task_have_names_of_their_own(self, registry: Registry) -> None:
        """So that each counts for itself."""

        def region(arguments: Mapping[str, Any]) -> str:
            return "eu"

        @registry.task(
            rate_limit=["1/s", "10/m", Rate("5/h", key="user"), Rate("9/h", key="user"), Rate("2/s", key=region)],
            concurrency=[3, Concurrency(1, key=lambda _: 7)],
        )
        def f(user: Annotated[int, Concurrency(2), Rate("1/d")]) -> None: ...

        control = built(f, 4).control
        names = [name for name, *_ in control["rates"]]
        assert names == ["f", "f#2", "f/user=4", "f/user#2=4", "f/region=eu", "f/user#3=4"]
        assert control["slots"] == [["f", 3], ["f/key=7", 1], ["f/user=4", 2]]

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (None, None),
            ("acme", "acme"),
            (7, "7"),
            (True, "true"),
            (1.5, "1.5"),
            (Plan.PAID, "paid"),
            (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
            (dt.date(2026, 1, 2), "2026-01-02"),
            ("a" * 100, "a" * 100),
        ],
    )
    def test_a_plain_key_is_its_own_text(self, value: object, text: str | None) -> None:
        """People can read it in Redis."""
        assert key_text(value) == text

    @pytest.mark.parametrize("value", ["", "a" * 101, "two words", "line\nbreak", "größe", "\x7f"])
    def test_any_other_text_is_a_digest(self, value: str) -> None:
        """Always the same one, of 22 characters."""
        text = key_text(value)
        assert text is not None
        assert len(text) == 22
        assert text == key_text(value) != key_text(value + "!" * 100)

    @pytest.mark.parametrize("value", [["a"], {"a": 1}, object(), float("nan"), ("a",)])
    def test_what_is_no_key_is_refused(self, registry: Registry, value: Any) -> None:
        """Before anything is queued."""

        @registry.task(fair_key=lambda _: value, rate_limit="1/s")
        def f() -> None: ...

        with pytest.raises(OptionError, match="expected a key that is text, a number, a UUID, a date or an Enum"):
            built(f)

    def test_a_key_that_sounds_secret_is_shown_to_nobody(self, registry: Registry) -> None:
        """Its text would stand in names that people list."""

        @registry.task(concurrency=Concurrency(1, key="api_token"))
        def f(api_token: str) -> None: ...

        @registry.task(concurrency=Concurrency(1, key=lambda given: given["api_token"]))
        def g(api_token: str) -> None: ...

        assert "hunter2" not in str(built(f, "hunter2").control)
        assert "hunter2" not in str(built(g, "hunter2").control)

    def test_a_job_without_a_key_is_not_limited_by_it(self, registry: Registry) -> None:
        """None is no key, whether it was given or is the default; other limits stay."""

        @registry.task(rate_limit=["1/s", Rate("1/m", key="user")])
        def f(user: int | None = None) -> None: ...

        assert built(f).control == built(f, None).control == {"rates": [["f", 1_000_000, 1]]}

    def test_a_function_that_raises_is_told_with_its_reason(self, registry: Registry) -> None:
        """The caller hears of it, and nothing is queued."""

        @registry.task(concurrency=Concurrency(1, key=lambda arguments: arguments["usr"]))
        def f(user: int) -> None: ...

        with pytest.raises(OptionError, match="it raised KeyError") as caught:
            built(f, 1)
        assert isinstance(caught.value.__cause__, KeyError)


class TestIdentity:
    def test_the_spelling_of_a_call_does_not_matter(self, registry: Registry) -> None:
        """By place or by name, in any order, with a default or without, as a kind of number or another."""

        @registry.task(unique=True)
        def f(x: float, y: int = 2, *, plan: Plan = Plan.FREE, more: dict[str, int] | None = None) -> None: ...

        same = [
            built(f, 1),
            built(f, 1.0, 2),
            built(f, y=2, x=1),
            built(f, plan=Plan.FREE, x=1, more=None),
        ]
        assert len({job.control["unique"][0] for job in same}) == 1
        different = [built(f, 2), built(f, 1, 3), built(f, 1, plan=Plan.PAID), built(f, 1, more={"a": 1})]
        assert len({job.control["unique"][0] for job in (*same, *different)}) == 5
        [ordered, turned] = [built(f, 1, more=more) for more in ({"a": 1, "b": 2}, {"b": 2, "a": 1})]
        assert ordered.control == turned.control

    def test_it_names_the_task(self, registry: Registry) -> None:
        """Jobs of two tasks are never one."""

        @registry.task(unique=True)
        def f(x: int) -> None: ...

        @registry.task(unique=True)
        def g(x: int) -> None: ...

        first, second = (built(task, 1).control["unique"][0] for task in (f, g))
        assert (first[:2], second[:2]) == ("f/", "g/")
        assert len(first) == 24

    def test_it_goes_by_the_parameters_that_are_named(self, registry: Registry) -> None:
        """By none of them there is one job of the task at all."""

        @registry.task(unique=Unique(by="x"))
        def f(x: int, y: int = 0) -> None: ...

        assert built(f, 1, 2).control == built(f, 1, 3).control != built(f, 2).control
        assert told(f, {"unique": Unique(by=())}, 1) == told(f, {"unique": Unique(by=())}, 2)
        both = {"unique": Unique(by=["y", "x"])}
        assert told(f, both, 1, 2) == told(f, {"unique": Unique(by=["x", "y"])}, 1, 2)

    def test_a_key_of_the_call_stands_for_the_arguments(self, registry: Registry) -> None:
        """An idempotency key: whatever else the call says."""

        @registry.task(unique=Unique(until=60, clash="raise"))
        def f(x: int) -> None: ...

        assert told(f, {"key": "order:7"}, 1) == {"unique": ["f/key=order:7", 60_000, "raise"]}

    def test_it_is_the_same_in_every_process(self) -> None:
        """Also of sets, whose order is another one in each."""
        code = (
            "import pydantic; from knapsaq import Registry\n"
            "class Tags(pydantic.BaseModel): names: set[str]\n"
            "@Registry().task(unique=True)\n"
            "def f(names: set[str], tags: Tags, *rest: int, nobody: object = object()): ...\n"
            "tags = Tags(names={'x', 'y', 'z'})\n"
            "print(f.build_job(f.using().options, ({'a', 'b', 'c', 'd'}, tags, 1), {}).control)\n"
        )
        command = [sys.executable, "-c", code]
        found = {
            subprocess.run(command, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout  # noqa: S603
            for seed in ("1", "2", "3")
        }
        assert len(found) == 1

    def test_further_arguments_count_as_well(self, registry: Registry) -> None:
        """Those that the function takes in a list or by any name."""

        @registry.task(unique=True)
        def f(*rest: int, **more: int) -> None: ...

        calls = [built(f), built(f, 1), built(f, 1, 2), built(f, a=1), built(f, a=2)]
        assert len({job.control["unique"][0] for job in calls}) == 5
        assert built(f, a=1, b=2).control == built(f, b=2, a=1).control


class TestTime:
    def test_a_debounced_job_is_due_later(self, registry: Registry) -> None:
        """It is put off by each call, and gives way to the newest until it starts."""

        @registry.task(debounce=Debounce(30, by="x"))
        def f(x: int, y: int = 0) -> None: ...

        job = built(f, 1)
        assert job.control["unique"][1:] == ["start", "replace"]
        assert job.delay == 30
        assert job.scheduled > 0
        assert f.build_job(f.using(debounce=False, delay=5).options, (1,), {}).delay == 5

    def test_a_debounced_call_does_not_say_when_it_runs(self, registry: Registry) -> None:
        """It is refused as soon as it is said, also beside other options, and of a signature when it is sent."""

        @registry.task(debounce=30)
        def f() -> None: ...

        for options in ({"delay": 5}, {"eta": dt.datetime.now(dt.UTC)}, {"delay": 5, "priority": 3}):
            with pytest.raises(OptionError, match="nothing beside debounce"):
                f.using(**options)
        with pytest.raises(OptionError, match="nothing beside debounce"):
            f.build_job(f.s().set(countdown=5).options, (), {})

    @pytest.mark.parametrize(
        ("ttl", "kept"), [(None, (None, 61)), (5, (61, 0)), (-1, (61, 0)), (0, (0, 0)), (90, (90, 0))]
    )
    def test_a_job_is_kept_as_long_as_it_is_unique(self, registry: Registry, ttl: Any, kept: Any) -> None:
        """So that it can be returned; one kept for ever stays so, and a default is the queue's affair."""

        @registry.task(throttle=60.5, ttl=ttl)
        def f() -> None: ...

        job = built(f)
        assert job.control["unique"][1:] == [60_500, "existing"]
        assert (job.ttl, job.keep) == kept


class TestKeysThatAreNoParameters:
    @pytest.mark.parametrize(
        ("options", "hint"),
        [
            ({"rate_limit": Rate("1/s", key="usr")}, "one of the parameters user, rest.*did you mean 'user'"),
            ({"concurrency": [1, Concurrency(1, key="ctx")]}, "not 'ctx'"),
            ({"fair_key": "usr"}, "did you mean 'user'"),
            ({"fair_key": "db"}, "not 'db'"),
            ({"fair_key": "many"}, "not 'many'"),
            ({"unique": Unique(by=["user", "rest", "x"])}, "not 'x'"),
            ({"debounce": Debounce(1, by="x")}, "not 'x'"),
            ({"throttle": Throttle(1, by="x")}, "not 'x'"),
        ],
    )
    def test_they_are_refused_at_definition_and_of_a_call(self, registry: Registry, options: Any, hint: str) -> None:
        """With the legal ones; neither the context, nor what a provider fills, nor several values."""

        def f(ctx: Any, user: int, *many: int, rest: str = "", db: Any = INJECTED) -> None: ...

        with pytest.raises(OptionError, match=hint) as caught:
            registry.task(**options)(f)
        assert caught.value.place == "@task of 'f'"
        assert registry.names() == ()
        task = registry.task(f)
        with pytest.raises(OptionError, match=hint):
            task.using(**options)
        with pytest.raises(OptionError, match=hint):
            task.build_job(task.s(user=1).set(**options).options, (), {"user": 1})

    def test_a_function_that_takes_any_name_can_go_by_any(self, registry: Registry) -> None:
        """SAQ's functions do so; without the argument there is no key."""

        @registry.task(fair_key="tenant", unique=Unique(by="many"))
        def f(*many: int, **kwargs: Any) -> None: ...

        assert built(f, tenant="acme").control["fair"] == "acme"
        assert "fair" not in built(f).control
        assert built(f, 1).control != built(f, 2).control

    def test_what_a_provider_of_the_registry_fills_is_told_when_a_worker_starts(self, registry: Registry) -> None:
        """Its value is not known before."""

        @registry.task(fair_key="tenant")
        def f(*, tenant: str) -> None: ...

        f.verify(60)
        registry.dependencies["tenant"] = lambda: "acme"
        with pytest.raises(TaskDefinitionError, match="goes by 'tenant', which a provider fills"):
            f.verify(60)


class TestAnnotations:
    def test_a_limit_goes_by_the_parameter_that_it_is_written_at(self, registry: Registry) -> None:
        """The value is checked and decoded as without it."""

        @registry.task
        def f(user: Annotated[int, msgspec.Meta(ge=1), Rate("100/h", burst=5)], other: int = 0) -> None: ...

        assert built(f, 3).control == {"rates": [["f/user=3", 36_000_000, 5]]}
        assert f.signature.unbind({"user": 3}, {}) == ((3,), {})
        with pytest.raises(InvalidArgumentsError, match="argument 'user'"):
            built(f, 0)
        with pytest.raises(InvalidArgumentsError, match="argument 'user'"):
            built(f, "3")

    def test_it_cannot_name_another_key(self, registry: Registry) -> None:
        """Told by the first job, and before a worker starts."""

        @registry.task
        def f(user: Annotated[int, Concurrency(1, key="other")], other: int) -> None: ...

        for use in (lambda: built(f, 1, 2), lambda: f.verify(60)):
            with pytest.raises(OptionError, match="parameter 'user' of task 'f': option 'key' is 'other'"):
                use()

    def test_it_is_never_left_unheeded(self, registry: Registry) -> None:
        """Where there is no one value to go by, it is refused."""

        @registry.task
        def several(*users: Annotated[int, Concurrency(1)]) -> None: ...

        @registry.task
        def named(**users: Annotated[int, Concurrency(1)]) -> None: ...

        @registry.task
        def items(users: list[Annotated[int, Concurrency(1)]] | None = None) -> None: ...

        for task in (several, named, items):
            with pytest.raises(OptionError, match=f"parameter 'users' of task {task.name!r}"):
                task.verify(60)


class TestWorkflows:
    def test_nodes_carry_limits_and_are_not_unique(self, registry: Registry) -> None:
        """Each node has a job of its own, whatever its task says."""

        @registry.task(priority=2, concurrency=Concurrency(1, key="x"), fair_key="x", debounce=5)
        def f(x: int) -> int:
            return x

        plan = compiled(group(f.s(1), f.s(2).set(priority=9, rate_limit="1/s", fair_key=lambda _: "me")), FlowOptions())
        first, second = (node.job for node in plan.nodes if node.job)
        assert first.control == {"priority": 2, "fair": "1", "slots": [["f/x=1", 1]]}
        assert second.control == {
            "priority": 9,
            "fair": "me",
            "rates": [["f", 1_000_000, 1]],
            "slots": [["f/x=2", 1]],
        }
        assert first.delay == 0

    @pytest.mark.parametrize("options", [{"unique": True}, {"debounce": 5}, {"throttle": 5}])
    def test_a_node_cannot_be_made_unique(self, registry: Registry, options: Any) -> None:
        """A workflow would wait for a job that another one holds."""

        @registry.task
        def f() -> None: ...

        [option] = options
        with pytest.raises(OptionError, match=f"in a workflow: option {option!r}"):
            compiled(chain(f.si().set(**options)), FlowOptions())
        compiled(chain(f.si().set(unique=False)), FlowOptions())

    def test_a_limit_cannot_go_by_what_is_not_known_yet(self, registry: Registry) -> None:
        """The result of the step before it; a tenant may be left out."""

        @registry.task(rate_limit=Rate("1/s", key="x"))
        def f(x: int) -> int:
            return x

        @registry.task(fair_key="x")
        def g(x: int) -> int:
            return x

        with pytest.raises(OptionError, match="'x' is given the result of another job"):
            compiled(f.s(1) | f.s(), FlowOptions())
        compiled(f.s(1) | f.si(2) | f.s().set(rate_limit="1/s"), FlowOptions())
        assert [node.job.control for node in compiled(g.s(1) | g.s(), FlowOptions()).nodes if node.job] == [
            {"fair": "1"},
            {},
        ]


def test_a_preset_s_way_to_be_one_is_replaced_by_the_task_s(registry: Registry) -> None:
    """As each option is; two in one place are refused where they are said."""
    quiet = registry.task.preset(debounce=5, priority=3)

    @quiet(unique=True)
    def f() -> None: ...

    assert built(f).control["unique"][1:] == ["end", "existing"]
    assert built(f).control["priority"] == 3
    with pytest.raises(OptionError, match="nothing beside unique"):
        registry.task.preset(unique=True, throttle=5)
