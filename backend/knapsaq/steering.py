"""Steering: what operators do to a whole queue while it runs.

Where in the flow: a paused queue gives no jobs out; a struck task's jobs are parked as they come to be taken; a
tenant's weight says how much of the queue it gets beside others. The scripts look at all three with each call, so they
count at once in the whole fleet.

Invariants, each a test in ``tests/redis/test_steering.py``:

* nothing begins once ``pause`` has returned, and nothing is lost meanwhile;
* a struck job waits, costs no slot, and runs once its strike is taken back;
* weights count from the next job on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any

import msgspec

from knapsaq.claims import ClaimingQueue
from knapsaq.codec import SECRET
from knapsaq.environment import HIDDEN
from knapsaq.errors import OptionError, nearest
from knapsaq.redis import scripts
from knapsaq.redis.connection import broker_errors
from knapsaq.redis.line import text
from knapsaq.timing import from_ms

Scalar = str | int | float | bool
"""A value of an argument that a strike can name."""

EXACT = 2**53  # numbers beyond it are not told apart by the scripts
RESTORED_A_CALL = 500
LOOKED_AT_ONCE = 1000
MAX_WEIGHT = 1_000_000


@dataclass(frozen=True, slots=True)
class Strike:
    """A task whose jobs do not run, or those alone whose argument has a value.

    Attributes:
        task: The task's name.
        parameter: The name of its parameter; None strikes all of its jobs.
        value: The argument's value as JSON has it.
    """

    task: str
    parameter: str | None = None
    value: Scalar | None = None

    def __repr__(self) -> str:
        names = "" if self.parameter is None else f", {self.parameter!r}, {self.shown!r}"
        return f"Strike({self.task!r}{names})"

    @property
    def shown(self) -> Scalar | None:
        """The value as it may be shown: hidden where the parameter's name sounds secret."""
        return HIDDEN if self.parameter and SECRET.search(self.parameter) else self.value

    @property
    def id(self) -> str:
        """What it is stored under; the same for equal strikes."""
        return blake2b(self._rule, digest_size=8).hexdigest()

    @property
    def _rule(self) -> bytes:
        rule: dict[str, Any] = {"task": self.task}
        if self.parameter is not None:
            rule |= {"parameter": self.parameter, "value": self.value}
        return msgspec.json.encode(rule)


class SteeringQueue(ClaimingQueue):
    """SAQ's queue with claims, and what operators do to it; ``Queue`` is the whole."""

    async def pause(self) -> None:
        """Give out no more jobs, in the whole fleet at once, until ``resume``; those that run go on.

        Jobs are accepted meanwhile, and schedules fire.

        Raises:
            BrokerError: Redis cannot be reached.
        """
        with broker_errors(self.settings.broker_url):
            await self.line.execute("SET", self.keys.paused, self.now_ms())

    async def resume(self) -> bool:
        """Give out jobs again; returns whether the queue was paused.

        Raises:
            BrokerError: Redis cannot be reached.
        """
        with broker_errors(self.settings.broker_url):
            was_paused = bool(await self.line.execute("DEL", self.keys.paused))
            await self.line.execute("PUBLISH", self.keys.wake, "resumed")
        return was_paused

    async def is_paused(self) -> bool:
        """Tell whether the queue is paused."""
        with broker_errors(self.settings.broker_url):
            return bool(await self.line.execute("EXISTS", self.keys.paused))

    async def paused_since(self) -> datetime | None:
        """Return when the queue was paused; None if it is not."""
        with broker_errors(self.settings.broker_url):
            paused_ms = await self.line.execute("GET", self.keys.paused)
        return None if paused_ms is None else from_ms(int(paused_ms))

    async def strike(self, task: str, /, **argument: Scalar) -> Strike:
        """Let the jobs of a task wait until ``restore``, or those alone whose argument has a value.

        It counts at once in the whole fleet for all jobs of this queue that have not begun, queued ones included.

        Args:
            task: The task's name. One that is not known here is not checked, as another program may have it.
            argument: Nothing, or one parameter and its value as JSON has it: text, a number, true or false.

        Raises:
            OptionError: There are several arguments, the value is none of these, or the task has no such parameter.
            BrokerError: Redis cannot be reached.
        """
        strike = _strike(task, argument)
        known = self.registry.find(task) if self.registry else None
        if known and strike.parameter and not (known.signature.open_ended or strike.parameter in known.parameters):
            expected = f"the name of a parameter: {nearest(strike.parameter, known.parameters)}"
            raise OptionError(f"strike() of task {task!r}", "argument", strike.parameter, expected)
        with broker_errors(self.settings.broker_url):
            await self.line.execute("HSET", self.keys.strikes, strike.id, strike._rule)  # noqa: SLF001
        return strike

    async def restore(self, task: str, /, **argument: Scalar) -> bool:
        """Take a strike back: its jobs may run, behind those that wait already.

        Args:
            task: The task's name, as in ``strike``.
            argument: The same argument, if any.

        Returns:
            Whether there was such a strike.

        Raises:
            OptionError: See ``strike``.
            BrokerError: Redis cannot be reached.
        """
        strike = _strike(task, argument)
        with broker_errors(self.settings.broker_url):
            known = bool(await self.line.execute("HEXISTS", self.keys.strikes, strike.id))
            args = [self.now_argument, strike.id, RESTORED_A_CALL]
            while await scripts.restore(self.line, [self.keys.incomplete], args):
                pass
        return known

    async def strikes(self) -> list[Strike]:
        """Return the strikes that count now."""
        with broker_errors(self.settings.broker_url):
            found = await self.line.execute("HVALS", self.keys.strikes)
        return [msgspec.json.decode(rule, type=Strike) for rule in found]

    async def weigh(self, tenant: str, weight: float) -> None:
        """Set a tenant's share of the queue: with 2 it gets twice as many jobs run as one with 1, which is the default.

        Args:
            tenant: What ``fair_key`` gives for it; the empty text is all jobs without a tenant.
            weight: Above 0, at most a million.

        Raises:
            OptionError: They are none of these.
            BrokerError: Redis cannot be reached.
        """
        given: Any = weight
        if not isinstance(tenant, str):
            raise OptionError("weigh()", "tenant", tenant, "the text that fair_key gives for a tenant")
        if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given <= MAX_WEIGHT:
            raise OptionError("weigh()", "weight", weight, f"a number above 0, at most {MAX_WEIGHT:,}")
        with broker_errors(self.settings.broker_url):
            if weight == 1:
                await self.line.execute("HDEL", self.keys.weights, tenant)
            else:
                await self.line.execute("HSET", self.keys.weights, tenant, repr(float(weight)))

    async def weights(self) -> Mapping[str, float]:
        """Return the weights that were set, by tenant; all others have 1."""
        with broker_errors(self.settings.broker_url):
            found = await self.line.execute("HGETALL", self.keys.weights)
        return {text(name): float(weight) for name, weight in zip(found[::2], found[1::2], strict=True)}


class Tidier:
    """Looks after jobs with a control that ended, or lanes that were left, outside of our scripts.

    Each turn looks at some thousand of them, in one call.
    """

    def __init__(self, queue: ClaimingQueue) -> None:
        self._queue = queue
        self._cursors = [0, 0]

    async def run_once(self) -> int:
        """Return how many jobs were forgotten."""
        args = [self._queue.now_argument, LOOKED_AT_ONCE, *self._cursors]
        forgotten, *self._cursors = await scripts.tidy(self._queue.line, [self._queue.keys.incomplete], args)
        return int(forgotten)


def _strike(task: Any, argument: Mapping[str, Any]) -> Strike:
    if not isinstance(task, str):
        raise OptionError("strike()", "task", task, "the name of a task")
    if not argument:
        return Strike(task)
    if len(argument) > 1:
        raise OptionError("strike()", "argument", sorted(argument), "one argument, or none")
    [(parameter, value)] = argument.items()
    is_exact = isinstance(value, (str, bool)) or (isinstance(value, (int, float)) and abs(value) < EXACT)
    if not is_exact:
        raise OptionError("strike()", parameter, value, "text, a number below 2**53, True or False, as JSON has it")
    return Strike(task, parameter, value)
