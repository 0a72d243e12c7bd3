"""The application's settings, from ``APP_*`` variables and ``.env``; the queue's own are ``KNAPSAQ_*``."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from knapsaq import OptionError, Rate


def _as_debug(validated: dict[str, Any]) -> bool:
    return bool(validated["debug"])


def _as_rate(text: str) -> str:
    try:
        return Rate(text).limit
    except OptionError as error:
        raise ValueError(str(error)) from error


class AppSettings(BaseSettings):
    """What differs between machines.

    Attributes:
        debug: Shows tracebacks in answers, opens ``/saq`` and the sandbox; ``litestar --debug`` sets it too.
        sandbox: Serves the payment sandbox under ``/sandbox``; as ``debug`` unless given.
        database_url: An async SQLAlchemy URL, e.g. ``postgresql+asyncpg://app@localhost/app``.
        smtp_host: Where mail is handed over.
        smtp_port: Its port, 1 to 65535; 1025 is the development sink's.
        smtp_timeout: Seconds for a whole hand-over of one mail.
        mail_rate: How many mails of campaigns the mail provider takes, such as ``20/s`` or ``500/h``; retries count.
        mail_retry_delay: Seconds before a campaign's mail that was not taken is tried again; doubled each time.
        campaign_chunk: How many recipients of a campaign are fanned out by one job, 1 to 1,000.
        mail_from: The sender's address.
        report_to: Who gets the weekly report.
        payments_url: The payment provider's base URL; the sandbox's by default.
        payments_timeout: Seconds until a charge without an answer counts as failed.
    """

    model_config = SettingsConfigDict(env_prefix="APP_", env_file=".env", extra="ignore", populate_by_name=True)

    debug: bool = Field(default=False, validation_alias=AliasChoices("APP_DEBUG", "LITESTAR_DEBUG"))
    sandbox: bool = Field(default_factory=_as_debug)
    database_url: str = "sqlite+aiosqlite:///.knapsaq/app.db"
    smtp_host: str = "127.0.0.1"
    smtp_port: int = Field(default=1025, ge=1, le=65535)
    smtp_timeout: float = Field(default=5.0, gt=0)
    mail_rate: Annotated[str, AfterValidator(_as_rate)] = "20/s"
    mail_retry_delay: float = Field(default=2.0, gt=0)
    campaign_chunk: int = Field(default=50, ge=1, le=1000)
    mail_from: str = "Knapsaq <hello@knapsaq.example>"
    report_to: str = "team@knapsaq.example"
    payments_url: str = "http://127.0.0.1:8000/sandbox"
    payments_timeout: float = Field(default=2.0, gt=0)


@cache
def get_settings() -> AppSettings:
    """Return this process' settings; read from the environment once, at the first call."""
    return AppSettings()
