"""``knapsaq enqueue``: queue one job by hand."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import msgspec
import rich_click as click

from knapsaq.cli.loading import App, load
from knapsaq.cli.reporting import note
from knapsaq.client import Client, connect
from knapsaq.codec import to_json_types
from knapsaq.definitions import bound
from knapsaq.errors import InvalidArgumentsError
from knapsaq.job import Job
from knapsaq.job_errors import JobError, JobNotEndedError
from knapsaq.task import Task

FOR_EVER = "for ever"

EXAMPLES = """
knapsaq -A app.queue.config enqueue send_email to=a@example.com subject="Hello"

knapsaq -A app.queue.config enqueue send_report --json '{"user_ids": [1, 2]}' --delay 60

knapsaq -A app.queue.config enqueue add x=2 y=3 --wait 10
"""


@click.command(epilog=EXAMPLES)
@click.argument("name")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "document", metavar="OBJECT", help="All arguments as one JSON object.")
@click.option("--queue", metavar="NAME", help="Another queue than the task's own.")
@click.option("--delay", type=click.FloatRange(0), metavar="SECONDS", help="Not before so many seconds from now.")
@click.option("--key", help="The job's key; while a job of that key has not ended, no other one is queued.")
@click.option(
    "--wait",
    is_flag=False,
    flag_value=FOR_EVER,
    metavar="[SECONDS]",
    help="Wait for the result, as long as it takes or at most so many seconds, and print it.",
)
@click.pass_context
def enqueue(
    ctx: click.Context,
    *,
    name: str,
    arguments: tuple[str, ...],
    document: str | None,
    queue: str | None,
    delay: float | None,
    key: str | None,
    wait: str | None,
) -> None:
    """Queue one job of the task NAME and print its key.

    A VALUE is read as JSON where that fits the parameter, else taken as text.

    With --wait the key goes to standard error, and the exit code is 1 if the job fails.
    """
    # `--wait a=1`: the word after the option is its value only if it is one.
    if wait not in (None, FOR_EVER) and "=" in str(wait):
        arguments, wait = (*arguments, str(wait)), FOR_EVER
    limit = _seconds(wait)
    given = {**read_document(document), **read_pairs(arguments)}
    app = load(ctx.obj)
    task = app.registry.get(name)
    kwargs = read_arguments(task, given, {pair.partition("=")[0] for pair in arguments})
    ctx.exit(asyncio.run(_enqueue(app, task, kwargs, {"queue": queue, "delay": delay, "key": key}, limit)))


def read_texts(
    task: Task[..., Any, Any] | None, given: Mapping[str, Any], texts: set[str], others: Mapping[str, Any]
) -> dict[str, Any]:
    """Return arguments, those that were given as text read as JSON where that fits.

    Args:
        task: The task to call; where it is not known here, what is JSON is read as such.
        given: The arguments.
        texts: The names of those that are text from the command line.
        others: The arguments of the call that are not given.

    Raises:
        InvalidArgumentsError: They do not fit the task.
    """
    if task is None:
        return {name: _json_or_text(value) if name in texts else value for name, value in given.items()}
    return read_arguments(task, given, texts, others)


def read_arguments(
    task: Task[..., Any, Any], given: Mapping[str, Any], texts: set[str], others: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a call's arguments, those that were given as text read as JSON where that fits the signature.

    Args:
        task: The task to call.
        given: The arguments.
        texts: The names of those that are text from the command line.
        others: Those of the call that are not given, as they are stored.

    Raises:
        InvalidArgumentsError: They do not fit the task.
    """
    arguments = {name: _json_or_text(value) if name in texts else value for name, value in given.items()}
    first: dict[str, InvalidArgumentsError] = {}
    while True:
        try:
            if others:
                bound(task, (), others, arguments)
            else:
                task.signature.bind((), arguments, task.injected)
        except InvalidArgumentsError as error:
            name = error.parameter
            if name in first or name not in texts or arguments[name] == given[name]:
                raise first.get(name, error) from None
            first[name] = error
            arguments[name] = given[name]
        else:
            return arguments


async def _enqueue(
    app: App, task: Task[..., Any, Any], kwargs: Mapping[str, Any], options: Mapping[str, Any], limit: float | None
) -> int:
    given = {name: value for name, value in options.items() if value is not None}
    async with connect(app.settings, registry=app.registry) as client:
        job = await task.using(**given).enqueue(**kwargs)
        if limit is None:
            click.echo(job.key)
            return 0
        note(job.key)
        await _warn_without_workers(client, str(given.get("queue", task.options.queue)))
        return await _print_result(job, limit)


async def _print_result(job: Job[Any], limit: float) -> int:
    try:
        result = await job.wait(None if math.isinf(limit) else limit)
    except JobNotEndedError as error:
        note(str(error))
        return 1
    except JobError as error:
        if error.error.strip():
            note(error.error.strip())
        raise
    click.echo(msgspec.json.encode(to_json_types(result)).decode())
    return 0


async def _warn_without_workers(client: Client, queue: str) -> None:
    if not (await client.queue(queue).info())["workers"]:
        note(f"no worker takes jobs from the queue {queue!r} at the moment")


def _seconds(wait: str | None) -> float | None:
    if wait is None:
        return None
    if wait == FOR_EVER:
        return math.inf
    try:
        seconds = float(wait)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        _refuse(f"--wait takes seconds above 0, or nothing; not {wait!r}")
    return seconds


def read_document(text: str | None) -> dict[str, Any]:
    """Return the arguments of a JSON object on the command line."""
    if text is None:
        return {}
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        _refuse(f"--json is no JSON: {error}")
    if not isinstance(document, dict):
        _refuse(f"--json takes an object such as '{{\"user_id\": 1}}', not {text!r}")
    return dict(document)


def read_pairs(arguments: Sequence[str]) -> dict[str, str]:
    """Return the arguments that stand as ``KEY=VALUE`` on the command line, as text."""
    pairs: dict[str, str] = {}
    for argument in arguments:
        name, sign, value = argument.partition("=")
        if not sign or not name.isidentifier():
            _refuse(f"an argument is KEY=VALUE, such as user_id=1; {argument!r} is not")
        if name in pairs:
            _refuse(f"the argument {name!r} is given twice")
        pairs[name] = value
    return pairs


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError:
        return text


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse(text: str) -> NoReturn:
    raise click.UsageError(text)
