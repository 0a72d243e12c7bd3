"""Asking: one question to the queues of an application, and how its answer is shown."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import rich_click as click

from knapsaq.cli.loading import App
from knapsaq.client import Client, connect
from knapsaq.queue import Queue

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def ask(app: App, question: Callable[[Client], Awaitable[T]]) -> T:
    """Return what a connection of an application answers.

    Raises:
        BrokerError: The broker cannot be reached.
    """

    async def asked() -> T:
        async with connect(app.settings, registry=app.registry) as client:
            return await question(client)

    return asyncio.run(asked())


def queues_of(client: Client, names: Iterable[str | None]) -> list[Queue]:
    """Return the queues of these names, each once; all where none is named.

    Raises:
        UnknownQueueError: One is not connected.
    """
    given = dict.fromkeys(name for name in names if name is not None)
    return [client.queue(name) for name in given] or list(client.queues.values())


def jobs(number: int) -> str:
    """Return a number of jobs in words."""
    return "1 job" if number == 1 else f"{number:,} jobs"


def queue_option(text: str) -> Callable[[F], F]:
    """Return the option that names one queue."""
    return click.option("--queue", metavar="NAME", help=text)


def json_option(command: F) -> F:
    """Add the option for programs that read the answer."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)
