"""Child: the inside of a process that runs the functions of ``run="process"`` tasks.

Where in the flow: ``children`` starts such processes and asks them, one call at a time. The function is found by its
module and its name, arguments come and results go as JSON. A line to the worker, a socket, says when the
function begins, carries log records and how far it is, and tells of an order to end; where the worker is gone, the
process ends.

Invariants, each a test in ``tests/redis/test_children.py``:

* a function does not begin before the worker has said so, nor after the worker has given it up;
* the process ends with its worker, and when nobody has used it for a while;
* the newest progress is told within a tenth of a second, and the last of all with the reply.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import msgspec

from knapsaq.context import Context
from knapsaq.errors import SoftTimeLimitExceeded, TaskDefinitionError
from knapsaq.job import META_KEY, Job
from knapsaq.lineage import CORRELATION, origin
from knapsaq.outcomes import Discard, Retry, Snooze, TaskSignal, error_text, storable, succeeded
from knapsaq.progress import NO_TURN, WRITE_SECONDS, put
from knapsaq.registry import get_registry
from knapsaq.wiring import AnyTask

GO, END = b"g", b"e"  # what the worker says: begin, and end as soon as you ask
MAX_LOGGED_CHARACTERS = 16_384
LOGGED = ("job", "task", CORRELATION)  # what a record carries besides its text


class Request(msgspec.Struct):
    """What a process is asked to do.

    Attributes:
        call: What it says when the function could begin.
        socket: Where it says so.
        task: The task's name.
        module: Where its function is defined.
        qualname: And as what.
        key: The job's key.
        attempts: Which attempt it is, from 1.
        extras: The job's headers, parent and root, as far as it has them.
        kwargs: Its arguments as they are stored.
        soft: The soft limit in seconds.
        idle: Seconds after which the process ends if nobody asks it for anything.
        levels: The levels of the worker's loggers, by name.
    """

    call: str
    socket: str
    task: str
    module: str
    qualname: str
    key: str
    attempts: int
    extras: dict[str, Any]
    kwargs: dict[str, Any]
    soft: float | None
    idle: float
    levels: dict[str, int]


class Reply(msgspec.Struct):
    """How it ended: with a result, with a signal, or with an error.

    Attributes:
        result: What the function returned, in JSON's types.
        problem: Why that could not be stored.
        signal: What the task chose: ``retry``, ``snooze`` or ``discard``.
        after: Seconds, of a retry or a snooze.
        error: A traceback, or a reason to discard.
        again: Whether the task's options would have an attempt with this error repeated.
        told: Whether the function has heard that it is to end.
        progress: How far it was at last, as ``Job.progress_meta`` has it.
    """

    result: Any = None
    problem: str | None = None
    signal: str | None = None
    after: float | None = None
    error: str | None = None
    again: bool = False
    told: bool = False
    progress: dict[str, Any] = {}


class Line(msgspec.Struct, tag="log"):
    """A log record on its way to the worker."""

    name: str
    level: int
    text: str
    job: str | None = None
    task: str | None = None
    correlation_id: str | None = None


class Progress(msgspec.Struct, tag="progress"):
    """How far the job is, on its way to the worker."""

    details: dict[str, Any]


class ProcessContext(Context):
    """The context in a process: it has ``job``, as far as that can be known there, and ``task``, but no connection."""

    on_progress: Callable[[], None] | None = None

    def set_progress(self, current: float, total: float, **meta: Any) -> Awaitable[None]:
        """Tell how far the job is, without ``await``; the worker writes it."""
        put(self.job, self.task.name, current, total, meta)
        if self.on_progress is not None:
            self.on_progress()
        return NO_TURN

    @property
    def called_directly(self) -> bool:
        """Whether the function was called in place, not by a worker."""
        return False

    def __missing__(self, key: str) -> NoReturn:
        task = self["task"].name
        problem = f"ctx[{key!r}] is not to be had in a process; use run='thread', or return what another task needs"
        raise TaskDefinitionError(task, problem)


def locate(task: str, module: str, qualname: str) -> AnyTask:
    """Import a module and return the task that it makes of a function.

    Raises:
        TaskDefinitionError: There is none; the text says what to do.
        Exception: Whatever the import raises.
    """
    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name, None)
    if getattr(found, "name", None) == task and hasattr(found, "signature"):
        return found  # type: ignore[no-any-return] # it is a task by its looks
    registered = get_registry().find(task)
    if registered is not None and registered.function is found:
        return registered
    raise not_found(task, module, qualname)


def find_again(task: AnyTask) -> None:
    """Refuse a task that is to run in a process, if that would not find it by its module and its name.

    Raises:
        TaskDefinitionError: Saying what to do.
    """
    if task.options.run != "process":
        return
    function = task.function
    if locate(task.name, function.__module__, function.__qualname__) is not task:
        raise not_found(task.name, function.__module__, function.__qualname__)


def not_found(task: str, module: str, qualname: str) -> TaskDefinitionError:
    """Return the error of a task that another process does not find."""
    problem = f"another process does not find it as {module}.{qualname}; define it at the top of a module, with @task"
    return TaskDefinitionError(task, problem)


def run(payload: bytes) -> bytes:
    """Do what a request asks, in the main thread of a process; returns a reply."""
    _obey_the_worker_alone()
    _idle.end()
    request = msgspec.json.decode(payload, type=Request)
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(request.socket)
            reply = _Call(request, line).run()
        return msgspec.json.encode(reply)
    finally:
        _idle.begin(request.idle)


class _Call:
    """One call of a function, and the line to the worker during it."""

    def __init__(self, request: Request, line: socket.socket) -> None:
        self._request, self._line = request, line
        self._job: Job[Any] = Job(
            request.task, key=request.key, attempts=request.attempts, meta={META_KEY: request.extras}
        )
        self._ended = False
        self._sending = threading.Lock()
        self._reported_at = -math.inf
        self._reporting: threading.Timer | None = None

    def run(self) -> Reply:
        try:
            task, function = self._prepared()
        except BaseException as error:  # noqa: BLE001 - the worker has to hear of it, whatever it is
            self._said_go()
            return Reply(error=error_text(error))
        if not self._said_go():
            return Reply(error="nobody waits for it any more")
        listening = threading.Thread(target=self._listen, name="knapsaq-line", daemon=True)
        listening.start()
        origin.set(self._job)
        try:
            with self._logging(), _reminded(self._request):
                result = function()
            reply = self._chosen(result) if isinstance(result, TaskSignal) else self._returned(result)
        except TaskSignal as chosen:
            reply = self._chosen(chosen)
        except BaseException as error:  # noqa: BLE001 - likewise
            reply = Reply(error=error_text(error), again=task.options.retries_after(error))
        self._hang_up()
        reply.told, reply.progress = self._job.told, dict(self._job.progress_meta)
        return reply

    def _prepared(self) -> tuple[AnyTask, Callable[[], Any]]:
        request = self._request
        task = locate(request.task, request.module, request.qualname)
        args, kwargs = task.signature.unbind(request.kwargs, {})
        if task.takes_context:
            ctx = ProcessContext(job=self._job, task=task)
            ctx.on_progress = self._report
            args = (ctx, *args)
        return task, lambda: task.function(*args, **kwargs)

    def _said_go(self) -> bool:
        """Say that the function could begin; returns whether it may."""
        try:
            self._line.sendall(f"{self._request.call}\n".encode())
            return self._line.recv(1) == GO
        except OSError:
            return False

    def _listen(self) -> None:
        """Hear of an order to end, and of the worker's own end, which is the process'."""
        while True:
            try:
                said = self._line.recv(1)
            except OSError:
                said = b""
            if self._ended:
                return
            if not said:
                os._exit(1)
            self._job.interrupted = True

    def _report(self) -> None:
        """Tell how far it is soon; the line is not flooded, and the newest value is not forgotten."""
        if self._reporting is not None:
            return
        left = self._reported_at + WRITE_SECONDS - time.monotonic()
        if left <= 0:
            self._send_progress()
            return
        self._reporting = threading.Timer(left, self._send_progress)
        self._reporting.daemon = True
        self._reporting.start()

    def _send_progress(self) -> None:
        self._reporting, self._reported_at = None, time.monotonic()
        if not self._ended:
            with contextlib.suppress(OSError):  # the worker is gone, and so will be the process
                self._send(Progress(dict(self._job.progress_meta)))

    def _send(self, message: Line | Progress) -> None:
        text = msgspec.json.encode(message) + b"\n"
        with self._sending:
            self._line.sendall(text)

    def _hang_up(self) -> None:
        self._ended = True
        if self._reporting is not None:
            self._reporting.cancel()
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _logging(self) -> Iterator[None]:
        """Hand log records to the worker, as what a process writes is not to be seen."""
        for name, level in self._request.levels.items():
            logging.getLogger(name or None).setLevel(level)
        handler = _ToWorker(self._send)
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)

    def _returned(self, result: Any) -> Reply:
        outcome = succeeded(self._request.task, result)
        return Reply(result=outcome.result, problem=outcome.problem)

    def _chosen(self, chosen: TaskSignal) -> Reply:
        if isinstance(chosen, Retry):
            cause = error_text(chosen.__cause__ or chosen.__context__ or chosen)
            return Reply(signal="retry", after=chosen.after, error=cause)
        if isinstance(chosen, Snooze):
            return Reply(signal="snooze", after=chosen.after)
        if isinstance(chosen, Discard):
            return Reply(signal="discard", error=storable(str(chosen.reason)))
        return Reply(error=error_text(chosen))


class _ToWorker(logging.Handler):
    """Sends log records over a line."""

    def __init__(self, send: Callable[[Line], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = storable(self.format(record))[:MAX_LOGGED_CHARACTERS]
            extras = {name: value for name in LOGGED if isinstance(value := vars(record).get(name), str)}
            self._send(Line(record.name, record.levelno, text, **extras))
        except Exception:  # noqa: BLE001 - a record that cannot be told must not end the function
            self.handleError(record)


class _Idle:
    """Ends the process when it has not been used for a while."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def begin(self, seconds: float) -> None:
        with self._lock:
            self._timer = threading.Timer(seconds, self._leave)
            self._timer.daemon = True
            self._timer.start()

    def end(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None

    def _leave(self) -> None:
        with self._lock:
            if self._timer is threading.current_thread():
                os._exit(0)


_idle = _Idle()


def _obey_the_worker_alone() -> None:
    """Leave it to the worker to answer Ctrl-C and SIGTERM, which a terminal or systemd sends to every process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # A function, as programs that the task starts would inherit to ignore them.
        signal.signal(number, lambda _number, _frame: None)


@contextlib.contextmanager
def _reminded(request: Request) -> Iterator[None]:
    """Raise the soft limit's error in the block when it is time."""
    if request.soft is None:
        yield
        return
    error = SoftTimeLimitExceeded(request.task, request.soft)

    def remind(_number: int, _frame: FrameType | None) -> NoReturn:
        raise error

    before = signal.signal(signal.SIGALRM, remind)
    signal.setitimer(signal.ITIMER_REAL, request.soft)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
