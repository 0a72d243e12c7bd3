"""Reporting: how a command speaks of what went wrong, and what the worker logs."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click

from knapsaq.errors import ConfigurationError, InvalidArgumentsError, KnapsaqError, ProviderError, RegistryError
from knapsaq.supervisor import UNUSABLE

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

DEBUG_VARIABLE = "KNAPSAQ_DEBUG"
LOG_FORMAT = "%(asctime)s %(process)d %(levelname)-7s %(name)s: %(message)s"
WRONG_USE = (ConfigurationError, RegistryError, ProviderError, InvalidArgumentsError)
"""What trying again does not help against: code, configuration or the command line has to change."""

PIPED_WIDTH = 200


def output() -> Console:
    """Return where results go; tables are wide where nobody's terminal limits them."""
    from rich.console import Console  # noqa: PLC0415 - a worker prints nothing, and does without it

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)


def report(error: KnapsaqError) -> None:
    """Write an error on one line."""
    from rich.text import Text  # noqa: PLC0415 - as above

    _say(Text.assemble(("Error: ", "bold red"), str(error)))


def note(text: str) -> None:
    """Write something beside the result, which stays alone on standard output."""
    from rich.text import Text  # noqa: PLC0415 - as above

    _say(Text(text, style="dim"))


def _say(line: Text) -> None:
    from rich.console import Console  # noqa: PLC0415 - as above

    Console(stderr=True, highlight=False).print(line, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a result for programs."""
    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())


def exit_code(error: KnapsaqError) -> int:
    """Return 2 for what was asked for wrongly, else 1."""
    return UNUSABLE if isinstance(error, WRONG_USE) else 1


def wants_traceback() -> bool:
    """Tell whether the environment asks for tracebacks."""
    return os.environ.get(DEBUG_VARIABLE, "").lower() in ("1", "true", "yes", "on")


class ReportingGroup(click.RichGroup):
    """A group of commands whose own errors are reported without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KnapsaqError as error:
            if ctx.params.get("debug") or wants_traceback():
                raise
            report(error)
            ctx.exit(exit_code(error))


def set_up_logging(level: str) -> None:
    """Log to standard error, unless the program has arranged its logging already; the level counts in both cases."""
    if not logging.root.handlers:
        logging.basicConfig(format=LOG_FORMAT, level=level)
    logging.getLogger("knapsaq").setLevel(level)
