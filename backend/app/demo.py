"""The demo: everything once, on any machine, in a few seconds; ``make demo``.

It starts a broker of its own, a mail sink, the API and a worker, each a process of
its own in a folder that it empties first; tells `app.story` to the API over HTTP;
prints what ran and what was mailed; and ends everything, also when it is
interrupted. The exit code is 0 only if all came out as it has to.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import IO, Any

import httpx
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Column, Table

from app.processes import (
    WORKER,
    Leashed,
    Processes,
    api_command,
    cancelled_by_signals,
    environment,
    free_port,
    running,
    smtp_command,
)
from app.story import REPORT_TO, Story, StoryError
from knapsaq import KnapsaqError
from knapsaq.redis.embedded import EmbeddedBroker

LONGEST_START = 30.0
LONGEST_RUN = 60.0
GRACE = 10.0
INTERRUPTED = 128 + 2
ENDED_WELL = (0, 128 + 15)
"""A process that was told to end with SIGTERM may say that it was."""

MARK = ".knapsaq-demo"
"""The file by which a folder is known as the demo's, so that no other is ever emptied."""

console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """The demo cannot go on; the text says why."""


class Demo:
    """One run of the demo.

    Args:
        folder: Where everything that it leaves goes; emptied first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mails = folder / "mails"
        self._broker = folder / "broker"
        self.port = free_port()
        self.smtp_port = free_port()
        self._began = time.monotonic()
        self._status: Status | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self._began

    async def run(self) -> list[str]:
        """Run it and return what went wrong.

        Raises:
            DemoError: It could not be run to its end.
        """
        with console.status("") as self._status:
            async with _locked(self.folder.with_suffix(".lock"), self.tell) as lock:
                await asyncio.to_thread(self._start_afresh)
                story = await self._tell(lock)
        self._print(story)
        return story.problems

    def tell(self, step: str) -> None:
        """Print a step with the time at which it begins."""
        console.print(f"[dim]{self.elapsed:5.1f} s[/]  {step}")
        if self._status is not None:
            self._status.update(f"{step} ...")

    def _start_afresh(self) -> None:
        """Empty the folder; a broker that a killed run left in it is taken over and stopped."""
        mark = self.folder / MARK
        if self.folder.exists() and any(self.folder.iterdir()) and not mark.exists():
            raise DemoError(f"{self.folder} holds files that are not the demo's; choose another --dir")
        if self._broker.exists():
            with EmbeddedBroker(self._broker):
                pass
        shutil.rmtree(self.folder, ignore_errors=True)
        self.mails.mkdir(parents=True)
        mark.touch()

    def _environment(self) -> dict[str, str]:
        return environment(
            KNAPSAQ_BROKER_URL="embedded",
            KNAPSAQ_EMBEDDED_DIR=str(self._broker),
            KNAPSAQ_QUEUES="default",
            KNAPSAQ_SHUTDOWN_GRACE="2",
            APP_DEBUG="true",
            APP_SANDBOX="true",
            APP_DATABASE_URL=f"sqlite+aiosqlite:///{self.folder / 'app.db'}",
            APP_MAIL_RATE="2/s",
            APP_SMTP_HOST="127.0.0.1",
            APP_SMTP_PORT=str(self.smtp_port),
            APP_REPORT_TO=REPORT_TO,
            APP_PAYMENTS_URL=f"http://127.0.0.1:{self.port}/sandbox",
        )

    def _keep(self, name: str, line: str) -> None:
        """Keep one line of a process' output."""
        with (self.folder / "output.log").open("a") as log:
            log.write(f"{name:>6} | {line}\n")

    async def _tell(self, lock: int) -> Story:
        env = self._environment()
        async with (
            running(self._keep, GRACE, folder=self.folder, keep_open=(lock,)) as processes,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=10) as http,
        ):
            self.tell("broker, mail sink, API and worker are started")
            await processes.start("mail", smtp_command(self.smtp_port, self.mails), env)
            await processes.start("api", api_command(self.port), env)
            await processes.start("worker", WORKER, env)
            story = Story(http, self.mails, self.tell)
            await _while_running(processes, _once_answering(http, story))
            self.tell("everything is told to stop")
            codes = await processes.stop()
        if not _is_unlocked(self._broker / "server.lock"):
            story.problems.append("the broker is still running")
        story.problems += [
            f"{name} ended with exit code {code}" for name, code in codes.items() if code not in ENDED_WELL
        ]
        return story

    def print_output(self) -> None:
        """Print the end of what the processes wrote."""
        log = self.folder / "output.log"
        if log.exists():
            console.print(f"[dim]The end of {log}:[/]")
            lines = [line for line in log.read_text().splitlines() if not line.endswith(" 200 OK")]
            for line in lines[-40:]:
                console.print(line, markup=False)

    def _print(self, story: Story) -> None:
        jobs = Table(
            "What", "Task", Column("Attempts", justify="right"), Column("Time", justify="right"), "Outcome", box=SIMPLE
        )
        for job in sorted(story.chapters, key=lambda chapter: chapter.number):
            jobs.add_row(job.what, job.task, str(job.attempts), f"{job.seconds:.2f} s", job.outcome)
        mails = Table("Mail to", "Subject", box=SIMPLE)
        for mail in story.received():
            mails.add_row(str(mail["To"]), str(mail["Subject"]))
        console.print(jobs, mails, soft_wrap=False)


async def _once_answering(http: httpx.AsyncClient, story: Story) -> None:
    problem = ""
    try:
        async with asyncio.timeout(LONGEST_START):
            while True:
                try:
                    answer = await http.get("/health")
                except httpx.HTTPError as error:
                    problem = str(error)
                else:
                    if answer.is_success:
                        break
                    problem = answer.text
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise DemoError(f"the API does not answer after {LONGEST_START:g} s: {problem}") from None
    await story.run()


async def _while_running(processes: Processes, telling: Coroutine[Any, Any, None]) -> None:
    """Await something; a process that ends meanwhile ends it, and so does the clock."""
    task: asyncio.Task[Any] = asyncio.create_task(telling)
    watched: dict[asyncio.Task[Any], Leashed] = {
        asyncio.create_task(process.wait()): process for process in processes.running.values()
    }
    try:
        done, _ = await asyncio.wait({task, *watched}, timeout=LONGEST_RUN, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            task.result()
            return
        for process in (watched[ended] for ended in done if ended in watched):
            raise DemoError(f"{process.name} ended by itself with exit code {process.code}")
        raise DemoError(f"not done after {LONGEST_RUN:g} s")
    finally:
        for each in (task, *watched):
            each.cancel()
        await asyncio.gather(task, *watched, return_exceptions=True)


@contextlib.asynccontextmanager
async def _locked(path: Path, tell: Callable[[str], None]) -> AsyncIterator[int]:
    """Hold a lock file, which the processes of the demo hold too: it is free when the last of them has ended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        deadline = time.monotonic() + LONGEST_RUN
        if not _try_lock(file):
            tell("an earlier demo has not ended yet: waiting for it")
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise DemoError(f"another demo runs in {path.parent}; wait for it, or choose another --dir")
            await asyncio.sleep(0.1)
        yield file.fileno()


def _is_unlocked(path: Path) -> bool:
    """Tell whether nobody holds a lock file; the broker holds one as long as it lives."""
    with path.open("r+") as file:
        return _try_lock(file)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _until_signal(demo: Demo) -> list[str]:
    with cancelled_by_signals():
        return await demo.run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo from the command line; return 0 if all came out as it has to."""
    parser = argparse.ArgumentParser(prog="python -m app.demo", description="Everything once, in a few seconds.")
    parser.add_argument("--dir", type=Path, default=Path(".knapsaq/demo"), help="where its files go; emptied first")
    demo = Demo(parser.parse_args(arguments).dir.absolute())
    try:
        problems = asyncio.run(_until_signal(demo))
    except asyncio.CancelledError:
        console.print("Interrupted; everything is stopped.")
        return INTERRUPTED
    except (DemoError, StoryError, KnapsaqError) as error:
        problems = [str(error)]
    if problems:
        demo.print_output()
        for problem in problems:
            console.print(f"[red]Off:[/] {escape(problem)}")
        return 1
    console.print(f"All as promised, in {demo.elapsed:.1f} s. Nothing is left running; the files are in {demo.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
