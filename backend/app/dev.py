"""The development server: API, worker and mail sink together; ``make dev``.

Each line of output is marked with its process' name. A change below ``backend/``
starts API and worker again. One Ctrl-C ends all.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text
from watchfiles import PythonFilter, awatch

from app.processes import (
    BACKEND,
    WORKER,
    Processes,
    api_command,
    cancelled_by_signals,
    environment,
    is_free,
    running,
    smtp_command,
)

COLOURS = {"api": "cyan", "worker": "green", "mail": "magenta", "dev": "yellow"}
GRACE = 5
"""Seconds that running jobs get at a reload; unless ``KNAPSAQ_SHUTDOWN_GRACE`` says otherwise."""

console = Console(highlight=False, soft_wrap=True)


def show(name: str, line: str) -> None:
    """Print one line of a process' output."""
    console.print(Text.assemble((f"{name:>6} | ", COLOURS[name]), line))


def development_environment(port: int, smtp_port: int) -> dict[str, str]:
    """Return the environment of the processes; what is set already stays."""
    defaults = {
        "APP_DEBUG": "true",
        "APP_SANDBOX": "true",
        "APP_SMTP_PORT": str(smtp_port),
        "APP_PAYMENTS_URL": f"http://127.0.0.1:{port}/sandbox",
        "KNAPSAQ_SHUTDOWN_GRACE": str(GRACE),
    }
    return environment(**{name: os.environ.get(name, value) for name, value in defaults.items()})


async def develop(options: argparse.Namespace) -> None:
    """Run everything until it is cancelled."""
    env = development_environment(options.port, options.smtp_port)
    async with running(show, float(env["KNAPSAQ_SHUTDOWN_GRACE"]) + 5) as processes:
        await processes.start("mail", smtp_command(options.smtp_port, options.mail_dir), env)
        await _start(processes, options.port, env)
        show(
            "dev", f"API http://127.0.0.1:{options.port} (/schema, /saq), mails in {options.mail_dir}; Ctrl-C ends all"
        )
        async for changes in awatch(options.watch, watch_filter=PythonFilter()):
            changed = sorted(Path(path).name for _, path in changes)
            show("dev", f"{', '.join(changed[:3])}{' and more' if len(changed) > 3 else ''} changed: starting again")  # noqa: PLR2004
            await processes.stop("worker", "api")
            await _start(processes, options.port, env)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the development server from the command line."""
    parser = argparse.ArgumentParser(prog="python -m app.dev", description="API, worker and mail sink, with reload.")
    parser.add_argument("--port", type=int, default=8000, help="the API's port (8000)")
    parser.add_argument("--smtp-port", type=int, default=1025, help="the mail sink's port (1025)")
    parser.add_argument("--mail-dir", type=Path, default=Path(".knapsaq/mails"), help="where the mails go")
    parser.add_argument("--watch", type=Path, default=BACKEND, help="the folder whose changes start it again")
    options = parser.parse_args(arguments)
    for option, port in (("--port", options.port), ("--smtp-port", options.smtp_port)):
        if not is_free(port):
            parser.exit(1, f"port {port} is taken; choose another: make dev ARGS='{option} {port + 1}'\n")
    try:
        asyncio.run(_until_signal(options))
    except asyncio.CancelledError:
        show("dev", "ended")
    return 0


async def _until_signal(options: argparse.Namespace) -> None:
    with cancelled_by_signals():
        await develop(options)


async def _start(processes: Processes, port: int, env: Mapping[str, str]) -> None:
    await processes.start("api", api_command(port), env)
    await processes.start("worker", WORKER, env)


if __name__ == "__main__":
    sys.exit(main())
