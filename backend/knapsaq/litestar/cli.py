"""``litestar workers run``: the workers of an application that has the plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich_click as click

from knapsaq.cli.reporting import ReportingGroup
from knapsaq.cli.worker import run_plan, worker_options
from knapsaq.supervisor import WorkerPlan

if TYPE_CHECKING:
    from knapsaq.litestar.plugin import KnapsaqPlugin


def workers_group(plugin: KnapsaqPlugin) -> click.Group:
    """Return the commands that run the workers of an application.

    Args:
        plugin: The application's, with its settings and registry.
    """

    @click.group("workers", cls=ReportingGroup)
    def workers() -> None:
        """Run the workers of this application's queues."""

    @workers.command("run")
    @worker_options
    @click.pass_context
    def run(ctx: click.Context, queues: tuple[str, ...], concurrency: int | None, workers: int, reload: bool) -> None:
        """Take jobs and run them until Ctrl-C or SIGTERM.

        Running jobs then have KNAPSAQ_SHUTDOWN_GRACE seconds to end; what has not ended is put back and runs again
        later.
        """
        plan = WorkerPlan(
            settings=plugin.registry.prepare(plugin.settings),
            registry=plugin.registry,
            queues=queues or None,
            concurrency=concurrency,
            processes=workers,
            reload=reload,
        )
        ctx.exit(run_plan(plan))

    return workers
