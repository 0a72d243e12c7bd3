"""Prompt: redis-py's connections, with what its asynchronous side does slowly or not at all made good.

Where in the flow: whatever opens a connection opens one of these, see ``connection`` and ``cluster``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError
from redis.exceptions import TimeoutError as RedisTimeoutError


class _Prompt(AbstractConnection):
    """Sends commands in such a way that no cancellation is lost, packed by hiredis.

    redis-py sends under ``asyncio.wait_for``, which in Python 3.11 forgets a cancellation that arrives as the command
    leaves: a worker that is stopped in that moment would run on for ever. Its asynchronous side packs commands in
    Python, which is most of what a call with a hundred jobs costs.
    """

    def pack_command(self, *args: Any) -> list[bytes]:
        """Return a command as it goes over the line.

        Raises:
            redis.exceptions.DataError: An argument is neither bytes, text nor a number.
        """
        if isinstance(args[0], str) and " " in args[0]:  # such as CLIENT SETNAME
            args = (*args[0].split(), *args[1:])
        try:
            return [hiredis.pack_command(args)]
        except TypeError as error:
            raise DataError(str(error)) from error

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """Send a command; redis-py's errors, and a closed connection if it was not sent whole."""
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()  # type: ignore[no-untyped-call]
        words = [command.encode()] if isinstance(command, str) else [command] if isinstance(command, bytes) else command
        try:
            async with asyncio.timeout(self.socket_timeout):
                await self._send_packed_command(words)
        except BaseException as error:
            await self.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise RedisTimeoutError("writing to the server took too long") from error
            if isinstance(error, OSError):
                raise RedisConnectionError(f"writing to the server failed: {error}") from error
            raise


class Tcp(_Prompt, Connection):
    """A connection to a host."""


class Tls(_Prompt, SSLConnection):
    """A connection to a host, with TLS."""


class Unix(_Prompt, UnixDomainSocketConnection):
    """A connection to a socket of this machine."""


PROMPT: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: Tcp,
    SSLConnection: Tls,
    UnixDomainSocketConnection: Unix,
}
