"""The README and the manual say what is true: every snippet runs, every table is checked."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from knapsaq import Registry, Settings
from knapsaq.cli import main
from knapsaq.options import CALL_CHECKS, CHECKS

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "QUEUE_SETUP.md", "docs/from-celery.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# (\S+\.py)\n")


class Snippet(NamedTuple):
    """A block of code in a page."""

    page: str
    number: int
    language: str
    code: str

    @property
    def file_name(self) -> str | None:
        """The file that the snippet's first line names."""
        match = FILE_NAME.match(self.code)
        return match[1] if match else None


def snippets(*languages: str) -> Iterator[Snippet]:
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for number, (language, code) in enumerate(BLOCK.findall(text), start=1):
            if language in languages:
                yield Snippet(page, number, language, code)


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A project folder a page, with each file that a snippet names."""
    folders = {page: tmp_path_factory.mktemp(Path(page).stem) for page in PAGES}
    for snippet in snippets("python"):
        if snippet.file_name:
            path = folders[snippet.page] / snippet.file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(snippet.code, encoding="utf-8")
    return folders


def run(project: Path, *command: str) -> str:
    """Run a command in a project as a reader would, on the private server of that project."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, *command], cwd=project, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)[-2000:]}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.parametrize("snippet", tuple(snippets("python")), ids=lambda snippet: f"{snippet.page}-{snippet.number}")
def test_each_python_snippet_runs_in_a_project_of_its_own(snippet: Snippet, projects: dict[str, Path]) -> None:
    """A reader who copies the page's files and runs a snippet sees it work, without a warning."""
    project = projects[snippet.page]
    if snippet.file_name and snippet.file_name.startswith("tests/"):
        run(
            project,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:valkey",
            "-o",
            "asyncio_mode=auto",
            "--rootdir=.",
            snippet.file_name,
        )
    elif snippet.file_name and snippet.file_name != "main.py":
        module = snippet.file_name.removesuffix(".py").replace("/", ".")
        run(project, "-W", "error:::shop", "-c", f"import {module}")
    else:
        script = project / f"snippet_{snippet.number}.py"
        script.write_text(snippet.code, encoding="utf-8")
        run(project, script.name)


@pytest.mark.parametrize("page", PAGES)
def test_the_snippets_are_typed(page: str, projects: dict[str, Path]) -> None:
    """A reader who checks types strictly can use them as they are."""
    project = projects[page]
    for snippet in snippets("python"):
        if snippet.page == page and not snippet.file_name:
            (project / f"snippet_{snippet.number}.py").write_text(snippet.code, encoding="utf-8")
    cache = str(project.parent / "mypy")  # what the pages import is read once for all
    run(
        project,
        "-m",
        "mypy",
        "--strict",
        "--explicit-package-bases",
        "--cache-dir",
        cache,
        "--exclude",
        ".knapsaq",
        ".",
    )


@pytest.mark.parametrize("snippet", tuple(snippets("bash")), ids=lambda snippet: f"{snippet.page}-{snippet.number}")
def test_each_command_exists_with_the_options_that_the_page_shows(snippet: Snippet) -> None:
    """Make targets are in the Makefile, and our commands accept the options that are shown."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in snippet.code.splitlines():
        words = line.split("#")[0].split()
        if words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line
        elif words[:1] == ["knapsaq"]:
            command = words[3:5] if words[3] == "schedules" else words[3:4]
            result = CliRunner().invoke(main, [*words[1:3], *command, "--help"])
            assert result.exit_code == 0, f"{line}: {result.output}"
            for option in re.findall(r"--[a-z-]+", " ".join(words[4:])):
                assert option in result.output, f"{option} of {line}"
        else:
            assert words[0] in {"pip", "litestar", "docker"}, line


def test_the_settings_table_is_complete() -> None:
    """Each setting is in the manual with its default and its description, and no other is."""
    manual = (ROOT / "QUEUE_SETUP.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(KNAPSAQ_[A-Z_]+)` \| `(.*?)` \| (.*?) \|$", manual, re.MULTILINE)
    assert rows == [
        (f"KNAPSAQ_{field.name.upper()}", shown_default(field), field.metadata["description"])
        for field in dataclasses.fields(Settings)
    ]


def shown_default(field: dataclasses.Field[Any]) -> str:
    """Return a default as somebody would write it into the environment; nothing for None."""
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if isinstance(default, tuple):
        return ",".join(default)
    return "unset" if default is None else str(default)


def test_the_option_tables_are_complete() -> None:
    """Each option of @task is in the manual's table, and each of .using() in its sentence."""
    manual = (ROOT / "QUEUE_SETUP.md").read_text(encoding="utf-8")
    table = manual.split("Options of `@task`:")[1].split("A wrong option")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(CHECKS)
    sentence = manual.split("`.using(...)` takes")[1].split(".\n")[0]
    assert re.findall(r"`(\w+)`", sentence) == list(CALL_CHECKS)


def test_the_table_of_schedules_is_complete() -> None:
    """Each option of @scheduled_task that is none of @task's is in the manual's table."""
    manual = (ROOT / "QUEUE_SETUP.md").read_text(encoding="utf-8")
    table = manual.split("## 8. Schedules")[1].split("The options of `@task` stand beside")[0]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", table, re.MULTILINE)
    own = inspect.signature(Registry.scheduled_task).parameters.keys() - {"self", "wrong", "options"}
    assert set(re.findall(r"\w+", " ".join(rows))) == own


def test_every_link_inside_the_project_leads_somewhere() -> None:
    """Files and headings that the pages link to exist."""
    for page in PAGES:
        path = ROOT / page
        for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
            if "://" not in target:
                file, _, heading = target.partition("#")
                linked = path.parent / file if file else path
                assert linked.exists(), f"{page}: {target}"
                assert not heading or heading in anchors(linked), f"{page}: {target}"


def anchors(page: Path) -> set[str]:
    """Return the names by which the headings of a page are linked to."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_each_pattern_of_celery_has_its_twin_and_a_test_of_its_name() -> None:
    """Above is Celery's, below ours; who wants to see more of it finds the test."""
    text = (ROOT / "docs/from-celery.md").read_text(encoding="utf-8")
    patterns = re.findall(r"^### ([^\n]*)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    assert patterns
    for title, section in patterns:
        languages = [language for language, _ in BLOCK.findall(section)]
        assert languages[0] == "py", title
        assert set(languages[1:]) == {"python"}, title
        name = re.sub(r"\W+", "_", title.lower())
        assert (ROOT / f"tests/fundamentals/test_{name}.py").exists(), title
