"""``knapsaq doctor``: look at everything that has to be right, and say what to do where it is not."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import rich_click as click
from rich.text import Text

from knapsaq.child import find_again
from knapsaq.cli.asking import jobs
from knapsaq.cli.loading import App, load
from knapsaq.cli.looking import lane_words
from knapsaq.cli.reporting import output, print_json
from knapsaq.cli.steering import strike_words
from knapsaq.client import Client, connect
from knapsaq.definitions import coded
from knapsaq.errors import BrokerError, KnapsaqError, SettingsError, nearest
from knapsaq.providers import Injector
from knapsaq.queue import Queue
from knapsaq.redis.connection import ServerInfo, broker_errors, check_broker
from knapsaq.registry import Registry
from knapsaq.setting_checks import EMBEDDED
from knapsaq.settings import Settings
from knapsaq.shards import is_cluster

State: TypeAlias = Literal["ok", "warn", "fail"]

PREFIX = "KNAPSAQ_"
NO_SETTINGS = frozenset({"APP", "DEBUG"})
"""Variables with the prefix that are read elsewhere."""

MOST_SKEW = 1.0  # seconds between the clocks of this machine and the broker's
RESTORE_AGAIN = "a restore of its task was cut off: knapsaq -A MODULE restore TASK [PARAMETER=VALUE]"
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was looked at.
        state: Whether it is right.
        text: What was seen.
        remedy: What to do about it; empty where there is nothing to do.
    """

    check: str
    state: State
    text: str
    remedy: str = ""


EXAMPLES = """
knapsaq -A app.queue.config doctor

knapsaq -A app.queue.config doctor --json
"""


@click.command(epilog=EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check settings, application, tasks, broker, workers, and what holds jobs up.

    The exit code is 1 if something fails.
    """
    findings = asyncio.run(examine(ctx.obj))
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        _print(findings)
    ctx.exit(int(any(finding.state == "fail" for finding in findings)))


async def examine(module: str | None) -> list[Finding]:
    """Make all checks.

    Args:
        module: The application's module as the command line gives it.
    """
    findings, app = _application(module)
    settings = app.settings if app else _settings_alone(findings)
    if app:
        findings += _tasks(app.registry, app.settings)
    if settings:
        findings[:0] = _settings(settings, own=app.module if app and app.has_settings else None)
        findings += [finding async for finding in _broker(settings, app.registry if app else None)]
    return findings


def _print(findings: Sequence[Finding]) -> None:
    console = output()
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        line = Text.assemble(
            (f"{finding.state:<4}", STYLES[finding.state]), f"  {finding.check:<{width}}  {finding.text}"
        )
        console.print(line, soft_wrap=True)
        if finding.remedy:
            console.print(Text(f"{'':<{width + 6}}  {finding.remedy}", style="dim"), soft_wrap=True)
    counts = {state: sum(finding.state == state for finding in findings) for state in STYLES}
    console.print(f"{counts['ok']} right, {counts['warn']} to look at, {counts['fail']} wrong")


def _application(module: str | None) -> tuple[list[Finding], App | None]:
    try:
        app = load(module)
    except SettingsError as error:
        return [Finding("settings", "fail", str(error), "correct it in the environment or in .env")], None
    except KnapsaqError as error:
        return [Finding("application", "fail", str(error))], None
    return [Finding("application", "ok", f"{app.module} was imported")], app


def _settings_alone(findings: list[Finding]) -> Settings | None:
    """Return the environment's settings where there is no application to ask."""
    if any(finding.check == "settings" for finding in findings):
        return None
    try:
        return Settings()
    except SettingsError as error:
        findings.insert(0, Finding("settings", "fail", str(error), "correct it in the environment or in .env"))
        return None


def _settings(settings: Settings, *, own: str | None) -> Iterator[Finding]:
    given = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and os.environ[name])
    sources = [f"`settings` of {own}"] if own else []
    sources += [", ".join(given)] if given else []
    sources += [str(Path(".env").absolute())] if Path(".env").is_file() else []
    yield Finding("settings", "ok", f"valid; from {', '.join(sources) or 'nowhere, so all are the defaults'}")
    known = {name.upper() for name in settings.names()} | NO_SETTINGS
    for name in given:
        if (short := name.upper().removeprefix(PREFIX)) not in known:
            hint = nearest(short, known).replace("Known", "The names after KNAPSAQ_")
            yield Finding("settings", "warn", f"{name} is set, but is the name of no setting", hint)
    grace, lease = settings.shutdown_grace, settings.lease
    yield Finding(
        "settings",
        "ok",
        f"queues {', '.join(settings.queues)}; {settings.concurrency} jobs at once, {grace:g} s to end, "
        f"lease {lease:g} s, cron in {settings.timezone}",
    )


def _tasks(registry: Registry, settings: Settings) -> Iterator[Finding]:
    tasks = registry.get_all_tasks()
    if not tasks:
        remedy = "import the modules that hold them in the application's module, or call get_registry().autodiscover()"
        yield Finding("tasks", "warn", "none is defined", remedy)
        return
    wrong = 0
    for task in tasks:
        try:
            task.verify(settings.task_timeout)
            find_again(task)
            Injector([task])
            for schedule in task.schedules:
                coded(task, schedule, settings.timezone)
        except KnapsaqError as error:
            wrong += 1
            yield Finding("tasks", "fail", str(error), f"defined at {task.location}")
    if not wrong:
        scheduled = len(registry.get_scheduled_tasks())
        yield Finding("tasks", "ok", f"{len(tasks)} can run, {scheduled} of them by the clock")
    for queue in sorted({task.options.queue for task in tasks} - set(settings.queues)):
        names = ", ".join(task.name for task in tasks if task.options.queue == queue)
        remedy = f"add it: KNAPSAQ_QUEUES={','.join((*settings.queues, queue))}"
        yield Finding("queues", "fail", f"{queue!r} is not connected, but is the queue of {names}", remedy)


async def _broker(settings: Settings, registry: Registry | None) -> AsyncIterator[Finding]:
    try:
        async with connect(settings, registry=Registry()) as client:
            with broker_errors(settings.broker_url):
                for finding in await _servers(client, settings):
                    yield finding
                for queue in client.queues.values():
                    yield await _workers(queue)
                    for finding in await _held_up(queue):
                        yield finding
                if registry is not None:
                    for finding in await _left_schedules(client, registry):
                        yield finding
    except BrokerError as error:
        yield Finding("broker", "fail", f"{error.url} {error.problem}", error.remedy)
    except SettingsError as error:
        yield Finding("settings", "fail", str(error), "correct it in the environment or in .env")


async def _servers(client: Client, settings: Settings) -> list[Finding]:
    """Look at the server; in a cluster at the nodes that have the queues."""
    queues: dict[Any, list[str]] = {}
    for queue in client.queues.values():
        queues.setdefault(queue.redis, []).append(queue.name)
    findings: list[Finding] = []
    for redis, names in queues.items():
        where = f"the node of {', '.join(names)} answers" if is_cluster(settings.broker_url) else "it answers"
        info = await check_broker(redis, settings.broker_url)
        findings += [*_server(info, settings, where), await _clock(redis)]
    return list(dict.fromkeys(findings))  # what holds for several nodes is said once


def _server(info: ServerInfo, settings: Settings, where: str) -> Iterator[Finding]:
    version = ".".join(map(str, info.version))
    if settings.broker_url == EMBEDDED:
        where = f"embedded in {settings.embedded_dir.absolute()}"
    yield Finding("broker", "ok", f"{settings.redacted_broker_url}: {info.server.title()} {version}, {where}")
    if info.maxmemory_policy not in (None, "noeviction"):
        text = f"its memory policy is {info.maxmemory_policy}, so jobs may vanish when its memory is full"
        yield Finding("broker", "warn", text, "CONFIG SET maxmemory-policy noeviction, and in its configuration file")
    if info.aof is False:
        text = "its append-only file is off, so a restart may lose jobs"
        yield Finding("broker", "warn", text, "CONFIG SET appendonly yes, and in its configuration file")


async def _clock(redis: Any) -> Finding:
    before = time.time()
    seconds, microseconds = await redis.time()
    skew = int(seconds) + int(microseconds) / 1e6 - (before + time.time()) / 2
    if abs(skew) > MOST_SKEW:
        text = f"the broker's is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
        return Finding("clock", "warn", text, "run a time service (chrony, systemd-timesyncd) on both machines")
    return Finding("clock", "ok", "this machine's and the broker's agree")


async def _workers(queue: Queue) -> Finding:
    info = await queue.info()
    waiting, workers = info["queued"], len(info["workers"])
    if not workers:
        text = f"nobody takes jobs from {queue.name!r}; {waiting} wait"
        return Finding("workers", "warn", text, f"start one: knapsaq -A MODULE worker --queues {queue.name}")
    return Finding("workers", "ok", f"{workers} on {queue.name!r}; {waiting} jobs wait, {info['active']} run")


async def _held_up(queue: Queue) -> list[Finding]:
    """Return what keeps jobs of a queue from running: their death, a pause, strikes, limits that nobody looks after."""
    held: list[Finding] = []
    if dead := await queue.count("dead"):
        text = f"{queue.name!r} has dead letters: {jobs(dead)} that nobody can run"
        remedy = f"look: knapsaq -A MODULE inspect dead --queue {queue.name}; then retry KEY, or discard KEY"
        held.append(Finding("queues", "warn", text, remedy))
    if paused_since := await queue.paused_since():
        text = f"{queue.name!r} is paused since {paused_since:%Y-%m-%d %H:%M:%S} UTC; none of its jobs begins"
        held.append(Finding("queues", "warn", text, f"to go on: knapsaq -A MODULE resume {queue.name}"))
    for strike in await queue.strikes():
        words = strike_words(strike)
        text = f"{words!r} is struck in {queue.name!r}; such jobs do not begin"
        held.append(Finding("queues", "warn", text, f"to go on: knapsaq -A MODULE restore {words}"))
    for lane, number in (await queue.stranded()).items():
        text = f"nobody lets go what waits for {lane_words(lane)} in {queue.name!r}: {jobs(number)}"
        remedy = RESTORE_AGAIN if lane.startswith("s:") else "a worker of the queue mends that within a minute"
        held.append(Finding("queues", "warn", text, remedy))
    return held


async def _left_schedules(client: Client, registry: Registry) -> list[Finding]:
    """Return the stored schedules whose tasks this application does not have: another one's, or nobody's."""
    return [
        Finding(
            "schedules",
            "warn",
            f"{entry.name!r} in queue {entry.queue!r} fires task {entry.task!r}, which is not known here",
            f"if no other application has it either: knapsaq -A MODULE schedules remove {entry.name}",
        )
        for entry in await client.registry.schedules.list()
        if registry.find(entry.task) is None
    ]
