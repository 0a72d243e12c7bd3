"""Settings: what an operator may choose, from the environment, a ``.env`` file or the program.

Where in the flow: made once when the program connects, then handed down; nothing
below reads the environment. A value given to the constructor wins over the
environment, which wins over ``.env`` in the working directory.

Invariants, each a test in ``tests/unit/test_settings.py``:

* a wrong value raises :class:`SettingsError`, which names the variable, the value and what would be right;
* an empty variable counts as not set, as compose files leave them;
* no password or token is ever shown: not in an error, not in ``repr()``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import SplitResult, urlsplit
from zoneinfo import ZoneInfo

from annotated_types import Ge, Le
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from knapsaq.errors import SettingsError, nearest
from knapsaq.shards import is_cluster, seeds_of

EMBEDDED = "embedded"
"""The ``broker_url`` that means: run a private server for this project."""

QUEUE_NAME = re.compile(r"[A-Za-z0-9_.{}-]{1,64}")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
TEN_YEARS = 315_360_000
HIDDEN = "***"


def redact(url: str) -> str:
    """Return a URL with its password hidden, be it before the ``@`` or in the query; any other text as it is."""
    shown = re.sub(r"([?&](?:ssl_)?password=)[^&]*", rf"\1{HIDDEN}", url, flags=re.IGNORECASE)
    # Greedy up to the last @: a password in which / ? # or @ was not percent-encoded must not be shown either.
    return re.sub(r"(://[^:/@]*):.*@", rf"\1:{HIDDEN}@", shown, flags=re.DOTALL)


class LoudSettings(BaseSettings):
    """A ``BaseSettings`` that reports the first wrong value as a :class:`SettingsError`."""

    # In a base class, so that type checkers still derive the constructor of the classes below from their fields.
    def __init__(self, **values: Any) -> None:
        fields = type(self).model_fields
        for name in values:
            if name not in fields and not name.startswith("_"):
                # Not the value: it may be a secret whose name was mistyped.
                raise SettingsError(self._variable(name), HIDDEN, f"the name of a setting: {nearest(name, fields)}")
        try:
            super().__init__(**values)
        except ValidationError as error:
            # `from None`: pydantic's own text shows the value, which may hold a password.
            raise self._wrong(error.errors()[0]) from None
        except UnicodeDecodeError as error:
            raise SettingsError(".env", f"not UTF-8 at byte {error.start}", "a text file in UTF-8") from None

    @classmethod
    def _wrong(cls, error: ErrorDetails) -> SettingsError:
        name = str(error["loc"][0]) if error["loc"] else ""
        asked = error.get("ctx", {}).get("error")
        field = cls.model_fields.get(name)
        if field is None:
            return SettingsError(cls._variable(name) if name else cls.__name__, HIDDEN, str(asked or error["msg"]))
        return SettingsError(cls._variable(name), _shown(field, error["input"]), _expected(field, asked))

    @classmethod
    def _variable(cls, name: str) -> str:
        return f"{cls.model_config.get('env_prefix', '')}{name}".upper()

    def __repr_args__(self) -> Any:
        for name, value in super().__repr_args__():
            yield name, redact(value) if isinstance(value, str) else value


class Settings(LoudSettings):
    """What an operator may choose; each field is also the variable ``KNAPSAQ_<FIELD>``, in capitals.

    ``Settings()`` reads the environment and ``.env``; ``Settings(concurrency=50)`` overrides single values. An
    instance never changes. An application adds settings of its own in a subclass.

    Raises:
        SettingsError: A value is of the wrong kind or out of range, or a name given to the constructor is none of
            the fields. ``.setting`` is the variable's name, ``.expected`` says in words what to put there.
    """

    model_config = SettingsConfigDict(
        env_prefix="KNAPSAQ_",
        env_file=".env",
        env_file_encoding="utf-8-sig",  # editors on Windows begin the file with a byte order mark
        env_ignore_empty=True,
        extra="ignore",  # a .env file is shared with other programs
        frozen=True,
    )

    broker_url: str = Field(
        default=EMBEDDED,
        description=(
            "The Redis or Valkey server: redis://[user:password@]host[:port][/db], rediss://... with TLS, "
            "unix:///path/to/socket, or redis+cluster://[user:password@]host:port,host:port; "
            "`embedded` runs a private server for this project"
        ),
    )
    embedded_dir: Path = Field(
        default=Path(".knapsaq"),
        description="Directory of the embedded server's data, log and locks; relative to the working directory",
    )
    queues: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("default",),
        description=(
            "Queues of this application, comma-separated or a JSON list, at least one and each once; "
            "a name is 1 to 64 of the characters A-Z a-z 0-9 _ . - { }"
        ),
    )
    task_routes: Annotated[dict[str, str], NoDecode] = Field(
        default={},
        description=(
            'Queues for tasks that name none, by pattern: a JSON object such as {"shop.payments.*": "payments"}; a '
            "pattern is matched against a task's name, then against its module and function, and the first one wins"
        ),
    )
    concurrency: int = Field(
        default=10, ge=1, le=10_000, description="Jobs that a worker process runs at the same time"
    )
    timezone: str = Field(
        default="UTC", description="IANA name of the zone in which cron expressions are read, such as Europe/Berlin"
    )
    task_timeout: float = Field(
        default=300, ge=0, le=TEN_YEARS, description="Seconds that one attempt of a job may run; 0 is no limit"
    )
    task_max_retries: int = Field(
        default=5,
        ge=0,
        le=10_000,
        description="Further attempts that a task may ask for with Retry if it sets no retries",
    )
    result_ttl: int = Field(
        default=3600,
        ge=-1,
        le=TEN_YEARS,
        description="Seconds that a finished job and its result are kept; 0 keeps them for ever, -1 not at all",
    )
    lease: float = Field(
        default=10,
        ge=1,
        le=3600,
        description="Seconds without a sign of life after which a worker's jobs are taken back",
    )
    loop_stall_limit: float = Field(
        # As long as an attempt may run by default: a task that blocks the loop for longer cannot be timed out.
        default=300,
        ge=0,
        le=TEN_YEARS,
        description="Seconds, at least 1, that a task may block its worker's loop before the process gives its jobs up "
        "and ends; 0 is no limit",
    )
    unknown_task_limit: float = Field(
        default=600,
        ge=0,
        le=TEN_YEARS,
        description="Seconds that a job of an unknown task is put back before it is a dead letter; 0 is not at all",
    )
    shutdown_grace: float = Field(
        default=30, ge=0, le=86_400, description="Seconds that running jobs get to end when a worker is told to stop"
    )
    max_payload_bytes: int = Field(
        default=1_048_576,
        ge=1024,
        le=512 * 1_048_576,  # the longest string that Redis stores
        description="Bytes that a job's encoded arguments, and its encoded result, may have at most",
    )
    api_token: SecretStr | None = Field(
        default=None, description="Secret that a client of the HTTP interface has to show; unset means there is none"
    )
    log_level: str = Field(default="INFO", description=f"The least important messages to log: {', '.join(LOG_LEVELS)}")

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
        return self if queues == self.queues else self.model_copy(update={"queues": queues})

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

    @field_validator("broker_url")
    @classmethod
    def _check_broker_url(cls, value: str) -> str:
        if value != EMBEDDED and (problem := _url_problem(value)):
            raise ValueError(problem)
        return value

    @field_validator("embedded_dir")
    @classmethod
    def _expand_home(cls, value: Path) -> Path:
        try:
            return value.expanduser()
        except RuntimeError:
            raise ValueError("a directory; the home directory that it begins with is not known here") from None

    @field_validator("queues", mode="before")
    @classmethod
    def _split_queues(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if not value.lstrip().startswith("["):
            return tuple(name for part in value.split(",") if (name := part.strip()))
        try:
            return tuple(json.loads(value))
        except ValueError:
            raise ValueError('names with commas between them, or a JSON list such as ["default", "mail"]') from None

    @field_validator("queues")
    @classmethod
    def _check_queues(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("at least one name of a queue, and each name once")
        for name in value:
            if not QUEUE_NAME.fullmatch(name):
                raise ValueError(f"names of 1 to 64 of the characters A-Z a-z 0-9 _ . - {{ }}, which {name!r} is not")
        return value

    @field_validator("task_routes", mode="before")
    @classmethod
    def _read_routes(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                value = None
        if not isinstance(value, Mapping):
            raise ValueError(  # noqa: TRY004 - as pydantic wants it
                'a JSON object of patterns and queues, such as {"shop.payments.*": "payments"}'
            )
        for pattern, queue in value.items():
            if not isinstance(pattern, str) or not isinstance(queue, str):
                raise ValueError(f"names of queues, which for {pattern!r} {queue!r} is not")  # noqa: TRY004 - likewise
        return dict(value)

    @field_validator("task_routes")
    @classmethod
    def _check_routes(cls, value: dict[str, str]) -> dict[str, str]:
        for pattern, queue in value.items():
            if not pattern.strip() or not QUEUE_NAME.fullmatch(queue):
                raise ValueError(
                    f"patterns that are not empty and names of queues, which {pattern!r}: {queue!r} is not"
                )
        return value

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError(
                "a time zone's IANA name such as 'UTC' or 'Europe/Berlin' "
                "(a system without time-zone data needs `pip install tzdata`)"
            ) from None
        return value

    @field_validator("api_token")
    @classmethod
    def _check_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().strip():
            raise ValueError("a secret of at least one character, or none at all")
        return value

    @field_validator("loop_stall_limit")
    @classmethod
    def _check_stall_limit(cls, value: float) -> float:
        if 0 < value < 1:
            msg = "0 for no limit, or at least 1 second"
            raise ValueError(msg)
        return value

    @field_validator("log_level")
    @classmethod
    def _check_level(cls, value: str) -> str:
        if value.upper() not in LOG_LEVELS:
            raise ValueError(f"one of {', '.join(LOG_LEVELS)}")
        return value.upper()


def routed(routes: Mapping[str, str], *names: str) -> str | None:
    """Return the queue of the first pattern that fits a name, or None; the first name that any fits decides."""
    return next((queue for name in names for pattern, queue in routes.items() if fnmatchcase(name, pattern)), None)


def _url_problem(url: str) -> str | None:
    """Return what a broker URL has to be, if it is something else."""
    if is_cluster(url):
        return _cluster_problem(url)
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "a URL whose port is a number up to 65535 (percent-encode / ? # @ : in a password)"
    if parts.scheme in ("redis", "rediss"):
        return _tcp_problem(parts)
    if parts.scheme == "unix":
        fits = len(parts.path) > 1 and parts.netloc.rpartition("@")[2] == ""
        return None if fits else "unix:// and the socket's absolute path, so three slashes: unix:///run/redis.sock"
    return "'embedded', or a URL that starts with redis://, rediss:// or unix://, of a cluster with redis+cluster:// or rediss+cluster://"


def _cluster_problem(url: str) -> str | None:
    scheme, seeds = url.partition("://")[0], seeds_of(url)
    if any(_url_problem(seed) for seed in seeds):
        example = f"{scheme}://one:6379,two:6379"
        return f"{scheme}:// and hosts with commas between them, each one's port is a number up to 65535: {example}"
    if urlsplit(seeds[0]).path not in ("", "/", "/0"):
        return "a URL without a database's number, as a cluster has database 0 alone"
    return None


def _tcp_problem(parts: SplitResult) -> str | None:
    if not parts.hostname:
        return f"{parts.scheme}:// and a host, such as {parts.scheme}://localhost:6379"
    # redis-py takes a path that is not a number for database 0.
    if not re.fullmatch(r"/?|/\d+/?", parts.path):
        return "a URL with the database's number after the slash, such as redis://localhost:6379/1, or nothing"
    return None


def _shown(field: FieldInfo, given: Any) -> Any:
    """Return a value as an error may show it."""
    if "SecretStr" in str(field.annotation):
        return HIDDEN
    return redact(given) if isinstance(given, str) else given


def _expected(field: FieldInfo, asked: object) -> str:
    """Return in words what a setting has to be: what its validator asks for, a number's range, or what it is about."""
    if isinstance(asked, ValueError):
        return str(asked)
    low = next((rule.ge for rule in field.metadata if isinstance(rule, Ge)), None)
    high = next((rule.le for rule in field.metadata if isinstance(rule, Le)), None)
    if low is None or high is None:
        return f"{field.description}"
    kind = "a whole number" if field.annotation is int else "a number"
    return f"{kind} from {low:,} to {high:,} ({field.description})"
