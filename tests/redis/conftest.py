"""The tasks that most tests of storage and running use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.support import eventually

from knapsaq import Registry, Task


@pytest.fixture
def echo(registry: Registry) -> Task[..., Any, Any]:
    """A task that gives back what it is given."""

    @registry.task
    async def echo(text: str) -> str:
        return text

    return echo


class Gate:
    """A task ``held`` whose jobs begin and then wait until the test lets them go.

    Attributes:
        begun: The ids of the jobs that have begun, once for each attempt.
        ended: The ids of the jobs whose function has returned.
        most: How many were inside at once, at most.
    """

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.most = 0
        self._inside = 0
        self._opened = asyncio.Event()

    def open(self) -> None:
        """Let all jobs go, now and from now on."""
        self._opened.set()

    async def run(self, key: str) -> str:
        """Note that a job is inside, and wait."""
        self.begun.append(key)
        self._inside += 1
        self.most = max(self.most, self._inside)
        try:
            await self._opened.wait()
        finally:
            self._inside -= 1
        self.ended.append(key)
        return "let go"

    async def entered(self, times: int = 1) -> None:
        """Wait until so many attempts have begun."""
        await eventually(lambda: len(self.begun) >= times)


@pytest.fixture
async def gate(registry: Registry) -> AsyncIterator[Gate]:
    """The gate before the task ``held``; it is opened when the test ends."""
    gate = Gate()

    @registry.task(retries=2)
    async def held(ctx: dict[str, Any]) -> str:
        return await gate.run(ctx["job"].key)

    yield gate
    gate.open()
