from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from knapsaq import Registry, Task, get_registry, scheduled_task, task
from knapsaq.errors import (
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
        with pytest.raises(TaskDefinitionError, match="a task already"):
            registry.scheduled_task(cron="* * * * *")(send)

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
