"""Faults 42 and 44: pages of jobs, and keys in a cluster."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from redis.crc import key_slot
from saq.job import Status
from tests.saq.conftest import Program


class TestPages:
    async def test_the_second_page_follows_the_first(self, saq_or_ours: Program) -> None:
        """Fault 42: SAQ takes the limit for the place of the last, so every page but the first is short or empty."""
        queue = saq_or_ours.queue()
        for number in range(25):
            await saq_or_ours.job(queue, key=f"{number:02}", scheduled=4_000_000_000 + number)
        pages = [(await queue.info(jobs=True, offset=start, limit=10))["jobs"] for start in (0, 10, 20, 30)]
        assert [[job["key"] for job in page] for page in pages] == [
            [f"{number:02}" for number in range(start, min(start + 10, 25))] for start in (0, 10, 20, 30)
        ]


class TestCluster:
    async def test_all_keys_of_a_queue_in_braces_are_in_one_slot(self, saq_or_ours: Program) -> None:
        """Fault 44: SAQ's mark of an abort has a slot of its own, so a cluster refuses to enqueue at all."""
        queue = saq_or_ours.queue("{mail}")
        seen: set[bytes] = set()
        async with saq_or_ours.redis.monitor() as monitor:
            listening = asyncio.create_task(self._listen(monitor, seen))
            async with saq_or_ours.working(queue):
                pass
            for key in ("one", "two", "three"):
                await saq_or_ours.job(queue, key=key)
            job = await saq_or_ours.begin(queue)
            await job.retry("again")
            await (await saq_or_ours.begin(queue)).finish(Status.COMPLETE)
            await (await saq_or_ours.begin(queue)).abort("enough")
            await queue.sweep(abort=0.01)
            await queue.schedule()
            await saq_or_ours.redis.echo("that was all")
            await listening
        assert seen
        assert {key for key in seen if key_slot(key) != key_slot(b"{mail}")} == set()

    async def _listen(self, monitor: Any, keys: set[bytes]) -> None:
        """Note the keys that scripts are given, until somebody says that that was all."""
        while True:
            command = await monitor.next_command()
            words = command["command"].split(" ")
            if words[0].upper() == "ECHO":
                return
            if words[0].upper() in ("EVALSHA", "EVAL"):
                with suppress(ValueError):
                    keys.update(word.encode() for word in words[3 : 3 + int(words[2])])
            elif words[0].upper() in ("SET", "SETEX", "GET", "DEL", "LREM", "ZADD"):
                keys.add(words[1].encode())
