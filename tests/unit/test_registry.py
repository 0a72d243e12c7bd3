from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from knapsaq import INJECTED, Registry, Task, get_registry, scheduled_task, task
from knapsaq.errors import (
    DuplicateScheduleError,
    DuplicateTaskError,
    InvalidArgumentsError,
    OptionError,
    RegistryError,
    TaskDefinitionError,
    UnknownTaskError,
)

Package = Callable[[dict[str, str]], str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """Write the modules of a package ``sandbox``, by their place in it."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(modules: dict[str, str]) -> str:
        for place, source in modules.items():
            path = tmp_path / "sandbox" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            for folder in [path.parent, *path.parent.parents]:
                if folder == tmp_path:
                    break
                (folder / "__init__.py").touch()
            path.write_text(source)
        importlib.invalidate_caches()
        return "sandbox"

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "sandbox"]:
        del sys.modules[name]


DEFINES = "from knapsaq import task\n@task(name='sandbox.{0}')\nasync def {0}() -> None: ...\n"


@pytest.fixture
def program() -> Iterator[Registry]:
    """The program's registry; what the test adds is taken out again."""
    before = set(get_registry().names())
    yield get_registry()
    for name in set(get_registry().names()) - before:
        del get_registry()._tasks[name]


class TestLookingUp:
    def test_tasks_are_found_by_name_and_listed_in_order(self, registry: Registry) -> None:
        """Names are sorted for people; tasks keep the order of their definition."""

        @registry.task
        def zebra() -> None: ...

        @registry.scheduled_task(cron="* * * * *")
        def ape() -> None: ...

        assert registry.names() == ("ape", "zebra")
        assert registry.get_all_tasks() == [zebra, ape]
        assert registry.get_scheduled_tasks() == [ape]
        assert registry.get("zebra") is zebra
        assert registry.find("lion") is None
        assert repr(registry) == "<Registry of 2 tasks>"

    def test_an_unknown_name_is_answered_with_the_nearest(self, registry: Registry) -> None:
        """A typing error takes one look; without any task the error says that imports are missing."""

        @registry.task
        def send_email() -> None: ...

        with pytest.raises(UnknownTaskError, match="did you mean 'send_email'") as caught:
            registry.get("send_emial")
        assert caught.value.known == ("send_email",)
        with pytest.raises(UnknownTaskError, match=r"none is known.*import it where"):
            Registry().get("send_email")

    def test_clear_forgets_tasks_and_providers(self, registry: Registry) -> None:
        """A test can begin with nothing."""

        @registry.task
        def gone() -> None: ...

        registry.provide({"db": print})
        registry.clear()
        assert registry.names() == ()
        assert registry.dependencies == {}

    def test_registries_do_not_know_each_other(self, registry: Registry, program: Registry) -> None:
        """The module-level decorators fill the program's registry, a registry's own fill that one."""

        @task(name="registry-test.shared")
        def shared() -> None: ...

        @scheduled_task(name="registry-test.nightly", cron="0 2 * * *")
        def nightly() -> None: ...

        @registry.task
        def own() -> None: ...

        assert program.get("registry-test.shared") is shared
        assert program.get("registry-test.nightly") is nightly
        assert registry.names() == ("own",)


class TestNames:
    def test_two_functions_of_one_name_are_refused_with_both_places(self, registry: Registry) -> None:
        """The error tells which two lines to look at, and the first task stays."""

        @registry.task
        def send() -> None: ...

        with pytest.raises(DuplicateTaskError) as caught:

            @registry.task(name="send")
            def other() -> None: ...

        first, second = caught.value.first, caught.value.second
        assert first == send.location
        assert first.startswith(__file__)
        assert first != second
        assert first in str(caught.value)
        assert second in str(caught.value)
        assert registry.get("send") is send

    def test_the_same_module_imported_again_is_no_duplicate(
        self, package: Package, program: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A reload, or a module that runs as ``__main__`` too, replaces its tasks."""
        package({"tasks.py": DEFINES.format("again")})
        module = importlib.import_module("sandbox.tasks")
        first = program.get("sandbox.again")
        importlib.reload(module)
        assert program.get("sandbox.again") is not first
        assert program.get("sandbox.again") is module.again

    def test_a_function_is_decorated_once(self, registry: Registry) -> None:
        """Two decorators on one function are a mistake that is named."""

        @registry.task
        def send() -> None: ...

        with pytest.raises(TaskDefinitionError, match="a task already; decorate the function once"):
            registry.task(send)

    def test_only_functions_become_tasks(self, registry: Registry) -> None:
        """A forgotten keyword, as in ``@task("name")``, is told apart from a function."""
        with pytest.raises(TaskDefinitionError, match="a task is made of a function"):
            registry.task("send")  # type: ignore[call-overload]


class TestAutodiscover:
    def test_every_tasks_module_at_or_below_the_package_is_imported(self, package: Package, program: Registry) -> None:
        """Domains keep their tasks beside their code; other modules are left alone."""
        package(
            {
                "tasks.py": DEFINES.format("shared"),
                "users/tasks.py": DEFINES.format("welcome"),
                "users/deep/tasks.py": DEFINES.format("deep"),
                "users/models.py": "raise RuntimeError('not asked for')",
            }
        )
        found = program.autodiscover("sandbox")
        assert found == ["sandbox.tasks", "sandbox.users.deep.tasks", "sandbox.users.tasks"]
        assert {"sandbox.shared", "sandbox.welcome", "sandbox.deep"} <= set(program.names())
        assert isinstance(program.get("sandbox.deep"), Task)

    def test_a_package_without_tasks_is_refused(self, package: Package, registry: Registry) -> None:
        """A worker that would have nothing to do has been given the wrong name."""
        package({"models.py": ""})
        with pytest.raises(RegistryError, match="package 'sandbox' has no module named 'tasks'"):
            registry.autodiscover("sandbox")

    @pytest.mark.parametrize(
        ("source", "cause"),
        [("import nowhere_to_be_found", ImportError), ("1 / 0", ZeroDivisionError), ("def broken(:", SyntaxError)],
    )
    @pytest.mark.parametrize("module", ["users/tasks.py", "users/__init__.py"])
    def test_a_module_that_cannot_be_imported_is_named_with_the_cause(
        self, package: Package, registry: Registry, module: str, source: str, cause: type[Exception]
    ) -> None:
        """A broken module stops the start; its tasks are not just missing."""
        package({"users/tasks.py": "", module: source})
        with pytest.raises(RegistryError, match=r"module 'sandbox\.users") as caught:
            registry.autodiscover("sandbox")
        assert isinstance(caught.value.__cause__, cause)

    def test_a_wrong_option_in_a_module_keeps_its_own_error(self, package: Package, registry: Registry) -> None:
        """An error that says where to look is not wrapped into another."""
        package({"tasks.py": "from knapsaq import task\n@task(timeout=-1)\ndef f() -> None: ..."})
        with pytest.raises(OptionError, match="@task of 'f'"):
            registry.autodiscover("sandbox")

    def test_a_package_that_is_not_there_is_named(self, registry: Registry) -> None:
        """The name of the application is mistyped more often than anything else."""
        with pytest.raises(RegistryError, match=r"'no_such_app' cannot be imported.*check the name"):
            registry.autodiscover("no_such_app")


def test_a_scheduled_task_may_ask_for_what_is_provided_later(registry: Registry) -> None:
    """Tasks are defined before the configuration that names their providers is read."""

    @registry.scheduled_task(cron="0 2 * * *", kwargs={"days": 3})
    async def clean(*, days: int, db_session: object) -> None: ...

    registry.provide({"db_session": object})
    assert clean.parameters == ("days",)


def test_a_scheduled_task_whose_arguments_do_not_fit_is_refused(registry: Registry) -> None:
    """A wrong argument is found at definition, not at two in the morning."""
    with pytest.raises(InvalidArgumentsError, match="'days'"):

        @registry.scheduled_task(cron="0 2 * * *", kwargs={"days": "three"})
        async def clean(*, days: int) -> None: ...


def test_an_argument_that_a_schedule_gives_and_nobody_takes_is_told_with_those_that_there_are(
    registry: Registry,
) -> None:
    """Also with the schedule's name, as a task may have several."""
    given: Any = {"dayz": 1}
    place = r"schedule 'often', defined at .*: task 'clean', argument 'dayz': expected one of days, given 1"
    with pytest.raises(InvalidArgumentsError, match=place):

        @registry.scheduled_task(every=60, schedule="often", kwargs=given)
        async def clean(*, days: int = 3, session: object = INJECTED) -> None: ...

    assert registry.names() == ()


def test_a_schedule_is_given_by_name(registry: Registry) -> None:
    """Without brackets, or with an expression alone, the error says what to write."""
    wrong: Any = registry.scheduled_task

    async def clean() -> None: ...

    with pytest.raises(TaskDefinitionError, match=r"task 'clean': .*write @scheduled_task\(cron="):
        wrong(clean)
    with pytest.raises(OptionError, match=r"'0 2 \* \* \*'.*write @scheduled_task\(cron="):
        wrong("0 2 * * *")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"crn": "@daily"}, "option 'crn' is '@daily'"),
        ({"cron": "@daily", "schedule": "a b"}, "option 'schedule' is 'a b'"),
    ],
)
def test_a_wrong_option_is_told_by_the_name_under_which_it_was_given(
    registry: Registry, given: dict[str, Any], told: str
) -> None:
    """And a misspelt one before what is missing because of it; nothing is registered."""

    async def clean() -> None: ...

    with pytest.raises(OptionError, match=told):
        registry.scheduled_task(**given)(clean)
    assert registry.names() == ()


class TestSeveralSchedules:
    def test_decorators_on_top_of_each_other_schedule_one_task(self, registry: Registry) -> None:
        """Each gives it a schedule with a name of its own; the innermost one makes the task."""

        @registry.scheduled_task(every=60, schedule="ping.often", args=(3,))
        @registry.scheduled_task(cron="0 2 * * *", timeout=9)
        async def ping(times: int = 1) -> None: ...

        assert registry.names() == ("ping",)
        assert [(one.name, one.cron, one.every, one.args) for one in ping.schedules] == [
            ("ping", "0 2 * * *", None, ()),
            ("ping.often", None, 60.0, (3,)),
        ]
        assert ping.options.timeout == 9
        assert registry.find_schedule("ping.often") == (ping, ping.schedules[1])
        assert registry.find_schedule("pong") is None

    def test_a_task_may_lie_below(self, registry: Registry) -> None:
        """``@task`` takes the options, ``@scheduled_task`` the time."""

        @registry.scheduled_task(cron="0 2 * * *")
        @registry.task(name="mail.ping", retries=3)
        async def ping() -> None: ...

        assert [one.name for one in ping.schedules] == ["mail.ping"]
        assert registry.get_scheduled_tasks() == [ping]

    def test_options_of_the_task_belong_to_the_innermost(self, registry: Registry) -> None:
        """On top they would be lost without a word."""
        again = registry.scheduled_task(every=60, schedule="again", timeout=9)
        with pytest.raises(OptionError, match="belong to the innermost decorator") as caught:

            @again
            @registry.scheduled_task(cron="0 2 * * *")
            async def ping() -> None: ...

        assert caught.value.option == "timeout"
        assert [one.name for one in registry.get("ping").schedules] == ["ping"]

    def test_a_further_one_needs_a_name_of_its_own(self, registry: Registry) -> None:
        """The error shows how to give it one."""
        with pytest.raises(TaskDefinitionError, match=r"a schedule 'ping' already; .* schedule="):

            @registry.scheduled_task(every=60)
            @registry.scheduled_task(cron="0 2 * * *")
            async def ping() -> None: ...

        assert len(registry.get("ping").schedules) == 1

    def test_names_are_unique_in_a_registry(self, registry: Registry) -> None:
        """Two tasks with a schedule of one name are told apart by their places, and the second is not registered."""

        @registry.scheduled_task(cron="0 2 * * *", schedule="nightly")
        async def first() -> None: ...

        with pytest.raises(
            DuplicateScheduleError, match=r"'nightly' is defined twice: .*test_registry.py:\d+ and"
        ) as it:

            @registry.scheduled_task(cron="0 3 * * *", schedule="nightly")
            async def second() -> None: ...

        assert (it.value.name, it.value.first) == ("nightly", first.location)
        assert registry.names() == ("first",)

    def test_a_task_of_another_registry_is_refused(self, registry: Registry) -> None:
        """Its schedule would never be found."""

        @Registry().task
        async def ping() -> None: ...

        with pytest.raises(TaskDefinitionError, match="another registry"):
            registry.scheduled_task(cron="0 2 * * *")(ping)

    def test_a_module_that_is_loaded_again_schedules_its_tasks_anew(self, registry: Registry) -> None:
        """The new function has the new schedule alone."""
        for cron in ("0 2 * * *", "0 3 * * *"):

            @registry.scheduled_task(cron=cron, schedule="nightly")
            async def ping() -> None: ...

        assert [one.cron for one in registry.get("ping").schedules] == ["0 3 * * *"]

    @pytest.mark.parametrize(
        ("args", "kwargs", "wrong"),
        [((1, 2), {}, "too many"), (("one",), {}, "'x'"), ((1,), {"x": 1}, "multiple"), ((), {"y": 1}, "'y'")],
    )
    def test_arguments_are_bound_when_it_is_defined(
        self, registry: Registry, args: tuple[Any, ...], kwargs: dict[str, Any], wrong: str
    ) -> None:
        """By position or by name; what is not given may be left to a provider."""
        with pytest.raises(InvalidArgumentsError, match=wrong):

            @registry.scheduled_task(cron="0 2 * * *", args=args, kwargs=kwargs)
            async def ping(x: int, *, db: object) -> None: ...

        assert registry.names() == ()
