"""Nodes: how the jobs of a workflow are named, and what the end of one tells its workflow.

Where in the flow: a job's key says of which workflow it is, so that every script in which a job can end finds it.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from knapsaq.codec import utf8
from knapsaq.shards import tag_of

PREFIX = "flow:"
MARK = f":{PREFIX}"
"""What the id of a node's job has in it; that of another job may as well, which then belongs to no workflow."""

TOLD_CHARACTERS = 1000
"""How much of an error a workflow keeps; the whole of it is in the job."""

DONE, FAILED, ABORTED = "d", "f", "a"
_STATES = {"complete": DONE, "failed": FAILED, "aborted": ABORTED}


APART = "~"
"""What the key of a workflow in a cluster begins with: its steps between queues in different slots are relayed."""


def is_apart(flow: str, queue: str) -> bool:
    """Tell whether a queue cannot be reached in a step of a workflow; ``flow_is_apart`` in Lua tells the same."""
    home, _, key = flow.partition(":")
    return key.startswith(APART) and (tag_of(home) or home) != (tag_of(queue) or queue)


class Place(NamedTuple):
    """Which node of which workflow a job is."""

    flow: str
    node: int

    @property
    def home(self) -> str:
        """The queue in which the workflow is kept."""
        return self.flow.partition(":")[0]


def node_key(flow: str, node: int) -> str:
    """Return the key of a node's job; a workflow's id is its queue and its own key with a colon between."""
    return f"{PREFIX}{flow}:{node}"


def place_of(key: str) -> Place | None:
    """Return which node a job is; None for a job of no workflow."""
    if not key.startswith(PREFIX):
        return None
    flow, _, node = key.removeprefix(PREFIX).rpartition(":")
    return Place(flow, int(node)) if flow.count(":") == 1 and node.isascii() and node.isdigit() else None


def told(status: str, result: object, error: str | None) -> tuple[str, bytes]:
    """Return what a workflow keeps of a job's end: the node's state, and its result or error as JSON.

    A result that could not be stored counts as a failure, as nobody can be given it.
    """
    state = _STATES.get(status, FAILED)
    if state == DONE and not error:
        return state, msgspec.json.encode(result)
    text = utf8(error or "")
    if len(text) > TOLD_CHARACTERS:
        text = f"...{text[-TOLD_CHARACTERS:]}"
    return FAILED if state == DONE else state, msgspec.json.encode(text)
