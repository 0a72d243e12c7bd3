"""Settings: what an operator may choose, from the environment, a ``.env`` file or the program.

Where in the flow: made once when the program connects, then handed down; nothing
below reads the environment. How they are read is in ``environment``, what single ones
may be in ``setting_checks``.

Invariants, each a test in ``tests/unit/test_settings.py``:

* a wrong value raises :class:`SettingsError`, which names the variable, the value and what would be right;
* an empty variable counts as not set, as compose files leave them;
* no password or token is ever shown: not in an error, not in ``repr()``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Self

from knapsaq import setting_checks
from knapsaq.environment import EnvironmentSettings, SecretStr, redact, setting
from knapsaq.errors import SettingsError, nearest
from knapsaq.setting_checks import EMBEDDED, LOG_LEVELS

TEN_YEARS = 315_360_000


class Settings(EnvironmentSettings, prefix="KNAPSAQ_"):
    """What an operator may choose; each field is also the variable ``KNAPSAQ_<FIELD>``, in capitals.

    ``Settings()`` reads the environment and ``.env``; ``Settings(concurrency=50)`` overrides single values. An
    instance never changes. An application adds settings of its own in a subclass.

    Raises:
        SettingsError: A value is of the wrong kind or out of range, or a name given to the constructor is none of
            the fields. ``.setting`` is the variable's name, ``.expected`` says in words what to put there.
    """

    broker_url: str = setting(
        default=EMBEDDED,
        check=setting_checks.broker_url,
        description=(
            "The Redis or Valkey server: redis://[user:password@]host[:port][/db], rediss://... with TLS, "
            "unix:///path/to/socket, or redis+cluster://[user:password@]host:port,host:port; "
            "`embedded` runs a private server for this project"
        ),
    )
    embedded_dir: Path = setting(
        default=Path(".knapsaq"),
        check=setting_checks.directory,
        description="Directory of the embedded server's data, log and locks; relative to the working directory",
    )
    queues: tuple[str, ...] = setting(
        default=("default",),
        read=setting_checks.split_names,
        check=setting_checks.queue_names,
        description=(
            "Queues of this application, comma-separated or a JSON list, at least one and each once; "
            "a name is 1 to 64 of the characters A-Z a-z 0-9 _ . - { }"
        ),
    )
    task_routes: dict[str, str] = setting(
        default_factory=dict,
        read=setting_checks.read_routes,
        check=setting_checks.routes,
        description=(
            'Queues for tasks that name none, by pattern: a JSON object such as {"shop.payments.*": "payments"}; a '
            "pattern is matched against a task's name, then against its module and function, and the first one wins"
        ),
    )
    concurrency: int = setting(
        default=10, ge=1, le=10_000, description="Jobs that a worker process runs at the same time"
    )
    timezone: str = setting(
        default="UTC",
        check=setting_checks.timezone,
        description="IANA name of the zone in which cron expressions are read, such as Europe/Berlin",
    )
    task_timeout: float = setting(
        default=300, ge=0, le=TEN_YEARS, description="Seconds that one attempt of a job may run; 0 is no limit"
    )
    task_max_retries: int = setting(
        default=5,
        ge=0,
        le=10_000,
        description="Further attempts that a task may ask for with Retry if it sets no retries",
    )
    result_ttl: int = setting(
        default=3600,
        ge=-1,
        le=TEN_YEARS,
        description="Seconds that a finished job and its result are kept; 0 keeps them for ever, -1 not at all",
    )
    lease: float = setting(
        default=10,
        ge=1,
        le=3600,
        description="Seconds without a sign of life after which a worker's jobs are taken back",
    )
    loop_stall_limit: float = setting(
        # As long as an attempt may run by default: a task that blocks the loop for longer cannot be timed out.
        default=300,
        check=setting_checks.stall_limit,
        ge=0,
        le=TEN_YEARS,
        description="Seconds, at least 1, that a task may block its worker's loop before the process gives its jobs up "
        "and ends; 0 is no limit",
    )
    unknown_task_limit: float = setting(
        default=600,
        ge=0,
        le=TEN_YEARS,
        description="Seconds that a job of an unknown task is put back before it is a dead letter; 0 is not at all",
    )
    shutdown_grace: float = setting(
        default=30, ge=0, le=86_400, description="Seconds that running jobs get to end when a worker is told to stop"
    )
    max_payload_bytes: int = setting(
        default=1_048_576,
        ge=1024,
        le=512 * 1_048_576,  # the longest string that Redis stores
        description="Bytes that a job's encoded arguments, and its encoded result, may have at most",
    )
    api_token: SecretStr | None = setting(
        default=None,
        check=setting_checks.token,
        description="Secret that a client of the HTTP interface has to show; unset means there is none",
    )
    log_level: str = setting(
        default="INFO",
        check=setting_checks.log_level,
        description=f"The least important messages to log: {', '.join(LOG_LEVELS)}",
    )

    @classmethod
    def load(cls, value: Self | str | None = None) -> Self:
        """Return settings: as given, or of the environment, with a text as the ``broker_url``.

        Raises:
            SettingsError: A value is wrong; see the class.
        """
        if isinstance(value, str):
            return cls(broker_url=value)
        return cls() if value is None else value

    def with_queues(self, names: Iterable[str]) -> Self:
        """Return the settings with further queues, or themselves where they have all of them."""
        queues = tuple(dict.fromkeys((*self.queues, *names)))
        return self if queues == self.queues else self.with_values(queues=queues)

    def check_routes(self) -> None:
        """Refuse ``task_routes`` that lead to a queue of another program.

        Raises:
            SettingsError: A queue of theirs is not among ``queues``; it is named with its pattern.
        """
        for pattern, queue in self.task_routes.items():
            if queue not in self.queues:
                expected = f"for {pattern!r} a queue of KNAPSAQ_QUEUES, which {queue!r} is not: "
                raise SettingsError("KNAPSAQ_TASK_ROUTES", self.task_routes, expected + nearest(queue, self.queues))

    @property
    def redacted_broker_url(self) -> str:
        """The ``broker_url`` as it may be shown: with its password hidden."""
        return redact(self.broker_url)


def routed(routes: Mapping[str, str], *names: str) -> str | None:
    """Return the queue of the first pattern that fits a name, or None; the first name that any fits decides."""
    return next((queue for name in names for pattern, queue in routes.items() if fnmatchcase(name, pattern)), None)
