"""``knapsaq retry``, ``discard`` and ``purge``: ended jobs run again, dead ones are forgotten, waiting ones end."""

from __future__ import annotations

import rich_click as click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from knapsaq.cli.asking import ask, jobs, queue_option, queues_of
from knapsaq.cli.loading import load
from knapsaq.cli.reporting import note
from knapsaq.client import Client
from knapsaq.looking import Counts
from knapsaq.nodes import place_of
from knapsaq.queue import Queue

MANY = 1000
"""From so many jobs on a purge shows how far it is."""

RETRY_EXAMPLES = """
knapsaq -A app.queue.config retry bZ5qHx4Zr3c8TtVWmLkzaQ

knapsaq -A app.queue.config retry report:7 report:8 --queue mail
"""

DISCARD_EXAMPLES = """
knapsaq -A app.queue.config discard bZ5qHx4Zr3c8TtVWmLkzaQ

knapsaq -A app.queue.config discard report:7 report:8 --queue mail --yes
"""

PURGE_EXAMPLES = """
knapsaq -A app.queue.config purge mail

knapsaq -A app.queue.config purge mail --yes --reason "wrong campaign"
"""


@click.command(epilog=RETRY_EXAMPLES)
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@queue_option("The queue of the jobs; all queues unless given.")
@click.pass_context
def retry(ctx: click.Context, *, keys: tuple[str, ...], queue: str | None) -> None:
    """Queue the jobs of these keys again, which have ended or are dead letters, and print the keys of those.

    They run from their first attempt. The exit code is 1 if a key belongs to no such job.
    """

    async def act(client: Client) -> int:
        queues, missed = queues_of(client, [queue]), 0
        for key in dict.fromkeys(keys):
            answers = [await _again(each, key) for each in queues]
            if "" in answers:
                click.echo(key)
            else:
                note(next((answer for answer in answers if answer), f"there is no job {key!r}"))
                missed += 1
        return 1 if missed else 0

    ctx.exit(ask(load(ctx.obj), act))


@click.command(epilog=DISCARD_EXAMPLES)
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@queue_option("The queue of the dead letters; all queues unless given.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask first.")
@click.pass_context
def discard(ctx: click.Context, *, keys: tuple[str, ...], queue: str | None, yes: bool) -> None:
    """Forget the dead letters of these keys for good, and print the keys of those.

    `inspect dead` lists them. The exit code is 1 if a key has no dead letter.
    """
    app, wanted = load(ctx.obj), tuple(dict.fromkeys(keys))
    if not yes:
        of = f"letter of {wanted[0]!r}" if len(wanted) == 1 else f"letters of {len(wanted):,} keys"
        click.confirm(f"Forget the dead {of} for good?", abort=True, err=True)

    async def act(client: Client) -> int:
        queues, missed = queues_of(client, [queue]), 0
        for key in wanted:
            if sum([await each.discard(key) for each in queues]):
                click.echo(key)
            else:
                note(f"there is no dead letter {key!r}")
                missed += 1
        return 1 if missed else 0

    ctx.exit(ask(app, act))


@click.command(epilog=PURGE_EXAMPLES)
@click.argument("name", metavar="QUEUE")
@click.option("-y", "--yes", is_flag=True, help="Do not ask first.")
@click.option("--reason", default="purged on the command line", show_default=True, help="What the jobs say of it.")
@click.pass_context
def purge(ctx: click.Context, *, name: str, yes: bool, reason: str) -> None:
    """End all jobs of QUEUE that wait, delayed and parked ones included, as aborted; those that run go on."""

    async def look(client: Client) -> Counts:
        return await client.queue(name).counts()

    app = load(ctx.obj)
    counts = ask(app, look)
    waiting = counts.queued + counts.parked + counts.scheduled
    if not waiting:
        note(f"no job waits in queue {name!r}")
        return
    if not yes:
        click.confirm(f"End {jobs(waiting)} waiting in queue {name!r}?", abort=True, err=True)

    async def act(client: Client) -> int:
        with _bar(waiting) as bar:
            line = bar.add_task("", total=waiting)
            return await client.queue(name).purge(
                reason=reason, progress=lambda ended: bar.update(line, completed=min(ended, waiting))
            )

    click.echo(f"{name}: {jobs(ask(app, act))} ended")


async def _again(queue: Queue, key: str) -> str | None:
    """Queue a job again; returns nothing if that was done, why not if it was not, None where there is no such job."""
    if await queue.dead_letter(key):
        return "" if await queue.replay(key) else f"a newer job has the key {key!r} and has not ended"
    job = await queue.job(key)
    if job is None:
        return None
    if not job.ended:
        return f"job {key!r} has not ended: it is {job.status.value}"
    await job.retry()
    if place_of(key):
        note(f"{key} is a step of workflow {job.root_id}, which does not go on by that; its retry_failed() does")
    return ""


def _bar(total: int) -> Progress:
    """Return what shows how far it is, to people and where it takes long."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("ended"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=total < MANY or not console.is_terminal)
