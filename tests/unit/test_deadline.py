"""The moment at which an attempt is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from knapsaq.deadline import Deadline


class TestClose:
    async def test_a_deadline_that_has_cancelled_its_task_says_so_once(self) -> None:
        """Whoever closes it a second time takes no other cancellation back."""
        task = asyncio.current_task()
        assert task is not None
        deadline = Deadline(0.001)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(10)
        task.cancel()  # by somebody else, meanwhile
        assert task.cancelling() == 2
        deadline.close()
        deadline.close()
        assert task.cancelling() == 1
        task.uncancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)

    async def test_a_deadline_that_was_met_cancels_nobody(self) -> None:
        """Neither before its end nor after."""
        deadline = Deadline(0.001)
        assert not deadline.close()
        await asyncio.sleep(0.01)
