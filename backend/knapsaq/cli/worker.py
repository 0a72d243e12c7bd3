"""``knapsaq worker``: take jobs and run them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import rich_click as click

from knapsaq.cli.loading import load
from knapsaq.cli.reporting import set_up_logging
from knapsaq.errors import UnknownQueueError
from knapsaq.supervisor import WorkerPlan, run

F = TypeVar("F", bound=Callable[..., Any])

MOST_PROCESSES = 256


def split_queues(_ctx: click.Context, _parameter: click.Parameter, given: Sequence[str]) -> tuple[str, ...]:
    """Return names that were given with commas, one by one, or both; each once."""
    names = (name.strip() for text in given for name in text.split(","))
    found = tuple(dict.fromkeys(name for name in names if name))
    if given and not found:
        raise click.BadParameter("it names no queue; leave it out to serve all")
    return found


def worker_options(command: F) -> F:
    """Add the options that every command which runs workers takes."""
    options = (
        click.option(
            "-q",
            "--queues",
            multiple=True,
            callback=split_queues,
            metavar="NAME[,NAME]",
            help="The queues to take jobs from; all of KNAPSAQ_QUEUES unless given.",
        ),
        click.option(
            "-c",
            "--concurrency",
            type=click.IntRange(1, 10_000),
            help="How many jobs of each queue a process runs at once; KNAPSAQ_CONCURRENCY unless given.",
        ),
        click.option(
            "-w",
            "--workers",
            type=click.IntRange(1, MOST_PROCESSES),
            default=1,
            show_default=True,
            help="How many processes.",
        ),
        click.option("--reload", is_flag=True, help="Start again when a Python file below this directory changes."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def run_plan(plan: WorkerPlan) -> int:
    """Run workers and return the exit code.

    Raises:
        UnknownQueueError: A queue is not one of the settings'.
        KnapsaqError: A worker cannot start.
    """
    for name in plan.queues or ():
        if name not in plan.settings.queues:
            raise UnknownQueueError(name, plan.settings.queues)
    set_up_logging(plan.settings.log_level)
    return run(plan)


EXAMPLES = """
knapsaq -A app.queue.config worker

knapsaq -A app.queue.config worker --queues mail,reports --concurrency 50 --workers 2

knapsaq -A app.queue.config worker --reload
"""


@click.command(epilog=EXAMPLES)
@worker_options
@click.pass_context
def worker(ctx: click.Context, queues: tuple[str, ...], concurrency: int | None, workers: int, reload: bool) -> None:
    """Take jobs and run them until Ctrl-C or SIGTERM.

    It then takes no more jobs and gives the running ones KNAPSAQ_SHUTDOWN_GRACE seconds to end; what has not ended is
    put back and runs again later. A second Ctrl-C does not wait.
    """
    app = load(ctx.obj)
    plan = WorkerPlan(
        settings=app.settings,
        registry=app.registry,
        queues=queues or app.queues,
        name=app.worker_name,
        concurrency=concurrency,
        processes=workers,
        reload=reload,
    )
    ctx.exit(run_plan(plan))
