"""Faults that several tests make."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from typing import Any

from tests.chaos.site import PATIENCE, Site


async def dismiss(worker: subprocess.Popen[bytes]) -> float:
    """Send SIGTERM, wait for the end, and return how many seconds that took; fail on any exit code but 0."""
    told = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    code = await asyncio.to_thread(worker.wait, PATIENCE)
    assert code == 0, f"a worker ended with {code}"
    return time.monotonic() - told


async def restart_server(site: Site) -> None:
    """Kill the server and start it again on the same files."""
    await asyncio.to_thread(site.server.kill)
    await asyncio.to_thread(site.server.start)


async def cut_connections(redis: Any) -> None:
    """Cut all other connections of every kind."""
    for kind in ("normal", "pubsub"):
        await redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


async def forget_scripts(redis: Any) -> None:
    """Empty the server's store of scripts and of functions."""
    await redis.script_flush()
    await redis.function_flush()


async def pause(redis: Any, seconds: float) -> None:
    """Let the server answer nobody for a while."""
    await redis.client_pause(int(seconds * 1000))
