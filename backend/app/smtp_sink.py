"""The development mail server: takes any mail and writes it as an ``.eml`` file into a folder.

``python -m app.smtp_sink --port 1025 --dir .knapsaq/mails``. It delivers nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import email
import email.policy
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from email.message import EmailMessage
from itertools import count
from pathlib import Path

from aiosmtpd.smtp import SMTP, Envelope, Session

logger = logging.getLogger("smtp_sink")


class MailFolder:
    """An aiosmtpd handler that keeps each mail as a file.

    Args:
        folder: Where; it is created.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = count(1)
        folder.mkdir(parents=True, exist_ok=True)

    async def handle_DATA(  # noqa: N802 - aiosmtpd finds the method by this name
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        """Write one mail; its file appears complete or not at all."""
        content = envelope.content or b""
        data = content.encode() if isinstance(content, str) else content
        recipient = re.sub(r"[^A-Za-z0-9@.-]", "_", envelope.rcpt_tos[0])
        target = self.folder / f"{os.getpid()}-{next(self._numbers):05}-{recipient}.eml"
        unfinished = target.with_suffix(".part")
        unfinished.write_bytes(data)
        unfinished.rename(target)
        logger.info("mail to %s: %s", recipient, _parse(data)["Subject"])
        return "250 kept"


def read_mails(folder: Path) -> list[EmailMessage]:
    """Return the mails in a folder, oldest first."""
    files = sorted(folder.glob("*.eml"), key=lambda file: (file.stat().st_mtime_ns, file.name))
    return [_parse(file.read_bytes()) for file in files]


async def serve(host: str, port: int, folder: Path) -> None:
    """Take mails until SIGTERM or SIGINT.

    Raises:
        OSError: The port is taken.
    """
    loop = asyncio.get_running_loop()
    handler = MailFolder(folder)
    server = await loop.create_server(lambda: SMTP(handler, enable_SMTPUTF8=True), host, port)
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with server:
        logger.info("listening on %s:%s, mails go to %s", host, server.sockets[0].getsockname()[1], folder)
        await stop.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server from the command line."""
    parser = argparse.ArgumentParser(prog="python -m app.smtp_sink", description="A mail server that keeps the mail.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1025, help="0 takes a free one and prints it")
    parser.add_argument("--dir", type=Path, default=Path(".knapsaq/mails"), help="where the mails go")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logger.setLevel(logging.INFO)
    try:
        asyncio.run(serve(options.host, options.port, options.dir))
    except OSError as error:
        parser.exit(1, f"cannot listen on {options.host}:{options.port}: {error.strerror}; choose another --port\n")
    return 0


def _parse(data: bytes) -> EmailMessage:
    return email.message_from_bytes(data, _class=EmailMessage, policy=email.policy.default)


if __name__ == "__main__":
    sys.exit(main())
