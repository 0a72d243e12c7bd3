"""An application with the plugin."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from litestar import Litestar

from knapsaq import Client, Registry, Settings
from knapsaq.litestar import KnapsaqPlugin

Serve = Callable[..., Any]


@asynccontextmanager
async def served(app: Litestar, **transport: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an application in this event loop; Litestar's own test client runs one in a thread with another loop."""
    async with (
        app.lifespan(),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app, **transport), base_url="http://shop.test") as http,
    ):
        yield http


@pytest.fixture
def serve(settings: Settings, registry: Registry, client: Client) -> Serve:
    """Serve an application with these route handlers while a block runs; options are the plugin's, or Litestar's."""

    @asynccontextmanager
    async def serve(
        *handlers: Any, app: dict[str, Any] | None = None, **plugin: Any
    ) -> AsyncIterator[httpx.AsyncClient]:
        made = KnapsaqPlugin(plugin.pop("settings", settings), registry=registry, **plugin)
        async with served(Litestar(list(handlers), plugins=[made], logging_config=None, **(app or {}))) as http:
            yield http

    return serve
