"""Signatures: the words in which workflows are written.

    from knapsaq.signatures import chain, chord, group, signature

    await chain(fetch.s(url), parse.s(), store.s(), notify.si()).enqueue()

Where in the flow: above everything that a workflow is made of; the names come from the modules below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from knapsaq.canvas import Chain, Expression, Group, Sig, Workflow, chain, chord, group
from knapsaq.client import Client
from knapsaq.errors import NotConnectedError
from knapsaq.registry import Registry, get_registry
from knapsaq.workflow import WorkflowJob, WorkflowStatus


def signature(
    name: str,
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    immutable: bool = False,
    registry: Registry | None = None,
    **options: Any,
) -> Sig[Any]:
    """Return a call of a task by its name.

    Args:
        name: The task's name.
        args: The positional arguments.
        kwargs: The arguments by name.
        immutable: Whether it ignores the results of steps before it, as ``task.si(...)`` does.
        registry: Where the task is; the program's registry unless given.
        options: The options of ``Sig.set``.

    Raises:
        UnknownTaskError: No task has the name.
        InvalidArgumentsError: The function has no parameter of a name.
        OptionError: An option is wrong.
    """
    task = (registry or get_registry()).get(name)
    made: Sig[Any] = Sig(task, tuple(args), dict(kwargs or {}), immutable=immutable)
    return made.set(**options) if options else made


def get_workflow(workflow_id: str, *, registry: Registry | None = None) -> WorkflowJob:
    """Return the workflow of an id, in any process; whether there is one, its methods tell.

    Args:
        workflow_id: ``WorkflowJob.id``, or the ``root_id`` of one of its jobs.
        registry: The registry that is connected; the program's unless given.

    Raises:
        NotConnectedError: There is no connection.
        WorkflowError: It is no workflow's id.
    """
    client = (registry or get_registry()).sender
    if not isinstance(client, Client):
        raise NotConnectedError("get_workflow")
    return client.workflow(workflow_id)


__all__ = [
    "Chain",
    "Expression",
    "Group",
    "Sig",
    "Workflow",
    "WorkflowJob",
    "WorkflowStatus",
    "chain",
    "chord",
    "get_workflow",
    "group",
    "signature",
]
