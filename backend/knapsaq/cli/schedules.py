"""``knapsaq schedules``: look at the schedules, and change them while everything runs."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import msgspec
import rich_click as click
from rich.table import Table
from rich.text import Text

from knapsaq.cli.enqueue import read_document, read_pairs, read_texts
from knapsaq.cli.loading import App, load
from knapsaq.cli.reporting import note, output, print_json
from knapsaq.client import connect
from knapsaq.codec import SECRET
from knapsaq.editing import Schedules
from knapsaq.entries import ScheduleEntry, ScheduleFire
from knapsaq.environment import HIDDEN
from knapsaq.schedules import MISFIRES
from knapsaq.task import Task

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
SHOWN_NEXT = 5
OVERDUE = timedelta(seconds=5)
"""How long a worker never needs to fire what is due."""

EXAMPLES = """
knapsaq -A app.queue.config schedules list

knapsaq -A app.queue.config schedules pause nightly_report

knapsaq -A app.queue.config schedules set nightly_report --cron "0 3 * * *" batch_size=100

knapsaq -A app.queue.config schedules run nightly_report batch_size=5
"""


@click.group(epilog=EXAMPLES)
def schedules() -> None:
    """Look at the schedules, and change them while everything runs.

    What is changed here counts at once and survives deployments, until `reset` goes back to the code.
    """


def _json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def _timing_options(command: F) -> F:
    """Add what says when a schedule fires and with what."""
    options = (
        click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]..."),
        click.option("--cron", metavar="EXPRESSION", help="Five fields, six with the second, or @daily and the like."),
        click.option("--every", type=float, metavar="SECONDS", help="An interval instead, from 1 second on."),
        click.option("--timezone", metavar="ZONE", help="The IANA zone of the expression."),
        click.option("--json", "document", metavar="OBJECT", help="All arguments as one JSON object."),
        click.option("--jitter", type=float, metavar="SECONDS", help="Delay each job by a part of so many seconds."),
        click.option("--misfire", type=click.Choice(MISFIRES), help="What becomes of missed due times."),
        click.option("--misfire-window", type=float, metavar="SECONDS", help="How far back they are made up for."),
        click.option("--overlap/--no-overlap", default=None, help="Whether to fire while the last job has not ended."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@schedules.command("list")
@_json_option
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List all schedules: task, queue, when, next fire, state, last outcome."""

    async def look(book: Schedules) -> list[tuple[ScheduleEntry, list[ScheduleFire]]]:
        entries = await book.list()
        fires = await asyncio.gather(*(book.fires(entry.name, entry.queue) for entry in entries))
        return list(zip(entries, fires, strict=True))

    app = load(ctx.obj)
    found = _ask(app, look)
    if as_json:
        print_json([{**_plain(entry), "last_fire": _plain(fires[0]) if fires else None} for entry, fires in found])
        return
    if not found:
        note(
            f"no schedule is stored in {', '.join(app.settings.queues)}; a worker stores those of the code at its start"
        )
        return
    table = Table("Schedule", "Task", "Queue", "When", "Next fire", "State", "Last outcome")
    for entry, fires in found:
        last = _outcome(fires[0]) if fires else ""
        cells = (entry.name, entry.task, entry.queue, entry.words, _moment(entry.next_due, entry.timezone))
        table.add_row(*(Text(cell) for cell in (*cells, _state(entry), last)))
    output().print(table)


@schedules.command()
@click.argument("name")
@_json_option
@click.pass_context
def show(ctx: click.Context, name: str, as_json: bool) -> None:
    """Show all that is known of the schedule NAME: its fields, its last fires and the next ones."""

    async def look(book: Schedules) -> tuple[ScheduleEntry, list[ScheduleFire], list[datetime]]:
        return await book.get(name), await book.fires(name), await book.next(name, SHOWN_NEXT)

    entry, fires, moments = _ask(load(ctx.obj), look)
    if as_json:
        print_json({**_plain(entry), "fires": [_plain(fire) for fire in fires], "next": _plain(moments)})
        return
    table = Table("Field", "Value", show_header=False)
    for field, value in _plain(entry).items():
        edited = " (changed by hand)" if field in entry.edited else ""
        table.add_row(Text(field), Text(f"{_text(value)}{edited}"))
    table.add_row(Text("state"), Text(_state(entry)))
    table.add_row(Text("next fires"), Text("\n".join(_moment(moment, entry.timezone) for moment in moments)))
    table.add_row(Text("last fires"), Text("\n".join(f"{_utc(fire.due)}  {_outcome(fire)}" for fire in fires)))
    output().print(table)


@schedules.command("next")
@click.argument("name")
@click.option("-n", "count", type=click.IntRange(1, 1000), default=SHOWN_NEXT, show_default=True, help="How many.")
@_json_option
@click.pass_context
def next_(ctx: click.Context, name: str, count: int, as_json: bool) -> None:
    """Show when the next jobs of the schedule NAME may run, in its own zone and in UTC."""

    async def look(book: Schedules) -> tuple[ScheduleEntry, list[datetime]]:
        return await book.get(name), await book.next(name, count)

    entry, moments = _ask(load(ctx.obj), look)
    if as_json:
        print_json(_plain(moments))
        return
    note(f"{entry.words}{'' if entry.enabled else '; it is paused, so none of these comes'}")
    for moment in moments:
        click.echo(_moment(moment, entry.timezone))


@schedules.command()
@click.argument("name")
@click.pass_context
def pause(ctx: click.Context, name: str) -> None:
    """Let the schedule NAME fire no more, until `resume`."""
    _report(_ask(load(ctx.obj), lambda book: book.pause(name)))


@schedules.command()
@click.argument("name")
@click.pass_context
def resume(ctx: click.Context, name: str) -> None:
    """Let the paused schedule NAME fire again, from its next due time on."""
    _report(_ask(load(ctx.obj), lambda book: book.resume(name)))


@schedules.command()
@click.argument("name")
@click.pass_context
def reset(ctx: click.Context, name: str) -> None:
    """Drop what was changed by hand of the schedule NAME, so that the code counts again."""
    _report(_ask(load(ctx.obj), lambda book: book.reset(name)))


@schedules.command("set")
@click.argument("name")
@_timing_options
@click.pass_context
def set_(ctx: click.Context, /, name: str, arguments: tuple[str, ...], document: str | None, **fields: Any) -> None:
    """Change the schedule NAME; deployments leave it as it is.

    Arguments, if there are any, replace all that it had. A VALUE is read as JSON where that fits, else taken as text.
    """

    async def change(book: Schedules) -> ScheduleEntry:
        entry = await book.get(name)
        given = _given(app, entry.task, arguments, document, fields)
        if not given:
            raise click.UsageError("nothing to change was given: KEY=VALUE, --cron, --every or another option")
        return await book.set(name, **given)

    app = load(ctx.obj)
    _report(_ask(app, change))


@schedules.command()
@click.argument("name")
@click.argument("task")
@_timing_options
@click.option("--queue", metavar="NAME", help="Another queue than the task's own.")
@click.pass_context
def add(
    ctx: click.Context,
    /,
    *,
    name: str,
    task: str,
    arguments: tuple[str, ...],
    document: str | None,
    queue: str | None,
    **fields: Any,
) -> None:
    """Add a schedule NAME of the task TASK; it stays until `remove`, whatever is deployed."""
    app = load(ctx.obj)
    given = _given(app, task, arguments, document, fields)
    _report(_ask(app, lambda book: book.add(name, task, queue=queue, **given)))


@schedules.command()
@click.argument("name")
@click.pass_context
def remove(ctx: click.Context, name: str) -> None:
    """Remove the schedule NAME, which was added at run time or has left the code."""
    _ask(load(ctx.obj), lambda book: book.remove(name))
    note(f"removed {name}")


@schedules.command()
@click.argument("name")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "document", metavar="OBJECT", help="Arguments as one JSON object.")
@click.pass_context
def run(ctx: click.Context, name: str, arguments: tuple[str, ...], document: str | None) -> None:
    """Queue a job of the schedule NAME now and print its key; arguments take the place of those of their names."""

    async def send(book: Schedules) -> str:
        entry = await book.get(name)
        given, texts = {**read_document(document), **read_pairs(arguments)}, {*read_pairs(arguments)}
        kwargs = read_texts(_known(app, entry.task), given, texts, entry.kwargs) if given else {}
        return (await book.run(name, **kwargs)).key

    app = load(ctx.obj)
    click.echo(_ask(app, send))


def _given(
    app: App, task: str, arguments: tuple[str, ...], document: str | None, fields: dict[str, Any]
) -> dict[str, Any]:
    """Return the fields that the command line gives."""
    given = {field: value for field, value in fields.items() if value is not None}
    if arguments or document is not None:
        pairs = read_pairs(arguments)
        given["kwargs"] = read_texts(_known(app, task), {**read_document(document), **pairs}, {*pairs}, {})
    return given


def _known(app: App, task: str) -> Task[..., Any, Any] | None:
    """Return the task whose arguments are given, or say that they are not checked."""
    found = app.registry.find(task)
    if found is None:
        note(f"task {task!r} is not known here; its arguments are not checked")
    return found


def _ask(app: App, question: Callable[[Schedules], Awaitable[T]]) -> T:
    """Return what the schedules of a connection answer."""

    async def ask() -> T:
        async with connect(app.settings, registry=app.registry):
            return await question(app.registry.schedules)

    return asyncio.run(ask())


def _report(entry: ScheduleEntry) -> None:
    """Print what counts after a change."""
    when = f"next fire {_moment(entry.next_due, entry.timezone)}" if entry.next_due else "it does not fire"
    click.echo(f"{entry.name}: {entry.words}; {_state(entry)}; {when}")


def _state(entry: ScheduleEntry) -> str:
    """Return whether it fires, and what is not as in the code."""
    by_hand = " by hand" if "enabled" in entry.edited else ""
    states = [f"resumed{by_hand}" if entry.enabled and by_hand else "active" if entry.enabled else f"paused{by_hand}"]
    late = entry.next_due is not None and datetime.now(UTC) - entry.next_due > OVERDUE
    states += ["overdue: no worker of its queue runs"] if entry.enabled and late else []
    edited = [field for field in entry.edited if field != "enabled"]
    states += ["added at run time"] if entry.added else []
    states += [f"changed by hand: {', '.join(edited)}"] if edited else []
    states += ["the code here differs"] if entry.differs else []
    return "; ".join(states)


def _outcome(fire: ScheduleFire) -> str:
    """Return what came of a fire."""
    if fire.key is None:
        return fire.reason or ""
    error = (fire.error or "").strip().rsplit("\n", 1)[-1]
    took = f" in {(fire.completed - fire.started).total_seconds():.3g} s" if fire.started and fire.completed else ""
    return f"{fire.status or 'no longer known'}{took}{f': {error}' if error else ''}"


def _moment(moment: datetime | None, timezone: str) -> str:
    """Return a moment in a zone and in UTC."""
    if moment is None:
        return ""
    local = moment.astimezone(ZoneInfo(timezone))
    text = f"{local:%a %Y-%m-%d %H:%M:%S}{_fraction(local)} {timezone}"
    return text if timezone == "UTC" else f"{text} ({_utc(moment)})"


def _utc(moment: datetime) -> str:
    utc = moment.astimezone(UTC)
    return f"{utc:%Y-%m-%d %H:%M:%S}{_fraction(utc)} UTC"


def _fraction(moment: datetime) -> str:
    return f".{moment.microsecond // 1000:03}" if moment.microsecond else ""


def _plain(value: Any) -> Any:
    """Return what is shown as JSON types; durations in seconds, and no argument whose name looks secret."""
    if isinstance(value, Mapping):
        return {name: HIDDEN if SECRET.search(str(name)) else _plain(item) for name, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, datetime):
        return value.isoformat()
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
