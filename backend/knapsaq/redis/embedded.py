"""The embedded broker: a private Valkey server that the processes of one project share.

Where in the flow: where the broker's URL is ``embedded``, whoever connects calls
``start()``, uses the URL that it returns, and calls ``stop()`` when it leaves.

Three files in the directory carry locks (flock), which the kernel takes back when a
process ends, however it ends:

* ``broker.lock`` is held while somebody decides to start or stop: one process at a time;
* ``users.lock`` is held, shared, by every process that uses the server;
* ``server.lock`` is held by the server itself, which inherits it. So whether it lives does not depend on its pid (by
  now perhaps another's), on its socket (perhaps a leftover), nor on being its parent (which would collect zombies).

Invariants, each a test in ``tests/redis/test_embedded.py``:

* however many processes start at once, there is one server on a directory;
* the last user that leaves stops it, and its data is on the disk when ``stop()`` returns;
* a server whose users died is adopted by the next user and stopped when that one leaves;
* Ctrl-C reaches the program but not the server, and a forked child cannot stop its parent's server.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from knapsaq.errors import BrokerError
from knapsaq.redis.server import ask, connect, embedded_error, find_program, socket_path, spawn, tail

if sys.platform != "win32":
    import fcntl

DECIDE_LIMIT = 30.0
START_LIMIT = 10.0
STOP_LIMIT = 10.0
ASK_INTERVAL = 1.0
POLL_INTERVAL = 0.005

ELSEWHERE = "set KNAPSAQ_EMBEDDED_DIR to a directory of yours on a local disk, or KNAPSAQ_BROKER_URL to a server"


class EmbeddedBroker:
    """One process's hold on the server of a directory.

    It is a context manager too. Starting and stopping block, for some 50 ms as a rule: a coroutine calls them with
    ``asyncio.to_thread``. Any thread may.

    Args:
        directory: Where the server keeps data, log and locks. If it is missing it is made, for this user alone.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory).expanduser().absolute()
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._hold: _Hold | None = None

    def start(self) -> str:
        """Start the server or join the one that runs; once more, restart it if it has crashed.

        Returns:
            The server's URL, ``unix://...``.

        Raises:
            BrokerError: There is no server program, the directory cannot be used, or the server does not start, in
                which case the error ends with what the server logged last.
        """
        if sys.platform == "win32":
            raise embedded_error("does not run on Windows", "set KNAPSAQ_BROKER_URL to a Redis or Valkey server")
        self._disown_parents()
        with self._mutex:
            if self._hold is not None and self._hold.is_deleted():
                self._leave()
            hold, self._hold = self._hold or _Hold.open(self.directory), None
            try:
                path = hold.join()
            except BaseException:
                hold.close()
                raise
            self._hold = hold
        return f"unix://{quote(path)}"

    def stop(self) -> None:
        """Leave the server; the last one that leaves stops it and waits until its data is on the disk.

        Nothing happens without a ``start()`` before, and in a forked child of the process that started.

        Raises:
            BrokerError: The server does not stop within 10 s. It has been left nevertheless.
        """
        self._disown_parents()
        with self._mutex:
            self._leave()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _leave(self) -> None:
        hold, self._hold = self._hold, None
        if hold is not None:
            with contextlib.closing(hold):
                hold.leave()

    def _disown_parents(self) -> None:
        """In a forked child drop what the parent holds; to close a copy of a lock's descriptor does not unlock it."""
        if self._pid == os.getpid():
            return
        if self._hold is not None:
            self._hold.close()
        # The mutex too: another thread of the parent may have had it when the child was forked.
        self._pid, self._mutex, self._hold = os.getpid(), threading.Lock(), None


@dataclass(slots=True)
class _Hold:
    """The open lock files of one directory, and a connection to its server.

    They stay open from start to stop, so that they belong together even if the directory is deleted meanwhile.
    """

    directory: Path
    broker_lock: int
    users_lock: int
    server_lock: int
    line: socket.socket | None = None

    @classmethod
    def open(cls, directory: Path) -> _Hold:
        """Open the lock files, in a directory that is made if it is missing."""
        with contextlib.ExitStack() as undo:
            try:
                _make_private(directory)
                broker, users, server = (
                    _open(directory / f"{name}.lock", undo) for name in ("broker", "users", "server")
                )
            except OSError as error:
                raise embedded_error(f"cannot use the directory {directory} ({error})", ELSEWHERE) from error
            undo.pop_all()
        return cls(directory, broker, users, server)

    def close(self) -> None:
        """Let go of the locks and the connection."""
        for descriptor in (self.users_lock, self.server_lock, self.broker_lock):
            os.close(descriptor)
        if self.line is not None:
            self.line.close()

    def is_deleted(self) -> bool:
        """Return whether the locks are no longer those of the directory, because it was deleted."""
        try:
            return not os.path.samestat(os.fstat(self.users_lock), (self.directory / "users.lock").stat())
        except OSError:
            return True

    def join(self) -> str:
        """Become a user of the server, starting it if need be, and return its socket."""
        with self._deciding():
            _lock(self.users_lock, fcntl.LOCK_SH)
            try:
                return self._find_server() or self._launch_server()
            except BaseException:
                with contextlib.suppress(BrokerError):
                    self._stop_if_last()
                raise

    def leave(self) -> None:
        """Be a user no more; the last one stops the server."""
        with self._deciding():
            self._stop_if_last()

    @contextlib.contextmanager
    def _deciding(self) -> Iterator[None]:
        deadline = time.monotonic() + DECIDE_LIMIT
        while not _lock(self.broker_lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                held = self.directory / "broker.lock"
                raise embedded_error(
                    f"another process has locked {held} for {DECIDE_LIMIT:g} s", "wait, or end that process"
                )
            time.sleep(POLL_INTERVAL)
        try:
            yield
        finally:
            fcntl.flock(self.broker_lock, fcntl.LOCK_UN)

    def _stop_if_last(self) -> None:
        is_last = _lock(self.users_lock, fcntl.LOCK_EX)
        try:
            if is_last:
                self._stop_server()
        finally:
            fcntl.flock(self.users_lock, fcntl.LOCK_UN)

    def _is_server_gone(self) -> bool:
        if not _lock(self.server_lock, fcntl.LOCK_EX):
            return False
        fcntl.flock(self.server_lock, fcntl.LOCK_UN)
        return True

    def _find_server(self) -> str | None:
        """Return the socket of the server that runs, once it answers; ``None`` if none runs."""
        if self._is_server_gone():
            return None
        path = self._socket_in_use()
        return path if self._await_server(path) else None

    def _socket_in_use(self) -> str:
        # Written down by the process that started the server, whose TMPDIR may have been another.
        with contextlib.suppress(OSError):
            return os.fsdecode((self.directory / "broker.socket").read_bytes())
        return socket_path(self.directory)

    def _launch_server(self) -> str:
        """Start a server, wait until it answers, and return its socket."""
        program = find_program()
        log = self.directory / "broker.log"
        try:
            path = socket_path(self.directory)
            if log.exists():
                log.replace(self.directory / "broker.log.1")
            note = self.directory / "broker.socket"
            note.touch(mode=0o600)
            note.write_bytes(os.fsencode(path))
            with contextlib.ExitStack() as undo:
                inherited = _open(self.directory / "server.lock", undo)
                if not _lock(inherited, fcntl.LOCK_EX):
                    raise embedded_error(f"a server has {self.directory} already", self._kill_remedy())
                spawn(program, self.directory, path, inherited)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise embedded_error(f"cannot run {program} in {self.directory} ({error})", ELSEWHERE) from error
        if self._await_server(path):
            return path
        raise embedded_error(
            f"{program} does not start in {self.directory}",
            f"move that directory away to begin without its data, or {ELSEWHERE}. The log ends with:\n{tail(log)}",
        )

    def _await_server(self, path: str) -> bool:
        """Return whether the server answers; ``False`` if it ends instead."""
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self._keep(connect(path))
                answer = self._ask("PING")
                if answer == "+PONG":
                    return True
                if answer.startswith("-LOADING"):
                    deadline = time.monotonic() + START_LIMIT
            if self._is_server_gone():
                return False
            time.sleep(POLL_INTERVAL)
        raise embedded_error(f"does not answer on {path} within {START_LIMIT:g} s", self._kill_remedy())

    def _ask(self, command: str) -> str:
        return "" if self.line is None else ask(self.line, command)

    def _keep(self, line: socket.socket) -> None:
        if self.line is not None:
            self.line.close()
        self.line = line

    def _stop_server(self) -> None:
        """Stop the server if it runs, and wait until it has ended, when all its data is written."""
        deadline = time.monotonic() + STOP_LIMIT
        ask_again = 0.0
        while not self._is_server_gone():
            now = time.monotonic()
            if now > deadline:
                raise embedded_error(f"does not stop within {STOP_LIMIT:g} s", self._kill_remedy())
            if now > ask_again:
                self._ask_to_stop()
                ask_again = time.monotonic() + ASK_INTERVAL
            time.sleep(POLL_INTERVAL)

    def _ask_to_stop(self) -> None:
        # By a command, not a signal: a pid may mean another process by now, or in this container.
        with contextlib.suppress(OSError):
            # The server may have been restarted since; in a deleted directory the old connection is all there is.
            if not self.is_deleted():
                self._keep(connect(self._socket_in_use()))
            self._ask("SHUTDOWN")

    def _kill_remedy(self) -> str:
        return f"look into {self.directory / 'broker.log'}, or end the process whose id is in broker.pid next to it"


def _open(path: Path, undo: contextlib.ExitStack) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    undo.callback(os.close, descriptor)
    return descriptor


def _lock(descriptor: int, kind: int) -> bool:
    """Lock an open file if that is possible at once, and return whether it was."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise embedded_error(f"the directory is on a file system without locks ({error})", ELSEWHERE) from error
    return True


def _make_private(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        return
    # Only into a directory of our own making: in another it would hide a user's files from git.
    (directory / ".gitignore").write_text("*\n", "utf-8")
