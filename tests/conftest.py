"""A real server for every test that touches storage, and a check that no test leaves a key behind."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import settings as hypothesis

from knapsaq import Client, Queue, Registry, Settings, connect
from knapsaq.redis.embedded import EmbeddedBroker
from knapsaq.redis.keys import FlowKeys
from knapsaq.testing import ManualClock

# No time limits: how long an example takes depends on what else the machine does.
hypothesis.register_profile("untimed", deadline=None)
hypothesis.load_profile("untimed")

# What may outlive a test's jobs: things that end by themselves (they have an expiry) need not be named here.
ENDLESS_KEYS = re.compile(
    rb"saq:[^:]+:(queued|active|incomplete|leases|claims|crashes|flows|dead(:(records|reasons))?"
    rb"|schedules(:(due|fires))?|weights)|saq:job:.*"
)

# What belongs to jobs that have a control and have not ended, or wait because of a strike.
STEERED_KEYS = re.compile(
    rb"saq:([^:]+):(controls|orders|parked|lanes|(ready|lane:.+|slots:.+|unique:.+)( tenants?.*| turns)?)"
)


def pytest_xdist_auto_num_workers() -> int:
    """Three processes for two processors, as most tests wait for something now and then."""
    return max(2, (os.cpu_count() or 1) * 3 // 2)


@pytest.fixture(scope="session")
def broker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a private server that lives as long as the session."""
    broker = EmbeddedBroker(tmp_path_factory.mktemp("broker"))
    yield broker.start()
    broker.stop()


@pytest.fixture
def settings(broker_url: str, tmp_path: Path) -> Settings:
    """Settings that no environment and no .env file of the machine has a say in."""
    return Settings(
        broker_url=broker_url,
        embedded_dir=tmp_path / "embedded",
        queues=("default", "mail"),
        shutdown_grace=5.0,
        _env_file=None,
    )


@pytest.fixture
def registry() -> Registry:
    """An empty registry."""
    return Registry()


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still."""
    return ManualClock()


@pytest.fixture
async def client(settings: Settings, registry: Registry) -> AsyncIterator[Client]:
    """An open connection with an empty server behind it, whose keys are looked at when the test ends."""
    async with connect(settings, registry=registry) as client:
        redis = client.queue().redis
        await redis.flushall()
        yield client
        await check_keys(redis)


@pytest.fixture
async def queue(client: Client) -> Queue:
    """The default queue."""
    return client.queue()


async def check_keys(redis: Any) -> None:
    """Fail on keys that nobody owns and that do not expire; a workflow or a job owns its own until it has ended."""
    flows = [flow async for key in redis.scan_iter(match="saq:*:flows") for flow in await redis.smembers(key)]
    going_on = {key.encode() for flow in flows for key in FlowKeys.of(flow.decode())}
    strays = [
        key
        async for key in redis.scan_iter()
        if key not in going_on
        and await redis.ttl(key) == -1
        and not ENDLESS_KEYS.fullmatch(cast("bytes", key))
        and not await _is_of_open_jobs(redis, key)
    ]
    assert not strays, f"keys without owner or expiry: {strays}"


async def _is_of_open_jobs(redis: Any, key: bytes) -> bool:
    """Tell whether a key is about jobs with a control, all of which have not ended."""
    if not (match := STEERED_KEYS.fullmatch(key)):
        return False
    prefix = f"saq:{match[1].decode()}"
    jobs = [*await redis.hkeys(f"{prefix}:controls"), *await redis.hkeys(f"{prefix}:parked")]
    return bool(jobs) and None not in await redis.zmscore(f"{prefix}:incomplete", jobs)
