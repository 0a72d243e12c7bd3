"""``knapsaq tasks``: what the registry holds."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click
from rich.table import Table
from rich.text import Text

from knapsaq.batch import Batch
from knapsaq.cli.loading import load
from knapsaq.cli.reporting import note, output
from knapsaq.codec import to_json_types
from knapsaq.limits import Debounce, Throttle, Unique
from knapsaq.options import TaskOptions
from knapsaq.task import Task

SHOWN_ELSEWHERE = frozenset({"name", "queue", "names_queue"})

EXAMPLES = """
knapsaq -A app.queue.config tasks

knapsaq -A app.queue.config tasks --json
"""


@click.command(epilog=EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def tasks(ctx: click.Context, as_json: bool) -> None:
    """List the tasks: name, queue, schedule, options, parameters, and where they are defined."""
    app = load(ctx.obj)
    zone = app.settings.timezone
    found = [described(task, zone) for task in sorted(app.registry.get_all_tasks(), key=lambda task: task.name)]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    if not found:
        note(f"importing {app.module!r} defines no task; put @task on a function of a module that it imports")
        return
    table = Table("Task", "Queue", "Schedule", "Options", "Parameters", "Defined in")
    for one in found:
        schedules = "\n".join(_when(each, one["name"]) for each in one["schedules"])
        options = "\n".join(f"{name}={value}" for name, value in one["options"].items())
        parameters = "\n".join(each["text"] for each in one["parameters"])
        cells = (one["name"], one["queue"], schedules, options, parameters, one["location"])
        table.add_row(*(Text(cell) for cell in cells))
    output().print(table)


def described(task: Task[..., Any, Any], timezone: str) -> dict[str, Any]:
    """Return what there is to know of a task, as JSON types; ``timezone`` is that of schedules without one."""
    return {
        "name": task.name,
        "queue": task.options.queue,
        "schedules": [
            {
                "name": each.name,
                "cron": each.cron,
                "every": each.every,
                "timezone": each.timezone,
                "words": each.describe(timezone),
                "args": to_json_types(list(each.args)),
                "kwargs": to_json_types(dict(each.kwargs)),
            }
            for each in task.schedules
        ],
        "options": _options(task.options),
        "parameters": [_parameter(task.signature.parameters[name]) for name in task.parameters],
        "injected": sorted(task.injected),
        "location": _near(task.location),
    }


def _when(schedule: dict[str, Any], task: str) -> str:
    """Return when a schedule fires, with its name unless that is the task's."""
    parts = (schedule["name"] if schedule["name"] != task else None, schedule["cron"], schedule["words"])
    return ": ".join(part for part in parts if part)


def _options(options: TaskOptions) -> dict[str, Any]:
    """Return the options that differ from their defaults."""
    default = TaskOptions()
    names = (field.name for field in dataclasses.fields(options) if field.name not in SHOWN_ELSEWHERE)
    return {name: _plain(value) for name in names if (value := getattr(options, name)) != getattr(default, name)}


def _plain(value: Any) -> Any:
    if isinstance(value, Batch):
        return {"size": value.size, "wait": value.wait}
    if isinstance(value, tuple):
        return [getattr(each, "__name__", str(each)) for each in value]
    if isinstance(value, (Unique, Debounce, Throttle)) or callable(value):
        return getattr(value, "__name__", str(value))
    return sorted(value) if hasattr(value, "keys") else value


def _parameter(parameter: inspect.Parameter) -> dict[str, Any]:
    annotation = parameter.annotation
    needed = parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )
    return {
        "name": parameter.name,
        "annotation": None if annotation is parameter.empty else inspect.formatannotation(annotation).strip("'\""),
        "required": needed,
        "text": str(parameter).replace("'", "") if isinstance(annotation, str) else str(parameter),
    }


def _near(location: str) -> str:
    """Return a place as seen from the working directory, if it lies below it."""
    path, _, line = location.rpartition(":")
    try:
        return f"{Path(path).relative_to(Path.cwd())}:{line}" if Path(path).is_absolute() else location
    except ValueError:
        return location
