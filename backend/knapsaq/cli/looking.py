"""``knapsaq inspect`` and ``knapsaq why``: where jobs are, and what they wait for."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

import rich_click as click
from rich.table import Table
from rich.text import Text

from knapsaq.cli.asking import ask, jobs, json_option, queue_option, queues_of
from knapsaq.cli.loading import load
from knapsaq.cli.reporting import note, output, print_json
from knapsaq.client import Client
from knapsaq.dead_letters import DeadJob
from knapsaq.looking import MAX_PAGE, Counts, OpenJob, Place
from knapsaq.queue import Queue
from knapsaq.reasons import Reason
from knapsaq.timing import from_ms

PLACES = ("queued", "active", "scheduled", "parked", "dead")
SHOWN_JOBS = 50
COLUMNS: dict[str, tuple[tuple[str, str], ...]] = {
    "active": (("worker", "Worker"),),
    "scheduled": (("due", "Due"),),
    "parked": (("why", "Why"),),
    "dead": (("attempts", "Attempts"), ("crashes", "Crashes"), ("why", "Why")),
}
"""What the jobs of a place have beside what all have: the field of a row, and its title."""
SINCE = {"active": "Started", "dead": "Died"}
LANES = {"r": "the rate limit {!r}", "c": "a slot of {!r}", "s": "the end of a strike"}
UNITS = (("d", 86_400), ("h", 3600), ("min", 60))

INSPECT_EXAMPLES = """
knapsaq -A app.queue.config inspect

knapsaq -A app.queue.config inspect active --queue mail

knapsaq -A app.queue.config inspect parked --limit 10 --json
"""

WHY_EXAMPLES = """
knapsaq -A app.queue.config why bZ5qHx4Zr3c8TtVWmLkzaQ
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One job as it is shown."""

    key: str
    task: str | None
    queue: str
    since: datetime | None
    due: datetime | None = None
    worker: str | None = None
    lane: str | None = None
    why: str | None = None
    attempts: int | None = None
    crashes: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a queue stands."""

    name: str
    counts: Counts
    paused_since: datetime | None
    strikes: int
    workers: int

    @property
    def words(self) -> str:
        """What an operator has to know of it beside the numbers."""
        parts = [f"paused since {_utc(self.paused_since)}"] if self.paused_since else []
        parts += [f"{self.strikes} strike{'s' if self.strikes > 1 else ''}"] if self.strikes else []
        parts += [] if self.workers else ["no worker"]
        return "; ".join(parts)

    @property
    def numbers(self) -> str:
        """Its counts in words."""
        counted = ", ".join(f"{getattr(self.counts, place):,} {place}" for place in PLACES)
        return f"{self.name}: {counted}{f'; {self.words}' if self.words else ''}"


@click.command(epilog=INSPECT_EXAMPLES)
@click.argument("place", required=False, type=click.Choice(PLACES), metavar=f"[{'|'.join(PLACES)}]")
@queue_option("The queue; all queues unless given.")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(1, MAX_PAGE),
    default=SHOWN_JOBS,
    show_default=True,
    help="How many jobs of each queue are shown.",
)
@json_option
@click.pass_context
def inspect(ctx: click.Context, *, place: str | None, queue: str | None, limit: int, as_json: bool) -> None:
    """List the jobs that wait (queued), run (active), are due later (scheduled), wait for a limit (parked) or are dead.

    Without a word it shows the numbers of each queue. Arguments of jobs are never shown.
    """

    async def look(client: Client) -> tuple[list[Row], list[Standing]]:
        queues = queues_of(client, [queue])
        rows = [row for each in queues for row in (await _rows(each, place, limit) if place else ())]
        return rows, [await _standing(each) for each in queues]

    rows, standings = ask(load(ctx.obj), look)
    if as_json:
        print_json({"jobs": [_plain(row) for row in rows], "queues": [_plain(one) for one in standings]})
    elif place is None:
        _print_standings(standings)
    else:
        _print_rows(place, rows, standings)


@click.command(epilog=WHY_EXAMPLES)
@click.argument("key")
@queue_option("The queue of the job; all queues unless given.")
@json_option
@click.pass_context
def why(ctx: click.Context, *, key: str, queue: str | None, as_json: bool) -> None:
    """Say what the job KEY waits for, the most telling reason first.

    The exit code is 1 if there is no such job.
    """

    async def look(client: Client) -> list[tuple[str, list[Reason], DeadJob | None]]:
        found = []
        for each in queues_of(client, [queue]):
            job, letter = await each.job(key), await each.dead_letter(key)
            if job is not None or letter is not None:
                found.append((each.name, await job.why() if job else [], letter))
        return found

    found = ask(load(ctx.obj), look)
    if as_json:
        print_json(
            [
                {"queue": name, "reasons": [_plain(reason) for reason in reasons], "dead": letter and letter.reason}
                for name, reasons, letter in found
            ]
        )
    for name, reasons, letter in () if as_json else found:
        place = f"{name}: " if len(found) > 1 else ""
        for reason in reasons:
            click.echo(f"{place}{reason}")
        if letter is not None:
            since, what = _utc(letter.died_at), "`retry` replays it, `discard` forgets it"
            click.echo(f"{place}it is a dead letter since {since}: {letter.reason}; {what}")
    if not found:
        note(f"there is no job {key!r}")
    ctx.exit(0 if found else 1)


def lane_words(lane: str) -> str:
    """Return what the jobs of a lane wait for."""
    kind, _, name = lane.partition(":")
    return LANES.get(kind, "a limit").format(name)


async def _rows(queue: Queue, place: str, limit: int) -> list[Row]:
    if place == "dead":
        return [
            Row(
                key=one.key,
                task=one.function,
                queue=queue.name,
                since=one.died_at,
                why=one.reason,
                attempts=one.attempts,
                crashes=one.crashes,
            )
            for one in await queue.dead(limit=limit)
        ]
    found = await queue.open_jobs(cast("Place", place), limit=limit)
    reasons = await asyncio.gather(*(_reason(one) for one in found))
    rows = [_row(queue.name, one, reason) for one, reason in zip(found, reasons, strict=True)]
    return sorted(rows, key=lambda row: (row.since is None, row.since)) if place == "parked" else rows


async def _reason(one: OpenJob) -> str | None:
    """Return what a parked job waits for; None for others."""
    if one.lane is None:
        return None
    if one.job is None:
        return f"it waits for {lane_words(one.lane)}"
    return str((await one.job.why())[0])


def _row(queue: str, one: OpenJob, reason: str | None) -> Row:
    since_ms = 0 if one.job is None else one.job.started if one.place == "active" else one.job.queued
    return Row(
        key=one.key,
        task=one.job.function if one.job else None,
        queue=queue,
        since=from_ms(since_ms) if since_ms else None,
        due=one.due,
        worker=one.worker,
        lane=one.lane,
        why=reason,
    )


async def _standing(queue: Queue) -> Standing:
    return Standing(
        name=queue.name,
        counts=await queue.counts(),
        paused_since=await queue.paused_since(),
        strikes=len(await queue.strikes()),
        workers=len((await queue.info())["workers"]),
    )


def _print_standings(standings: Sequence[Standing]) -> None:
    table = Table("Queue", *(place.title() for place in PLACES), "Workers", "State")
    for one in standings:
        numbers = [f"{getattr(one.counts, place):,}" for place in PLACES]
        table.add_row(*map(Text, (one.name, *numbers, str(one.workers), one.words)))
    output().print(table)


def _print_rows(place: str, rows: Sequence[Row], standings: Sequence[Standing]) -> None:
    if rows:
        columns = COLUMNS.get(place, ())
        table = Table("Key", "Task", "Queue", SINCE.get(place, "Since"), *(title for _, title in columns))
        for row in rows:
            further = (_cell(getattr(row, field)) for field, _ in columns)
            cells = (row.key, row.task or "(cannot be read)", row.queue, _moment(row.since), *further)
            table.add_row(*map(Text, cells))
        output().print(table)
    else:
        note(f"no job is {place}")
    for one in standings:
        shown, there = sum(row.queue == one.name for row in rows), getattr(one.counts, place)
        click.echo(one.numbers + (f"; {jobs(shown)} shown" if shown < there else ""))


def _cell(value: datetime | int | str | None) -> str:
    """Return a field of a row in words."""
    return "" if value is None else _moment(value) if isinstance(value, datetime) else str(value)


def _moment(moment: datetime | None) -> str:
    """Return a moment, and how far away it is."""
    if moment is None:
        return ""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    away = abs(seconds)
    unit, size = next((unit for unit in UNITS if away >= unit[1]), ("s", 1))
    number = f"{int(away // size)} {unit}"
    return f"{_utc(moment)} ({f'{number} ago' if seconds >= 0 else f'in {number}'})"


def _utc(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _plain(value: Any) -> Any:
    """Return what is shown as JSON types."""
    return {
        field.name: _plain(item) if dataclasses.is_dataclass(item := getattr(value, field.name)) else item
        for field in dataclasses.fields(value)
    }
