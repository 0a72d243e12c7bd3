"""``knapsaq pause``, ``resume``, ``strike``, ``restore`` and ``weigh``: what may run, changed while everything runs."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from typing import Any

import msgspec
import rich_click as click
from rich.table import Table
from rich.text import Text

from knapsaq.cli.asking import ask, json_option, queue_option, queues_of
from knapsaq.cli.enqueue import read_pairs
from knapsaq.cli.loading import App, load
from knapsaq.cli.reporting import note, output, print_json
from knapsaq.client import Client
from knapsaq.codec import to_json_types
from knapsaq.errors import InvalidArgumentsError
from knapsaq.steering import Strike
from knapsaq.task import Task

PAUSE_EXAMPLES = """
knapsaq -A app.queue.config pause mail

knapsaq -A app.queue.config resume
"""

STRIKE_EXAMPLES = """
knapsaq -A app.queue.config strike

knapsaq -A app.queue.config strike send_report

knapsaq -A app.queue.config strike send_report customer=42

knapsaq -A app.queue.config restore send_report customer=42
"""

WEIGH_EXAMPLES = """
knapsaq -A app.queue.config weigh

knapsaq -A app.queue.config weigh acme 3 --queue mail
"""


@click.command(epilog=PAUSE_EXAMPLES)
@click.argument("names", nargs=-1, metavar="[QUEUE]...")
@click.pass_context
def pause(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Give out no more jobs of these queues, all unless named, until `resume`.

    Jobs that run go on; new ones are accepted meanwhile, and schedules fire.
    """

    async def act(client: Client) -> None:
        for queue in queues_of(client, names):
            await queue.pause()
            counts = await queue.counts()
            waiting = counts.queued + counts.parked + counts.scheduled
            click.echo(f"{queue.name}: paused; {waiting:,} waiting, {counts.active:,} running")

    ask(load(ctx.obj), act)


@click.command(epilog=PAUSE_EXAMPLES)
@click.argument("names", nargs=-1, metavar="[QUEUE]...")
@click.pass_context
def resume(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Give out jobs of these queues again, of all unless named."""

    async def act(client: Client) -> None:
        for queue in queues_of(client, names):
            was_paused = await queue.resume()
            click.echo(f"{queue.name}: {'goes on' if was_paused else 'was not paused'}")

    ask(load(ctx.obj), act)


@click.command(epilog=STRIKE_EXAMPLES)
@click.argument("task", required=False)
@click.argument("argument", required=False, metavar="[PARAMETER=VALUE]")
@queue_option("The queue in which it is struck; all queues unless given.")
@click.option("--unknown", is_flag=True, help="Strike a task that this application does not have.")
@json_option
@click.pass_context
def strike(
    ctx: click.Context, *, task: str | None, argument: str | None, queue: str | None, unknown: bool, as_json: bool
) -> None:
    """Let the jobs of TASK wait until `restore`, or those alone that name this argument; without TASK list the strikes.

    It counts at once for all jobs that have not begun. A VALUE is read as JSON where that fits the parameter, else
    taken as text.
    """
    app = load(ctx.obj)
    if task is None:
        _list_strikes(app, queue, as_json)
        return
    known = app.registry.find(task) if unknown else app.registry.get(task)
    name, given = known.name if known else task, _argument(known, argument)

    async def act(client: Client) -> None:
        for each in queues_of(client, [queue]):
            click.echo(f"{each.name}: {strike_words(await each.strike(name, **given))} is struck")

    ask(app, act)


@click.command(epilog=STRIKE_EXAMPLES)
@click.argument("task")
@click.argument("argument", required=False, metavar="[PARAMETER=VALUE]")
@queue_option("The queue in which it was struck; all queues unless given.")
@click.pass_context
def restore(ctx: click.Context, *, task: str, argument: str | None, queue: str | None) -> None:
    """Take a strike of TASK back: its jobs may run, behind those that wait already.

    The exit code is 1 if there is no such strike.
    """
    app = load(ctx.obj)
    known = app.registry.find(task)
    name = known.name if known else task
    pairs = read_pairs([argument] if argument else [])

    async def act(client: Client) -> int:
        restored, others = 0, list[Strike]()
        for each in queues_of(client, [queue]):
            strikes = await each.strikes()
            meant = [one for one in strikes if one.task == name and _is_meant(one, pairs)]
            others += [one for one in strikes if one not in meant]
            with suppress(InvalidArgumentsError):
                # Also where it is known no more: what was left when a restore was cut off is let go.
                meant.append(Strike(name, *next(iter(_argument(known, argument).items()), ())))
            for one in dict.fromkeys(meant):
                if await each.restore(one.task, **_named(one)):
                    click.echo(f"{each.name}: {strike_words(one)} may run")
                    restored += 1
        if not restored:
            told = ", ".join(dict.fromkeys(map(strike_words, others))) or "nothing"
            note(f"{' '.join([name, argument or '']).strip()} is not struck; struck are: {told}")
        return 0 if restored else 1

    ctx.exit(ask(app, act))


@click.command(epilog=WEIGH_EXAMPLES)
@click.argument("tenant", required=False)
@click.argument("weight", required=False, type=float)
@queue_option("The queue; all queues unless given.")
@json_option
@click.pass_context
def weigh(ctx: click.Context, *, tenant: str | None, weight: float | None, queue: str | None, as_json: bool) -> None:
    """Set the share of TENANT, 1 unless it was set: with 2 twice as many of its jobs run; without TENANT list them.

    TENANT is what the task's fair_key gives; "" is all jobs without one.
    """
    app = load(ctx.obj)
    if tenant is None:
        _list_weights(app, queue, as_json)
        return
    if weight is None:
        raise click.UsageError(
            "WEIGHT is missing: a number above 0, such as 2; 1 is what tenants have unless it is set"
        )
    name, share = tenant, weight

    async def act(client: Client) -> None:
        for each in queues_of(client, [queue]):
            await each.weigh(name, share)
            click.echo(f"{each.name}: {name or 'jobs without a tenant'} has the weight {share:g}")

    ask(app, act)


def strike_words(strike: Strike) -> str:
    """Return a strike as the command line takes it."""
    pair = _pair(strike)
    return f"{strike.task} {shlex.quote(pair)}" if pair else strike.task


def _list_strikes(app: App, queue: str | None, as_json: bool) -> None:
    async def look(client: Client) -> list[tuple[str, Strike]]:
        return [(each.name, one) for each in queues_of(client, [queue]) for one in await each.strikes()]

    found = sorted(ask(app, look), key=lambda one: (one[0], one[1].task, str(one[1].parameter)))
    if as_json:
        rows = [
            {"queue": name, "task": one.task, "parameter": one.parameter, "value": one.shown} for name, one in found
        ]
        print_json(rows)
        return
    if not found:
        note("nothing is struck")
        return
    table = Table("Queue", "Task", "Argument")
    for name, one in found:
        table.add_row(Text(name), Text(one.task), Text(_pair(one)))
    output().print(table)


def _list_weights(app: App, queue: str | None, as_json: bool) -> None:
    async def look(client: Client) -> list[tuple[str, str, float]]:
        return [
            (each.name, tenant, weight)
            for each in queues_of(client, [queue])
            for tenant, weight in sorted((await each.weights()).items())
        ]

    found = ask(app, look)
    if as_json:
        print_json([{"queue": name, "tenant": tenant, "weight": weight} for name, tenant, weight in found])
        return
    if not found:
        note("no weight was set; all tenants have 1")
        return
    table = Table("Queue", "Tenant", "Weight")
    for name, tenant, weight in found:
        table.add_row(Text(name), Text(tenant or "(jobs without a tenant)"), Text(f"{weight:g}"))
    output().print(table)


def _argument(task: Task[..., Any, Any] | None, argument: str | None) -> dict[str, Any]:
    """Return what an argument is in the records of a task's jobs, by its parameter.

    Raises:
        InvalidArgumentsError: The task does not take it.
    """
    if argument is None:
        return {}
    [(parameter, text)] = read_pairs([argument]).items()
    values = [text]
    with suppress(ValueError):
        values.insert(0, json.loads(text))
    if task is None:
        return {parameter: values[0]}
    fitting: list[tuple[bool, Any]] = []
    wrong: list[InvalidArgumentsError] = []
    for value in values:
        try:
            stored = _stored(task, parameter, value)
        except InvalidArgumentsError as error:
            wrong.append(error)
        else:
            fitting.append(((stored.__class__, stored) != (value.__class__, value), stored))
    if not fitting:
        raise wrong[0]
    # Of 1.50 for a Decimal the number fits too, but calls store the text: what is stored as it is comes first.
    return {parameter: min(fitting, key=lambda one: one[0])[1]}


def _stored(task: Task[..., Any, Any], parameter: str, value: Any) -> Any:
    """Return what a job's record has for an argument.

    Raises:
        InvalidArgumentsError: The task does not take it.
    """
    signature = task.signature
    # As if providers filled all the others: they may be missing.
    others = frozenset(signature.parameters) - {parameter} if parameter in signature.parameters else frozenset()
    bound = signature.bind((), {parameter: value}, others | task.injected)
    return to_json_types(signature.typed(bound, [parameter])[parameter])


def _is_meant(strike: Strike, pairs: dict[str, str]) -> bool:
    """Whether a strike is the one that the command line names; a value as text or as JSON."""
    [(parameter, text)] = pairs.items() or [(None, "")]
    return strike.parameter == parameter and (parameter is None or text in (str(strike.value), _json(strike.value)))


def _named(strike: Strike) -> dict[str, Any]:
    return {} if strike.parameter is None else {strike.parameter: strike.value}


def _pair(strike: Strike) -> str:
    text = strike.shown if isinstance(strike.shown, str) else _json(strike.shown)
    return "" if strike.parameter is None else f"{strike.parameter}={text}"


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
