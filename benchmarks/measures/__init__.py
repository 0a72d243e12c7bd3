"""Measures: what is measured of a system, each a function of a bench and a system that returns figures by key."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.bench import Bench
from benchmarks.measures.backlog import backlog
from benchmarks.measures.drains import drain, drain_of_10, drain_of_100, drain_of_two, drain_on_disk
from benchmarks.measures.resting import idle, parked, scheduled, start
from benchmarks.measures.sending import enqueue
from benchmarks.measures.waiting import apply, fan, flow, latency
from benchmarks.systems import System

MEASURES: dict[str, Callable[[Bench, System], dict[str, float]]] = {
    "drain": drain,
    "drain-100": drain_of_100,
    "drain-10": drain_of_10,
    "drain-two": drain_of_two,
    "aof": drain_on_disk,
    "enqueue": enqueue,
    "latency": latency,
    "apply": apply,
    "fan": fan,
    "flow": flow,
    "idle": idle,
    "schedules": scheduled,
    "parked": parked,
    "backlog": backlog,
    "start": start,
}
