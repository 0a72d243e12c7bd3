"""Loading: the module whose import fills the registry, and the settings that go with it."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from knapsaq.errors import ConfigurationError, KnapsaqError, RegistryError
from knapsaq.registry import Registry, get_registry
from knapsaq.settings import LoudSettings, Settings

MODULE_NAME = re.compile(r"\w+(\.\w+)*")
EXAMPLE = "`knapsaq -A app.queue.config ...`"


class AppChoice(LoudSettings):
    """Which module is the application's, if the command line does not say; read as the settings are."""

    model_config = SettingsConfigDict(
        env_prefix="KNAPSAQ_", env_file=".env", env_file_encoding="utf-8-sig", env_ignore_empty=True, extra="ignore"
    )

    app: str | None = Field(default=None, description="the module whose import defines the tasks")


@dataclass(frozen=True, slots=True)
class App:
    """An application that was imported.

    Attributes:
        module: The module's name.
        settings: Its own ``settings``, else those of the environment.
        has_settings: Whether they are its own.
        registry: Its own ``registry``, else the program's.
    """

    module: str
    settings: Settings
    has_settings: bool
    registry: Registry


def choose(given: str | None) -> str:
    """Return the name of the application's module.

    Args:
        given: What the command line says.

    Raises:
        ConfigurationError: It says nothing, nor does ``KNAPSAQ_APP``; or it is no module's name.
    """
    name = given or AppChoice().app
    if not name:
        msg = f"no application is given: name the module whose import defines the tasks, {EXAMPLE}, or set KNAPSAQ_APP"
        raise ConfigurationError(msg)
    if not MODULE_NAME.fullmatch(name) or name.endswith(".py"):
        guess = name.partition(":")[0].removesuffix(".py").strip("./").replace("/", ".")
        hint = f"; did you mean {guess!r}?" if MODULE_NAME.fullmatch(guess) else ""
        msg = f"{name!r} is not the name of a module such as 'app.queue.config'{hint}"
        raise ConfigurationError(msg)
    return name


def load(given: str | None) -> App:
    """Import the application; modules of the working directory can be imported.

    Raises:
        ConfigurationError: No module is given, or a setting is wrong.
        RegistryError: The module cannot be imported; the text says where it fails, the cause is chained.
    """
    name = choose(given)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except KnapsaqError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _broken(name, error) from error
        msg = f"there is no module {name!r}: {error.name!r} is neither installed nor in {here}; run where it lies"
        raise RegistryError(msg) from error
    except Exception as error:
        raise _broken(name, error) from error
    own, registry = getattr(module, "settings", None), getattr(module, "registry", None)
    has_settings = isinstance(own, Settings)
    return App(
        name,
        own if isinstance(own, Settings) else Settings(),
        has_settings,
        registry if isinstance(registry, Registry) else get_registry(),
    )


def _broken(name: str, error: BaseException) -> RegistryError:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if len(frames) > 1 else ""
    if isinstance(error, SyntaxError):
        place = f" at {error.filename}:{error.lineno}"
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return RegistryError(
        f"module {name!r} cannot be imported: {type(error).__name__}: {text}{place}; --debug shows the traceback"
    )
