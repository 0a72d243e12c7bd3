from __future__ import annotations

import importlib
import os.path
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from knapsaq import OptionError, RegistryError
from knapsaq.importing import find

FILES = {
    "__init__.py": "tasks = ['not the module']\n",
    "tasks.py": "def send(): ...\nclass Mailer:\n    def send(self): ...\nmailer = Mailer()\nLIMIT = 3\n",
    "twin/__init__.py": "from grocery.twin.pack import pack\n",
    "twin/pack.py": "def pack(): ...\n",
    "broken.py": "x = 1\nundefined\n",
    "lacking.py": "import no_such_package\n",
    "wordy.py": "def f(:\n",
    "leaving.py": "raise SystemExit(3)\n",
    "wrong.py": "from knapsaq import Registry\nRegistry().task(retrys=3)(print)\n",
    "lazy.py": "def __getattr__(name):\n    raise RuntimeError(name)\n",
}


@pytest.fixture(autouse=True)
def grocery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with what may go wrong in one; nothing of it is left imported."""
    monkeypatch.syspath_prepend(tmp_path)
    for place, source in FILES.items():
        path = tmp_path / "grocery" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    importlib.invalidate_caches()
    yield tmp_path / "grocery"
    for name in [name for name in sys.modules if name.split(".")[0] == "grocery"]:
        del sys.modules[name]


class TestFinding:
    @pytest.mark.parametrize("path", ["grocery.tasks.send", "grocery.tasks.Mailer.send", "grocery.twin.pack.pack"])
    def test_a_path_leads_through_modules_and_classes(self, path: str) -> None:
        """An attribute of a package does not hide its module on the way."""
        assert find(path).__name__ == path.rpartition(".")[2]

    def test_it_may_end_at_a_module_or_at_an_object(self) -> None:
        """Modules are imported, whatever they are called inside."""
        assert find("grocery.tasks") is sys.modules["grocery.tasks"]
        assert find("grocery.tasks.mailer.send").__self__ is find("grocery.tasks.mailer")
        assert find("os.path.join") is os.path.join

    def test_at_its_end_a_function_is_meant_before_a_module_of_its_name(self) -> None:
        """A package that has a module for each function and imports the functions."""
        assert find("grocery.twin.pack") is find("grocery.twin.pack.pack")


class TestWrongPaths:
    @pytest.mark.parametrize(
        ("path", "why"),
        [
            ("grocry.tasks.send", "there is no module 'grocry'; did you mean 'grocery'?"),
            ("zzzqqq.tasks", "there is no module 'zzzqqq'; it is neither installed nor in "),
            ("grocery.task", "module 'grocery' has no 'task'; did you mean 'tasks'?"),
            ("grocery.tasks.sned", "module 'grocery.tasks' has no 'sned'; did you mean 'send'? Known: Mailer, send"),
            ("grocery.tasks.Mailer.snd", "object 'grocery.tasks.Mailer' has no 'snd'; did you mean 'send'?"),
            ("grocery.tasks.LIMIT.x", "object 'grocery.tasks.LIMIT' has no 'x'; none is known"),
            (
                "grocery.broken.f",
                "module 'grocery.broken' cannot be imported: NameError: name 'undefined' is not defined",
            ),
            ("grocery.lacking", "ModuleNotFoundError: No module named 'no_such_package' at {folder}/lacking.py:1"),
            ("grocery.wordy.f", "SyntaxError: invalid syntax at {folder}/wordy.py:1"),
            (
                "grocery.leaving.f",
                "module 'grocery.leaving' cannot be imported: SystemExit: 3 at {folder}/leaving.py:1",
            ),
            ("grocery.wrong.f", "did you mean 'retries'?"),
            ("grocery.lazy.f", "'f' of 'grocery.lazy' cannot be had: RuntimeError: f at {folder}/lazy.py:2"),
        ],
    )
    def test_the_error_says_where_the_way_ends_and_what_stands_there(self, path: str, why: str, grocery: Path) -> None:
        """One look is enough."""
        with pytest.raises(RegistryError) as caught:
            find(path)
        assert why.format(folder=grocery) in str(caught.value)

    def test_the_cause_is_chained(self) -> None:
        """Whoever wants the traceback has it."""
        with pytest.raises(RegistryError) as caught:
            find("grocery.broken")
        assert isinstance(caught.value.__cause__, NameError)
        with pytest.raises(RegistryError) as caught:
            find("grocery.wrong")
        assert isinstance(caught.value.__cause__, OptionError)
