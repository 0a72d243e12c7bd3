"""The demo and the development server, as a developer runs and kills them."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.app.conftest import PATIENCE, eventually

from app import leash
from app.processes import free_port


def is_unlocked(path: Path) -> bool:
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def run(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python to its end."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603


class Started:
    """A command that a test started as a developer does: no leash, its output in a file."""

    def __init__(self, folder: Path, env: dict[str, str], *arguments: str) -> None:
        self.log = folder / f"{arguments[1]}-{free_port()}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(  # noqa: S603 - our own commands
                [sys.executable, *arguments], env=env, stdout=output, stderr=output, start_new_session=True
            )

    @property
    def output(self) -> str:
        """What it has written."""
        return self.log.read_text(errors="replace")

    def await_text(self, text: str) -> None:
        """Wait until it has written a text."""

        def look() -> bool | None:
            assert self.process.poll() is None, self.output
            return text in self.output or None

        eventually(f"it says {text!r}", look)

    def end(self, signum: int) -> int:
        """Send it a signal and return its exit code."""
        self.process.send_signal(signum)
        return self.process.wait(PATIENCE)


@pytest.fixture
def begun() -> Iterator[list[Started]]:
    """What a test has started, killed at its end if it has not ended."""
    started: list[Started] = []
    yield started
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


@pytest.fixture
def clean_env(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith(("KNAPSAQ_", "APP_"))}


def test_after_a_kill_the_next_demo_is_clean_and_nothing_is_left_running(
    clean_env: dict[str, str], tmp_path: Path, begun: list[Started]
) -> None:
    """A killed demo takes its processes with it; a second one runs to its end and leaves no broker."""
    arguments = ("-m", "app.demo", "--dir", str(tmp_path / "demo"))
    killed = Started(tmp_path, clean_env, *arguments)
    begun.append(killed)
    killed.await_text("people sign up")
    assert killed.end(signal.SIGKILL) == -signal.SIGKILL

    second = Started(tmp_path, clean_env, *arguments)
    begun.append(second)

    assert second.process.wait(60) == 0, second.output
    assert "All as promised" in second.output
    assert second.output.count("charge_payment") == 4
    assert second.output.count("News from Knapsaq") == 3
    assert is_unlocked(tmp_path / "demo.lock"), "a process of the demo holds the lock as long as it lives"
    assert is_unlocked(tmp_path / "demo" / "broker" / "server.lock"), "the broker holds this one"


def test_ctrl_c_ends_the_demo_and_all_that_it_started(
    clean_env: dict[str, str], tmp_path: Path, begun: list[Started]
) -> None:
    demo = Started(tmp_path, clean_env, "-m", "app.demo", "--dir", str(tmp_path / "demo"))
    begun.append(demo)
    demo.await_text("people sign up")

    assert demo.end(signal.SIGINT) == 130, demo.output
    assert is_unlocked(tmp_path / "demo.lock")
    assert is_unlocked(tmp_path / "demo" / "broker" / "server.lock")


def test_the_demo_names_the_process_that_does_not_start(clean_env: dict[str, str], tmp_path: Path) -> None:
    env = clean_env | {"APP_SMTP_TIMEOUT": "-1"}

    demo = run(env, "-m", "app.demo", "--dir", str(tmp_path / "demo"))

    assert demo.returncode == 1
    assert "ended by itself with exit code" in demo.stdout
    assert "smtp_timeout" in demo.stdout


def test_the_demo_does_not_empty_a_folder_of_somebody_elses(clean_env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")

    demo = run(clean_env, "-m", "app.demo", "--dir", str(tmp_path))

    assert demo.returncode == 1
    assert "choose another --dir" in demo.stdout
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_the_development_server_reloads_and_ends_with_one_ctrl_c(
    clean_env: dict[str, str], tmp_path: Path, begun: list[Started]
) -> None:
    port, smtp_port = free_port(), free_port()
    source = tmp_path / "source"
    source.mkdir()
    env = clean_env | {
        "KNAPSAQ_EMBEDDED_DIR": str(tmp_path / "broker"),
        "KNAPSAQ_SHUTDOWN_GRACE": "1",
        "APP_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path / 'app.db'}",
    }
    ports = ("--port", str(port), "--smtp-port", str(smtp_port), "--mail-dir", str(tmp_path / "mails"))
    server = Started(tmp_path, env, "-m", "app.dev", *ports, "--watch", str(source))
    begun.append(server)

    def signed_up(name: str) -> bool | None:
        try:
            answer = httpx.post(f"http://127.0.0.1:{port}/users", json={"email": f"{name}@example.com", "name": name})
        except httpx.HTTPError:
            return None
        return answer.is_success or None

    eventually("the API takes a sign-up", lambda: signed_up("first"))
    server.await_text("mail to first@example.com: Welcome, first")
    (source / "changed.py").write_text("")
    server.await_text("changed.py changed: starting again")
    eventually("the API takes another sign-up", lambda: signed_up("second"))
    server.await_text("mail to second@example.com: Welcome, second")

    assert server.end(signal.SIGINT) == 0, server.output
    assert is_unlocked(tmp_path / "broker" / "server.lock")
    for name in ("api", "worker", "mail"):
        assert f"{name:>6} | " in server.output


def test_a_taken_port_is_named_with_what_to_do(clean_env: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = run(clean_env, "-m", "app.dev", "--port", str(port))

    assert server.returncode == 1
    assert server.stderr == f"port {port} is taken; choose another: make dev ARGS='--port {port + 1}'\n"


def test_a_leashed_command_ends_with_the_pipe_even_if_it_ignores_to_be_asked(tmp_path: Path) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    with subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, leash.__file__, "0.1", sys.executable, "-c", stubborn],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"up\n"

        process.stdin.close()

        assert process.wait(PATIENCE) == -signal.SIGKILL
        assert process.stdout.read() == b"", "the command is gone too: it held the other end"


def test_a_leash_has_the_exit_code_of_its_command() -> None:
    command = [sys.executable, leash.__file__, "1", sys.executable, "-c", "raise SystemExit(7)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:  # noqa: S603
        assert process.wait(PATIENCE) == 7


def test_a_leash_names_a_command_that_is_not_there() -> None:
    missing = run(dict(os.environ), leash.__file__, "1", "/no/such/command")

    assert missing.returncode == 127
    assert missing.stderr == "cannot start /no/such/command: No such file or directory\n"
