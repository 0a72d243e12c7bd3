"""Decorators with other defaults: the seeds' base classes."""

from __future__ import annotations

from typing import Any

import pytest

from knapsaq import Batch, Middleware, OptionError, Registry, TaskDefinitionError


def options_of(task: Any) -> Any:
    return task.options


async def f() -> None: ...


async def g() -> None: ...


class TestMerging:
    def test_a_preset_gives_defaults_and_the_task_wins(self, registry: Registry) -> None:
        """With brackets and without; the plain decorator stays as it was."""
        notification = registry.task.preset(queue="mail", retries=3, retry_delay=60)
        bare, own = options_of(notification(f)), options_of(notification(name="own", retries=0, ttl=5)(f))
        assert (bare.name, bare.queue, bare.retries, bare.retry_delay) == (None, "mail", 3, 60.0)
        assert (own.name, own.queue, own.retries, own.ttl) == ("own", "mail", 0, 5)
        plain = options_of(registry.task(g))
        assert (plain.queue, plain.retries) == ("default", None)

    def test_presets_are_made_of_presets(self, registry: Registry) -> None:
        """The inner one wins, and does not change the outer one."""
        outer = registry.task.preset(queue="mail", retries=3)
        inner = outer.preset(retries=5, timeout=9)
        of_inner, of_outer = options_of(inner(f)), options_of(outer(g))
        assert (of_inner.queue, of_inner.retries, of_inner.timeout) == ("mail", 5, 9.0)
        assert (of_outer.retries, of_outer.timeout) == (3, None)

    def test_middlewares_go_inside_and_providers_are_added_by_name(self, registry: Registry) -> None:
        """All others replace, tuples of exceptions too."""
        a, b, c = Middleware(), Middleware(), Middleware()
        outer = registry.task.preset(middleware=a, dependencies={"db": print, "x": print}, retry_on=OSError)
        inner = outer.preset(middleware=[b], dependencies={"x": repr})
        task = options_of(inner(middleware=(c,), dependencies={"y": len}, retry_on=(KeyError,))(f))
        assert task.middleware == (a, b, c)
        assert task.dependencies == {"db": print, "x": repr, "y": len}
        assert task.retry_on == (KeyError,)

    def test_none_is_as_if_not_given(self, registry: Registry) -> None:
        """So that a value may be computed."""
        preset = registry.task.preset(retries=3, timeout=None, name=None, middleware=Middleware())
        task = options_of(preset(retries=None, middleware=None)(f))
        assert (task.retries, task.timeout, len(task.middleware)) == (3, None, 1)

    def test_a_preset_belongs_to_its_registry(self, registry: Registry) -> None:
        """Tasks are registered where the decorator came from."""
        other = Registry()
        registry.task.preset(retries=1)(f)
        other.task.preset(retries=1)(g)
        assert (registry.names(), other.names()) == (("f",), ("g",))


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"retires": 3}, "task.preset(): option 'retires' is 3; expected one of the options name, queue"),
            ({"retries": -1}, "task.preset(): option 'retries' is -1; expected a whole number from 0"),
            (
                {"name": "f"},
                "task.preset(): option 'name' is 'f'; expected nothing, as each task has a name of its own",
            ),
            ({"batch": Batch(2, 1)}, "expected nothing, as a function is written for it; say it in @task"),
            ({"middleware": 5}, "int has none of them"),
        ],
    )
    def test_wrong_options_are_refused_where_the_preset_is_defined(
        self, registry: Registry, options: dict[str, Any], said: str
    ) -> None:
        """Not at the first task, which may be in another file."""
        with pytest.raises(OptionError) as caught:
            registry.task.preset(**options)  # type: ignore[misc]
        assert said in str(caught.value)
        with pytest.raises(OptionError):
            registry.task.preset(retries=1).preset(**options)  # type: ignore[misc]

    @pytest.mark.parametrize("wrong", [{"middleware": 5}, {"dependencies": 5}, {"retires": 3}])
    def test_a_tasks_own_wrong_options_are_refused_as_ever(self, registry: Registry, wrong: dict[str, Any]) -> None:
        """Merging hides none."""
        preset = registry.task.preset(middleware=Middleware(), dependencies={"db": print})
        with pytest.raises(OptionError, match="@task of 'f'"):
            preset(**wrong)(f)
        assert registry.names() == ()

    def test_an_option_that_does_not_fit_the_function_is_refused_with_the_task(self, registry: Registry) -> None:
        """A preset for threads takes no coroutine functions."""
        with pytest.raises(TaskDefinitionError, match="run='thread' needs a plain `def`"):
            registry.task.preset(run="thread")(f)
