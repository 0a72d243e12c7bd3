from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.cli.conftest import Run

from knapsaq import RegistryError
from knapsaq.cli import main


class TestWhichApplication:
    def test_without_one_the_error_says_how_to_give_it(self, run: Run) -> None:
        """One line, exit code 2."""
        result = run("worker")
        assert result.exit_code == 2
        assert "knapsaq -A app.queue.config" in result.stderr
        assert "KNAPSAQ_APP" in result.stderr
        assert len(result.stderr.splitlines()) == 1

    def test_the_environment_may_name_it(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """With `KNAPSAQ_APP`."""
        monkeypatch.setenv("KNAPSAQ_APP", "shop_jobs")
        assert "nightly" in run("tasks").stdout

    def test_the_env_file_may_name_it(self, run: Run, folder: Path) -> None:
        """It is read as the settings are."""
        (folder / ".env").write_text("KNAPSAQ_APP=shop_jobs\n")
        assert "nightly" in run("tasks").stdout

    @pytest.mark.parametrize("given", ["shop_jobs.py", "shop_jobs:app", "./shop_jobs.py"])
    def test_a_file_or_an_attribute_is_no_module_and_the_module_is_guessed(self, run: Run, given: str) -> None:
        """Other programs take these spellings."""
        result = run("-A", given, "tasks")
        assert result.exit_code == 2
        assert "did you mean 'shop_jobs'?" in result.stderr

    def test_a_module_that_is_not_there_is_named_with_the_directory(self, run: Run, folder: Path) -> None:
        """The usual reason is the wrong working directory."""
        result = run("-A", "shop.jobs", "tasks")
        assert result.exit_code == 2
        assert "there is no module 'shop.jobs'" in result.stderr
        assert str(folder) in result.stderr

    def test_a_name_that_a_module_does_not_have_is_told_with_the_nearest(self, run: Run) -> None:
        """The module is there, and looking for it would be in vain."""
        result = run("-A", "shop_jobs.registri", "tasks")
        assert result.exit_code == 2
        told = " ".join(result.stderr.split())
        assert "module 'shop_jobs' has no 'registri'; did you mean 'registry'?" in told
        assert "there is no module" not in told

    def test_queues_that_name_none_are_refused(self, run: Run) -> None:
        """An empty variable in a script must not serve all of them."""
        result = run("-A", "shop_jobs", "worker", "--queues", "")
        assert result.exit_code == 2
        assert "it names no queue" in result.stderr

    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            ("import no_such_package", "No module named 'no_such_package' at {file}:1"),
            ("x = 1\nundefined_name", "NameError: name 'undefined_name' is not defined at {file}:2"),
            ("def f(:", "SyntaxError: invalid syntax at {file}:1"),
        ],
    )
    def test_a_module_that_does_not_import_is_named_with_the_line(
        self, run: Run, folder: Path, source: str, expected: str
    ) -> None:
        """The fault's own file and line, without a traceback."""
        file = folder / "broken_jobs.py"
        file.write_text(source)
        result = run("-A", "broken_jobs", "tasks")
        assert result.exit_code == 2
        assert expected.format(file=file) in result.stderr

    def test_debug_shows_the_traceback(self, folder: Path) -> None:
        """For whoever needs more than one line."""
        (folder / "broken_jobs.py").write_text("undefined_name")
        result = CliRunner().invoke(main, ["--debug", "-A", "broken_jobs", "tasks"])
        assert isinstance(result.exception, RegistryError)
        assert isinstance(result.exception.__cause__, NameError)

    def test_a_wrong_option_of_a_task_is_reported_as_such(self, run: Run, folder: Path) -> None:
        """Errors of ours keep their own text."""
        source = "from knapsaq import Registry\n@Registry().task(retrys=3)\nasync def f() -> None: ...\n"
        (folder / "wrong_jobs.py").write_text(source)
        result = run("-A", "wrong_jobs", "tasks")
        assert result.exit_code == 2
        assert "'retrys'" in result.stderr
        assert "retries" in result.stderr


class TestSettings:
    def test_the_modules_own_settings_win_over_the_environment(self, run: Run, folder: Path) -> None:
        """What the application was built with is what its workers use."""
        with (folder / "shop_jobs.py").open("a") as file:
            file.write("settings = Settings(queues=('only',))\n")
        result = run("-A", "shop_jobs", "worker", "--queues", "mail")
        assert result.exit_code == 2
        assert "known: only" in result.stderr

    def test_a_wrong_setting_is_named(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """With its variable and value."""
        monkeypatch.setenv("KNAPSAQ_CONCURRENCY", "many")
        result = run("-A", "shop_jobs", "tasks")
        assert result.exit_code == 2
        assert "KNAPSAQ_CONCURRENCY is 'many'" in result.stderr


class TestHelp:
    @pytest.mark.parametrize("command", [(), ("worker",), ("tasks",), ("enqueue",), ("doctor",)])
    def test_every_command_explains_itself_with_examples(self, run: Run, command: tuple[str, ...]) -> None:
        """Without an application, and without a broker."""
        result = run(*command, "--help")
        assert result.exit_code == 0
        assert f"knapsaq -A app.queue.config {command[0] if command else 'worker'}" in result.stdout

    def test_the_version_is_that_of_the_distribution(self, run: Run) -> None:
        """As the package manager knows it."""
        assert run("--version").stdout.startswith("knapsaq 0.")

    def test_a_mistyped_command_is_guessed(self, run: Run) -> None:
        """Exit code 2, as for all wrong use."""
        result = run("-A", "shop_jobs", "wrker")
        assert result.exit_code == 2
        assert "worker" in result.stderr

    def test_an_unknown_queue_is_refused_before_anything_starts(self, run: Run) -> None:
        """Nobody would ever put a job there."""
        result = run("-A", "shop_jobs", "worker", "--queues", "mial")
        assert result.exit_code == 2
        assert "did you mean 'mail'?" in result.stderr

    def test_a_number_out_of_range_is_refused(self, run: Run) -> None:
        """With the name of the option."""
        result = run("-A", "shop_jobs", "worker", "--workers", "0")
        assert result.exit_code == 2
        assert "--workers" in result.stderr
