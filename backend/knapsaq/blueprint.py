"""Blueprint: what the jobs of one task have in common, and how one is made of a call's options and arguments.

Where in the flow: behind the check of the arguments, and before anything is sent. Plain calls take the pattern as it
is.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any

from knapsaq.calls import apply_options
from knapsaq.codec import shown, to_json_types
from knapsaq.control import Controls
from knapsaq.errors import InvalidArgumentsError
from knapsaq.job import CONTROL, Job, new_key
from knapsaq.options import CallOptions, TaskOptions
from knapsaq.signature import Signature

NO_OPTIONS = CallOptions()


class Blueprint:
    """How jobs of a task are made.

    Args:
        task: The task's name.
        signature: Its parameters.
        options: What ``@task`` was told.
    """

    def __init__(self, task: str, signature: Signature, options: TaskOptions) -> None:
        self._task, self._signature, self._own = task, signature, options

    def job(self, options: CallOptions, arguments: dict[str, Any]) -> Job[Any]:
        """Return the job of one call whose arguments have been bound and checked.

        Raises:
            OptionError: The key of a limit cannot be made of them.
        """
        job = self._plain(options, arguments)
        controls = self._controls_of(options) if options.controlled else self.controls
        if controls is not None:
            controls.apply(job, options, arguments)
        return job

    def node(self, options: CallOptions, arguments: dict[str, Any], unknown: Collection[str]) -> Job[Any]:
        """Return the job of a node of a workflow, to which uniqueness does not apply.

        Args:
            options: The options of the call.
            arguments: The arguments, bound and checked.
            unknown: Parameters that results of other nodes will be given to.

        Raises:
            OptionError: A limit goes by one of those, or its key cannot be made of the arguments.
        """
        job = self._plain(options, arguments)
        controls = self._controls_of(options) if options.controlled else self.controls
        if controls is not None and (entry := controls.entry(arguments, unique=False, unknown=unknown)):
            job.note(**{CONTROL: entry})
        return job

    def control(
        self, options: CallOptions, arguments: Mapping[str, Any], *, unique: bool = True
    ) -> dict[str, Any] | None:
        """Return what a job of a call carries; see ``Task.control_of``."""
        controls = self._controls_of(options) if options.controlled else self.controls
        if controls is None:
            return None
        try:
            stored = to_json_types(dict(arguments))
        except (TypeError, ValueError, RecursionError) as error:
            expected = f"what JSON can carry ({type(error).__name__})"
            raise InvalidArgumentsError(self._task, "*", expected, shown(sorted(arguments))) from None
        return controls.entry(stored, key=options.key, unique=unique) or None

    @functools.cached_property
    def fields(self) -> Mapping[str, Any]:
        """The fields of a job that the task's options set, for those who make its jobs without it."""
        unset: dict[str, Any] = {"timeout": None, "ttl": None}
        plain = vars(Job(function=self._task, **unset))
        return {name: value for name, value in self._pattern.items() if value != plain[name] and name != "key"}

    @functools.cached_property
    def controls(self) -> Controls | None:
        """What its jobs carry unless a call says otherwise; None if nothing."""
        return self._controls_of(NO_OPTIONS)

    def _controls_of(self, options: CallOptions) -> Controls | None:
        return Controls(self._task, self._signature, self._own, options) or None

    def _plain(self, options: CallOptions, arguments: dict[str, Any]) -> Job[Any]:
        job = Job.like(self._pattern, options.key or new_key(), arguments or None)
        if options is not NO_OPTIONS:
            apply_options(options, job, self._own)
        return job

    @functools.cached_property
    def _pattern(self) -> dict[str, Any]:
        """The fields that all its jobs have; timeout and ttl are None where the sender fills in its default."""
        own = self._own
        fields: dict[str, Any] = {"timeout": own.timeout, "ttl": own.ttl}
        if own.retries:  # else the worker takes them from the task, should it raise Retry
            fields |= {"retries": 1 + own.retries, "retry_delay": own.retry_delay, "retry_backoff": own.retry_backoff}
        pattern = vars(Job(function=self._task, **fields))
        return pattern if own.expires is None else {**pattern, "expires": own.expires}
