"""Instance: the address of a server, in parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from knapsaq.checks import Check, check, flag, text, whole
from knapsaq.errors import OptionError

PLACE = "RedisInstance"
MOST_DATABASES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisInstance:
    """A Redis or Valkey server.

    Args:
        redis_host: Its name or address.
        redis_port: 1 to 65535.
        redis_db: The number of the database.
        redis_username: The user, where the server has an access list.
        redis_password: The password, as it is; the URL has it percent-encoded.
        redis_ssl: Whether it speaks TLS.

    Raises:
        OptionError: One of them is wrong; a password is never shown.
    """

    redis_host: str = "localhost"
    redis_port: int = 6379
    redis_db: int = 0
    redis_username: str | None = None
    redis_password: str | None = field(default=None, repr=False)
    redis_ssl: bool = False

    def __post_init__(self) -> None:
        secret = self.redis_password
        if secret is not None and not isinstance(secret, str):
            raise OptionError(PLACE, "redis_password", type(secret).__name__, "a text")
        check(PLACE, {name: getattr(self, name) for name in CHECKS}, CHECKS)

    @property
    def url(self) -> str:
        """The server's URL, with the password in it."""
        user, secret = quote(self.redis_username or "", safe=""), quote(self.redis_password or "", safe="")
        login = f"{user}:{secret}@" if secret else (f"{user}@" if user else "")
        host = f"[{self.redis_host}]" if ":" in self.redis_host else self.redis_host
        return f"{'rediss' if self.redis_ssl else 'redis'}://{login}{host}:{self.redis_port}/{self.redis_db}"


def _host(value: Any) -> str:
    if isinstance(value, str) and value and not set(value) & set("/@?# "):
        return value
    raise ValueError(value)


CHECKS: dict[str, tuple[str, Check]] = {
    "redis_host": ("the name or the address of a machine, such as 'localhost'", _host),
    "redis_port": ("a whole number from 1 to 65535", whole(1, 65_535)),
    "redis_db": ("the number of a database, from 0 on", whole(0, MOST_DATABASES)),
    "redis_username": ("a text", text),
    "redis_ssl": ("True or False", flag),
}
