"""Knapsaq: put ``@task`` on a function, and a worker runs it.

The public names; everything else is found in the modules that they come from.
"""

from __future__ import annotations

from knapsaq.client import Client, connect
from knapsaq.context import Context
from knapsaq.cron import crontab
from knapsaq.dead_letters import DeadJob
from knapsaq.errors import (
    BrokerError,
    ConfigurationError,
    CronError,
    DuplicateTaskError,
    InvalidArgumentsError,
    JobError,
    JobFailedError,
    JobMissingError,
    JobRevokedError,
    KnapsaqError,
    MissingProviderError,
    NodeFailure,
    NotConnectedError,
    OptionError,
    PayloadTooLargeError,
    ProviderError,
    RegistryError,
    ResultError,
    SettingsError,
    TaskDefinitionError,
    TaskTimeoutError,
    UnknownQueueError,
    UnknownTaskError,
    WorkerError,
    WorkflowDefinitionError,
    WorkflowError,
    WorkflowFailedError,
    WorkflowMissingError,
    WorkflowRevokedError,
)
from knapsaq.job import Job
from knapsaq.outcomes import Discard, Retry
from knapsaq.providers import Provide
from knapsaq.queue import Queue
from knapsaq.registry import Registry, get_registry, scheduled_task, task
from knapsaq.schedules import Schedule
from knapsaq.settings import Settings
from knapsaq.signature import INJECTED
from knapsaq.signatures import Sig, Workflow, WorkflowJob, WorkflowStatus, chain, chord, get_workflow, group, signature
from knapsaq.task import Task
from knapsaq.worker import Worker

__all__ = [
    "INJECTED",
    "BrokerError",
    "Client",
    "ConfigurationError",
    "Context",
    "CronError",
    "DeadJob",
    "Discard",
    "DuplicateTaskError",
    "InvalidArgumentsError",
    "Job",
    "JobError",
    "JobFailedError",
    "JobMissingError",
    "JobRevokedError",
    "KnapsaqError",
    "MissingProviderError",
    "NodeFailure",
    "NotConnectedError",
    "OptionError",
    "PayloadTooLargeError",
    "Provide",
    "ProviderError",
    "Queue",
    "Registry",
    "RegistryError",
    "ResultError",
    "Retry",
    "Schedule",
    "Settings",
    "SettingsError",
    "Sig",
    "Task",
    "TaskDefinitionError",
    "TaskTimeoutError",
    "UnknownQueueError",
    "UnknownTaskError",
    "Worker",
    "WorkerError",
    "Workflow",
    "WorkflowDefinitionError",
    "WorkflowError",
    "WorkflowFailedError",
    "WorkflowJob",
    "WorkflowMissingError",
    "WorkflowRevokedError",
    "WorkflowStatus",
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
