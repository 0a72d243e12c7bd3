"""The command line: ``knapsaq -A MODULE COMMAND``.

Each command is a module of its own, imported when somebody asks for it: a worker's
memory has no room for what prints tables. A command imports the application, does
one thing with it, and prints the result to standard output; everything else, errors
and logs above all, goes to standard error.
"""

from __future__ import annotations

import importlib
from collections import UserDict
from typing import Any

import rich_click as click

from knapsaq.cli.reporting import DEBUG_VARIABLE, ReportingGroup

__all__ = ["main"]

COMMANDS = {
    "worker": ("worker",),
    "tasks": ("tasks",),
    "enqueue": ("enqueue",),
    "schedules": ("schedules",),
    "looking": ("inspect", "why"),
    "revoke": ("revoke",),
    "ending": ("retry", "discard", "purge"),
    "steering": ("pause", "resume", "strike", "restore", "weigh"),
    "doctor": ("doctor",),
}
"""The commands by their module."""

EXAMPLES = """
knapsaq -A app.queue.config worker --queues default,mail

knapsaq -A app.queue.config tasks

knapsaq -A app.queue.config enqueue send_email to=a@example.com --wait

knapsaq -A app.queue.config schedules list

knapsaq -A app.queue.config inspect parked

knapsaq -A app.queue.config why bZ5qHx4Zr3c8TtVWmLkzaQ

knapsaq -A app.queue.config revoke bZ5qHx4Zr3c8TtVWmLkzaQ

knapsaq -A app.queue.config doctor
"""


class Commands(UserDict[str, Any]):
    """The commands by name; one is imported when it is looked up."""

    def __getitem__(self, name: str) -> click.Command:
        command: click.Command = getattr(importlib.import_module(super().__getitem__(name)), name)
        return command


@click.group(
    cls=ReportingGroup,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "-A",
    "--app",
    metavar="MODULE",
    help="The module whose import defines the tasks, such as app.queue.config; KNAPSAQ_APP unless given.",
)
@click.option("--debug", is_flag=True, envvar=DEBUG_VARIABLE, help="Show the traceback of an error.")
@click.version_option(package_name="knapsaq", prog_name="knapsaq", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context, app: str | None, debug: bool) -> None:  # noqa: ARG001 - ReportingGroup reads `debug`
    """Run tasks, queue them, and look after them."""
    ctx.obj = app


# RichGroup looks up those it is made with.
main.commands = Commands({name: f"{__name__}.{module}" for module, names in COMMANDS.items() for name in names})
