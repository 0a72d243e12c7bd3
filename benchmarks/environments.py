"""Environments: a virtual environment for each system whose packages do not go with ours, made on demand."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.systems import System

CACHE = Path(__file__).parents[1] / ".venv-bench"
UV = Path(__file__).parents[1] / ".uv" / "bin" / "uv"  # where scripts/bootstrap.sh puts one


def interpreter(system: System, tell: Callable[[str], object]) -> Path:
    """Return the interpreter of a system; its environment is made if it is missing or other packages are pinned now.

    Raises:
        subprocess.CalledProcessError: It cannot be made; what was said is in ``stderr``.
    """
    if system.requirements is None:
        return Path(sys.executable)
    folder = CACHE / system.name
    python = folder / "bin" / "python"
    wanted = f"{sys.version}\n{system.requirements.read_text()}"
    ready = folder / ".ready"
    if not (ready.exists() and ready.read_text() == wanted):
        tell(f"installing {system.name} into {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        _install(folder, python, system.requirements)
        ready.write_text(wanted)
    return python


def _install(folder: Path, python: Path, requirements: Path) -> None:
    uv = shutil.which("uv") or (str(UV) if UV.exists() else None)
    if uv:
        _run(uv, "venv", "--quiet", "--python", sys.executable, folder)
        _run(uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python, "-r", requirements)
    else:
        _run(sys.executable, "-m", "venv", folder)
        _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own arguments
