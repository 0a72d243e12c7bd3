"""A leash: runs one command and ends it when whoever started the leash is gone.

``python leash.py GRACE COMMAND...`` with a pipe as its standard input. The pipe's
other end is held by the starter and by nobody else, so it closes when the starter
lets go of it, and just as well when the starter is killed. Then the command gets
SIGTERM, and after ``GRACE`` seconds SIGKILL with all that it started in its session.

This file is run as a script, on the standard library alone and without `site`,
so that a leash costs little; do not import anything of the application here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import FrameType


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code, or 128 and the signal that ended it."""
    grace, *command = arguments
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - the starter's own command
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror}\n")
        return 127

    def end(_signum: int | None = None, _frame: FrameType | None = None) -> None:
        child.terminate()
        timer = threading.Timer(float(grace), os.killpg, (0, signal.SIGKILL))
        timer.daemon = True
        timer.start()

    def end_with_the_pipe() -> None:
        os.read(0, 1)
        end()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_the_pipe, daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    status = main(sys.argv[1:])
    # At once: a thread may still be blocked in its read.
    os._exit(status)
