"""The private server of a run, what it counts, and which of its commands came from scripts."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import redis

from knapsaq.redis.server import find_program

START_LIMIT = 10.0
LINE = re.compile(rb'^\+[\d.]+ \[\d+ ([^\]]+)\] "([^"]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Counters:
    """What a server has counted, without what the benchmark itself asked of it."""

    commands: Counter[str]
    reads: int
    cpu: float


class Server:
    """A server of our own on the loopback interface, without persistence unless asked.

    Args:
        folder: Where it logs and keeps its append-only file.
        program: A program on the PATH; the embedded broker's unless given.
    """

    def __init__(self, folder: Path, program: str | None = None) -> None:
        self.program = program or find_program()
        self._folder = folder
        self._own: Counter[str] = Counter()

    def __enter__(self) -> Self:
        with socket.create_server(("127.0.0.1", 0)) as line:
            self.port = line.getsockname()[1]
        options = f"--port {self.port} --bind 127.0.0.1 --appendonly no --appendfsync everysec --daemonize no"
        with (self._folder / "server.log").open("wb") as log:
            # In a session of its own: Ctrl-C is for the benchmark, which stops the server.
            self._process = subprocess.Popen(  # noqa: S603 - our own arguments
                [self.program, *options.split(), "--save", "", "--dir", self._folder],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._redis = redis.Redis(port=self.port)
        deadline = time.monotonic() + START_LIMIT
        while True:
            with contextlib.suppress(redis.ConnectionError):
                self.address = str(self._redis.client_info()["addr"]).encode()
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                msg = f"{self.program} does not start: {(self._folder / 'server.log').read_text()[-500:]}"
                raise RuntimeError(msg)
            time.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        self._redis.close()
        self._process.terminate()
        self._process.wait()

    @property
    def version(self) -> str:
        """The server's name and version."""
        info = self._redis.info("server")
        name = info.get("server_name", "redis")
        return f"{name} {info.get(f'{name}_version', info['redis_version'])}"

    def ask(self, *words: str | int) -> Any:
        """Ask the server something, and keep it out of the counters."""
        self._own[str(words[0]).lower()] += 1
        return self._redis.execute_command(*words)

    def clear(self) -> None:
        """Delete everything."""
        self.ask("FLUSHALL", "SYNC")

    def left(self, commands: tuple[tuple[str, ...], ...]) -> int:
        """Return the sum of what commands say."""
        replies = [self.ask(*words) for words in commands]
        return sum(int(reply["pending"] if isinstance(reply, dict) else reply) for reply in replies)

    def memory(self) -> int:
        """Return the bytes in use."""
        return int(self.ask("INFO", "memory")["used_memory"])

    def results(self, keys: str, mark: bytes) -> int:
        """Return how many results there are."""
        if "*" not in keys:
            return int(self.ask("HLEN", keys))
        found = set(self._redis.scan_iter(match=keys, count=10_000))
        if not mark:
            return len(found)
        return sum(mark in (value or b"") for value in self._redis.mget(found)) if found else 0

    def counters(self) -> Counters:
        """Return what the server has counted so far."""
        stats = self.ask("INFO", "commandstats")
        other = {**self.ask("INFO", "stats"), **self.ask("INFO", "cpu")}
        calls = Counter({name.removeprefix("cmdstat_"): int(entry["calls"]) for name, entry in stats.items()})
        calls.subtract(self._own)
        return Counters(
            commands=calls,
            # One read a question, give or take one that is the same in all snapshots.
            reads=int(other["total_reads_processed"]) - self._own.total(),
            cpu=float(other["used_cpu_user"]) + float(other["used_cpu_sys"]),
        )

    @contextlib.contextmanager
    def append_only(self) -> Iterator[None]:
        """Write every change to the append-only file, synced once a second, while the block runs."""
        self.ask("CONFIG", "SET", "appendonly", "yes")
        try:
            while self._rewriting():
                time.sleep(0.01)
            yield
        finally:
            self.ask("CONFIG", "SET", "appendonly", "no")

    def _rewriting(self) -> bool:
        state = self.ask("INFO", "persistence")
        return bool(state["aof_rewrite_in_progress"] or state["aof_rewrite_scheduled"])


class Monitor:
    """Sees each command while its block runs. It slows the server down: nothing is timed meanwhile."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parts: list[bytes] = []

    def __enter__(self) -> Self:
        self._line = socket.create_connection(("127.0.0.1", self._server.port))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._line.sendall(b"MONITOR\r\n")
        self._parts.append(self._line.recv(5))
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._line.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._line.close()
        self.top: Counter[str] = Counter()
        self.inner: Counter[str] = Counter()
        for source, word in LINE.findall(b"".join(self._parts)):
            if source != self._server.address:
                (self.inner if source == b"lua" else self.top)[word.decode().lower()] += 1

    def _read(self) -> None:
        while part := self._line.recv(1 << 20):
            self._parts.append(part)

    def split(self, calls: Counter[str]) -> tuple[float, float]:
        """Return how many of some calls came over a connection, and how many scripts ran.

        Nearly every command comes from one side only; one that comes from both is split as it was seen here.
        """
        inner = 0.0
        for name, number in calls.items():
            word = name.partition("|")[0]
            seen = self.top[word] + self.inner[word]
            inner += number * self.inner[word] / seen if seen else 0
        return calls.total() - inner, inner
