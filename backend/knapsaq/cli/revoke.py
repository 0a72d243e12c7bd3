"""``knapsaq revoke``: end jobs by hand."""

from __future__ import annotations

import asyncio

import rich_click as click

from knapsaq.cli.loading import App, load
from knapsaq.cli.reporting import note
from knapsaq.client import connect

EXAMPLES = """
knapsaq -A app.queue.config revoke bZ5qHx4Zr3c8TtVWmLkzaQ

knapsaq -A app.queue.config revoke report:7 report:8 --queue mail --terminate --reason "wrong month"
"""


@click.command(epilog=EXAMPLES)
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@click.option("--queue", metavar="NAME", help="The queue of the jobs; all queues unless given.")
@click.option("--terminate", is_flag=True, help="Kill processes and leave threads behind at once.")
@click.option("--reason", default="revoked on the command line", show_default=True, help="What the jobs say of it.")
@click.pass_context
def revoke(ctx: click.Context, *, keys: tuple[str, ...], queue: str | None, terminate: bool, reason: str) -> None:
    """End the jobs of these keys, those that run included, and print the keys of those that had not ended.

    The exit code is 1 if a key belongs to no such job.
    """
    ctx.exit(asyncio.run(_revoke(load(ctx.obj), dict.fromkeys(keys), queue, terminate, reason)))


async def _revoke(app: App, keys: dict[str, None], queue: str | None, terminate: bool, reason: str) -> int:
    async with connect(app.settings, registry=app.registry) as client:
        queues = list(client.queues.values()) if queue is None else [client.queue(queue)]
        revoked = {key for each in queues for key in await each.revoke(keys, terminate=terminate, reason=reason)}
    for key in keys:
        if key in revoked:
            click.echo(key)
        else:
            note(f"there is no job {key!r} that has not ended")
    return 0 if len(revoked) == len(keys) else 1
