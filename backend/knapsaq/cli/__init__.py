"""The command line: ``knapsaq -A MODULE COMMAND``.

Each command is a module of its own. A command imports the application, does one
thing with it, and prints the result to standard output; everything else, errors
and logs above all, goes to standard error.
"""

from __future__ import annotations

import rich_click as click

from knapsaq.cli.doctor import doctor
from knapsaq.cli.ending import purge, retry
from knapsaq.cli.enqueue import enqueue
from knapsaq.cli.looking import inspect, why
from knapsaq.cli.reporting import DEBUG_VARIABLE, ReportingGroup
from knapsaq.cli.revoke import revoke
from knapsaq.cli.schedules import schedules
from knapsaq.cli.steering import pause, restore, resume, strike, weigh
from knapsaq.cli.tasks import tasks
from knapsaq.cli.worker import worker

__all__ = ["main"]

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


@click.group(cls=ReportingGroup, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
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


for command in (
    *(worker, tasks, enqueue, schedules),
    *(inspect, why, revoke, retry, purge),
    *(pause, resume, strike, restore, weigh),
    doctor,
):
    main.add_command(command)
