"""Processes of a development machine: started together, ended together, leaving none behind.

Each runs in a session of its own behind a leash (`app.leash`), so Ctrl-C reaches
the starter alone, which ends the others in the right order; and when the starter
is killed they end by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path

from app import leash

BACKEND = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
LONGEST_LINE = 1_048_576

WORKER = (str(BIN / "knapsaq"), "-A", "app.queue.config", "worker")

Listener = Callable[[str, str], None]
"""Told of each line of output: the process' name and the line."""


def api_command(port: int) -> tuple[str, ...]:
    """Return the command that serves the application on a local port."""
    return (str(BIN / "litestar"), "--app", "app.main:app", "run", "--host", "127.0.0.1", "--port", str(port))


def smtp_command(port: int, folder: Path) -> tuple[str, ...]:
    """Return the command that serves the mail sink on a local port; 0 takes a free one."""
    return (sys.executable, "-m", "app.smtp_sink", "--port", str(port), "--dir", str(folder))


def environment(**extra: str) -> dict[str, str]:
    """Return this process' environment with the application importable, output unbuffered, and ``extra``."""
    path = os.pathsep.join(filter(None, (str(BACKEND), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **extra}


def is_free(port: int) -> bool:
    """Tell whether a local port can be listened on."""
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a local port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Leashed:
    """A running process behind a leash."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, listener: Listener) -> None:
        self.name = name
        self._process = process
        self._is_stopped = False
        self._reader = asyncio.create_task(self._read(listener))

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        folder: Path | None,
        keep_open: tuple[int, ...],
        grace: float,
        listener: Listener,
    ) -> Leashed:
        """Start a command in a folder; ``grace`` is the seconds that it gets to end."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", leash.__file__, str(grace), *command),
            env=env,
            cwd=folder,
            pass_fds=keep_open,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=LONGEST_LINE,
        )
        return cls(name, process, listener)

    @property
    def code(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait until it has ended by itself and return its exit code."""
        code = await self._process.wait()
        # Whatever the command left behind in its session goes with it; macOS says EPERM where nobody is left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # The output ends with the last process that holds its pipe, which a server started on demand may outlive.
        await asyncio.wait({self._reader}, timeout=1)
        self._reader.cancel()
        return code

    async def stop(self) -> int:
        """End it: SIGTERM, and SIGKILL after its grace; return its exit code."""
        self._is_stopped = True
        if self._process.stdin is not None:
            self._process.stdin.close()
        return await self.wait()

    async def _read(self, listener: Listener) -> None:
        stream = self._process.stdout
        while stream is not None and (line := await stream.readline()):
            listener(self.name, line.decode(errors="replace").rstrip())
        code = await self._process.wait()
        if not self._is_stopped:
            listener(self.name, f"ended by itself with exit code {code}")


class Processes:
    """Processes that belong together.

    Args:
        listener: Told of each line that one of them writes.
        grace: Seconds that each gets to end.
        folder: Where they run; here unless given.
        keep_open: File descriptors that stay open while one of them runs.
    """

    def __init__(
        self, listener: Listener, grace: float, folder: Path | None = None, keep_open: tuple[int, ...] = ()
    ) -> None:
        self.running: dict[str, Leashed] = {}
        self._listener = listener
        self._grace = grace
        self._folder = folder
        self._keep_open = keep_open

    async def start(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> Leashed:
        """Start one more."""
        self.running[name] = await Leashed.start(
            name,
            command,
            env,
            folder=self._folder,
            keep_open=self._keep_open,
            grace=self._grace,
            listener=self._listener,
        )
        return self.running[name]

    async def stop(self, *names: str) -> dict[str, int]:
        """End those of the names, or all, the last started first; return their exit codes."""
        codes: dict[str, int] = {}
        for name in names or tuple(reversed(self.running)):
            if process := self.running.get(name):
                codes[name] = await process.stop()
                del self.running[name]
        return codes


@contextlib.asynccontextmanager
async def running(
    listener: Listener, grace: float, *, folder: Path | None = None, keep_open: tuple[int, ...] = ()
) -> AsyncIterator[Processes]:
    """Give a block processes to start, as `Processes` describes; all have ended when it is left, however it is."""
    processes = Processes(listener, grace, folder, keep_open)
    try:
        yield processes
    finally:
        # Shielded: a second Ctrl-C must not leave a process behind.
        await asyncio.shield(processes.stop())


@contextlib.contextmanager
def cancelled_by_signals() -> Iterator[None]:
    """Cancel the current asyncio task at SIGINT and SIGTERM while the block runs; later ones change nothing."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    pending = [task] if task is not None else []

    def cancel() -> None:
        while pending:
            pending.pop().cancel()

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, cancel)
    try:
        yield
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(signum)
