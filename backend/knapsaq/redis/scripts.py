"""Scripts: the Lua programs beside this file, each one state change.

A script's header names its keys and arguments; a ``|`` begins the part that repeats.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

from knapsaq.redis.line import Line

Argument = str | bytes | int | float


class Script:
    """One Lua program; it is sent in full only when the server does not know it yet.

    Args:
        name: Its file's name.
        shared: The names of files in ``lua/shared`` that are put before it, as scripts cannot include each other.
        lazily: Those of them whose functions are made when the script first asks for one, as ``steer().park(...)``: to
            make them takes longer than all else of a call that needs none.
        in_full: Whether it is sent in full each time: it is never sent twice then, and keeps its place among others.
    """

    def __init__(self, name: str, *shared: str, lazily: Collection[str] = ("control",), in_full: bool = False) -> None:
        self.name = name
        self._in_full = in_full
        folder = files("knapsaq.redis").joinpath("lua")
        texts = {part: folder.joinpath("shared", f"{part}.lua").read_text(encoding="utf-8") for part in shared}
        parts = [_lazily(part, text) if part in lazily else text for part, text in texts.items()]
        self.source = "\n".join([*parts, folder.joinpath(f"{name}.lua").read_text(encoding="utf-8")])
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, line: Line, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run the script."""
        if self._in_full:
            return await line.execute("EVAL", self.source, len(keys), *keys, *args)
        try:
            return await line.execute("EVALSHA", self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await line.execute("EVAL", self.source, len(keys), *keys, *args)


ASKED_FOR_BY = {"control": "steer", "flow": "flows"}


def _lazily(part: str, text: str) -> str:
    """Return what makes the functions of a shared file when they are first asked for."""
    names = re.findall(r"^local function (\w+)", text, re.MULTILINE)
    table = ", ".join(f"{name} = {name}" for name in names)
    asked, made = ASKED_FOR_BY[part], f"{ASKED_FOR_BY[part]}_made"
    begin = f"local {made}\nlocal function {asked}()\nif {made} then return {made} end\n"
    return f"{begin}{text}\n{made} = {{ {table} }}\nreturn {made}\nend"


CONTROL = ("basics", "control")
ACCEPT = (*CONTROL, "accept")
FLOW = (*ACCEPT, "flow")

enqueue = Script("enqueue", *ACCEPT)
advance = Script("advance", *FLOW, lazily=("control", "flow"))
rescue = Script("rescue", *CONTROL)
lease = Script("lease", "basics")
abort = Script("abort", *FLOW)
retry = Script("retry", *ACCEPT)
replace = Script("replace", *ACCEPT)
restore = Script("restore", *CONTROL)
why = Script("why", *CONTROL)
tidy = Script("tidy", *CONTROL)
counts = Script("counts", "basics")
page = Script("page", "basics")
stranded = Script("stranded", "basics")
update = Script("update", in_full=True)
replay = Script("replay", *ACCEPT)
worker_info = Script("worker_info")
schedules_due = Script("schedules_due", "basics")
schedules_fire = Script("schedules_fire", *ACCEPT)
schedules_write = Script("schedules_write")
schedules_move = Script("schedules_move")
flow_start = Script("flow_start", *FLOW)
flow_extend = Script("flow_extend", *FLOW)
flow_retry = Script("flow_retry", *FLOW)
flow_tell = Script("flow_tell", *FLOW)
flow_results = Script("flow_results")
relay_take = Script("relay_take")
relay_drop = Script("relay_drop")
relay_begin = Script("relay_begin", *FLOW)
relay_end = Script("relay_end", *FLOW)
relay_extend = Script("relay_extend")
