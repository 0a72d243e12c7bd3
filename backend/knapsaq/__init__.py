"""Knapsaq: put ``@task`` on a function, and a worker runs it.

The public names; everything else is found in the modules that they come from.
"""

from __future__ import annotations

from knapsaq.batch import Batch, BatchResultError
from knapsaq.client import Client, connect
from knapsaq.context import Context
from knapsaq.cron import crontab
from knapsaq.dead_letters import DeadJob
from knapsaq.editing import Schedules
from knapsaq.entries import ScheduleEntry, ScheduleFire
from knapsaq.errors import (
    BrokerError,
    ConfigurationError,
    CronError,
    DuplicateScheduleError,
    DuplicateTaskError,
    InvalidArgumentsError,
    KnapsaqError,
    MiddlewareError,
    MissingProviderError,
    NotConnectedError,
    OptionError,
    PayloadTooLargeError,
    ProcessDiedError,
    ProviderError,
    RegistryError,
    RouteError,
    ScheduleError,
    SettingsError,
    SoftTimeLimitExceeded,
    TaskDefinitionError,
    TaskProcessError,
    TaskTimeoutError,
    UnknownQueueError,
    UnknownScheduleError,
    UnknownTaskError,
    WorkerError,
)
from knapsaq.job import Job, Update
from knapsaq.job_errors import (
    DuplicateJobError,
    JobError,
    JobExpiredError,
    JobFailedError,
    JobMissingError,
    JobNotEndedError,
    JobRevokedError,
    ResultError,
)
from knapsaq.limits import Concurrency, Debounce, Rate, Throttle, Unique
from knapsaq.lineage import LineageFilter, bound_headers
from knapsaq.looking import Counts, OpenJob
from knapsaq.middleware import Middleware
from knapsaq.outcomes import Discard, Retry, Snooze
from knapsaq.providers import Provide
from knapsaq.queue import Queue
from knapsaq.reasons import Reason
from knapsaq.registry import Registry, get_registry, scheduled_task, task
from knapsaq.schedules import Schedule
from knapsaq.settings import Settings
from knapsaq.signature import INJECTED
from knapsaq.signatures import Sig, Workflow, WorkflowJob, WorkflowStatus, chain, chord, get_workflow, group, signature
from knapsaq.steering import Strike
from knapsaq.task import Task
from knapsaq.worker import Worker
from knapsaq.workflow_errors import (
    NodeFailure,
    WorkflowDefinitionError,
    WorkflowError,
    WorkflowFailedError,
    WorkflowMissingError,
    WorkflowNotEndedError,
    WorkflowRevokedError,
)

__all__ = [
    "INJECTED",
    "Batch",
    "BatchResultError",
    "BrokerError",
    "Client",
    "Concurrency",
    "ConfigurationError",
    "Context",
    "Counts",
    "CronError",
    "DeadJob",
    "Debounce",
    "Discard",
    "DuplicateJobError",
    "DuplicateScheduleError",
    "DuplicateTaskError",
    "InvalidArgumentsError",
    "Job",
    "JobError",
    "JobExpiredError",
    "JobFailedError",
    "JobMissingError",
    "JobNotEndedError",
    "JobRevokedError",
    "KnapsaqError",
    "LineageFilter",
    "Middleware",
    "MiddlewareError",
    "MissingProviderError",
    "NodeFailure",
    "NotConnectedError",
    "OpenJob",
    "OptionError",
    "PayloadTooLargeError",
    "ProcessDiedError",
    "Provide",
    "ProviderError",
    "Queue",
    "Rate",
    "Reason",
    "Registry",
    "RegistryError",
    "ResultError",
    "Retry",
    "RouteError",
    "Schedule",
    "ScheduleEntry",
    "ScheduleError",
    "ScheduleFire",
    "Schedules",
    "Settings",
    "SettingsError",
    "Sig",
    "Snooze",
    "SoftTimeLimitExceeded",
    "Strike",
    "Task",
    "TaskDefinitionError",
    "TaskProcessError",
    "TaskTimeoutError",
    "Throttle",
    "Unique",
    "UnknownQueueError",
    "UnknownScheduleError",
    "UnknownTaskError",
    "Update",
    "Worker",
    "WorkerError",
    "Workflow",
    "WorkflowDefinitionError",
    "WorkflowError",
    "WorkflowFailedError",
    "WorkflowJob",
    "WorkflowMissingError",
    "WorkflowNotEndedError",
    "WorkflowRevokedError",
    "WorkflowStatus",
    "bound_headers",
    "chain",
    "chord",
    "connect",
    "crontab",
    "get_registry",
    "get_workflow",
    "group",
    "scheduled_task",
    "signature",
    "task",
]
