"""Slots: a job's place among those that its worker runs at once, which it gives up while it waits for other jobs.

Where in the flow: whoever waits for a job or a workflow inside a task comes by here. To hold the slot would lock a
worker up whose jobs all wait for jobs that only it could run; to refuse would forbid what is often right. So the slot
goes to another job meanwhile. The one that has waited goes on at once, so that for a moment there may be one more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Slots:
    """The slots of one worker.

    Args:
        on_freed: Called when there is room for another job.

    Attributes:
        freed: How many jobs wait for others, less what runs for several of them at once.
    """

    def __init__(self, on_freed: Callable[[], object]) -> None:
        self.freed = 0
        self._on_freed = on_freed

    def enter(self) -> Slot:
        """Give the code that runs from here on, and all tasks that it starts, a slot."""
        slot = Slot(self)
        _current.set(slot)
        return slot

    def give(self) -> None:
        """Take back what a job gives up."""
        self.freed += 1
        self._on_freed()


class Slot:
    """One job's slot; several parts of a job may wait at once, and some after its end."""

    __slots__ = ("left", "slots", "waiting")

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.waiting = 0
        self.left = False

    def leave(self) -> None:
        """Give it back for good, as the job has ended; whoever goes on in its name has none to give up."""
        self.left = True
        if self.waiting:
            self.slots.freed -= 1


class SharedSlot(Slot):
    """A slot of what runs in the name of several jobs, which have all given up theirs; it is taken at once."""

    __slots__ = ()

    def __init__(self, slots: Slots) -> None:
        super().__init__(slots)
        slots.freed -= 1

    def enter(self) -> None:
        """Give it to the code that runs from here on, and to all tasks that it starts."""
        _current.set(self)

    def leave(self) -> None:
        """Give it back for good; a second time does nothing."""
        if not self.left:
            super().leave()
            self.slots.give()


_current: ContextVar[Slot | None] = ContextVar("slot", default=None)


def slots_here() -> Slots | None:
    """Return the slots of the worker that runs this code, if there is one."""
    slot = _current.get()
    return None if slot is None else slot.slots


@contextmanager
def given_up() -> Iterator[None]:
    """Give up the slot of the job that runs here, if any, while the block runs."""
    slot = _current.get()
    if slot is None or slot.left:
        yield
        return
    slot.waiting += 1
    if slot.waiting == 1:
        slot.slots.give()
    try:
        yield
    finally:
        slot.waiting -= 1
        if not slot.waiting and not slot.left:
            slot.slots.freed -= 1
