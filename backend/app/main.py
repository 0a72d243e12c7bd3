"""The web application: ``litestar --app app.main:app run``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar, get
from litestar.di import NamedDependency
from litestar.logging import LoggingConfig
from litestar.openapi import OpenAPIConfig
from litestar_saq import TaskQueues
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.campaigns.routes import CampaignController
from app.database import get_database
from app.jobs.routes import JobController, ScheduleController
from app.payments.routes import PaymentController
from app.problems import HANDLERS, problem_details
from app.queue.config import plugin
from app.sandbox import sandbox_router
from app.settings import AppSettings, get_settings
from app.users.routes import UserController


@get("/health", tags=["Health"])
async def health(db_session: NamedDependency[AsyncSession], task_queues: NamedDependency[TaskQueues]) -> dict[str, str]:
    """Answer 200 while database and broker answer."""
    await db_session.execute(text("SELECT 1"))
    for queue in task_queues.queues.values():
        await queue.count("queued")
    return {"status": "ok"}


@asynccontextmanager
async def database_lifespan(_app: Litestar) -> AsyncIterator[None]:
    """Create the tables before the first request, and close the connections after the last."""
    database = get_database()
    await database.create_schema()
    try:
        yield
    finally:
        await database.close()


def create_app(settings: AppSettings | None = None) -> Litestar:
    """Build the application.

    Args:
        settings: The environment's unless given.
    """
    settings = settings or get_settings()
    development = [ScheduleController] if settings.debug else []
    sandbox = [sandbox_router()] if settings.sandbox else []
    return Litestar(
        route_handlers=[
            health,
            UserController,
            PaymentController,
            CampaignController,
            JobController,
            *development,
            *sandbox,
        ],
        exception_handlers={**HANDLERS},
        lifespan=[database_lifespan],
        plugins=[problem_details(), plugin],
        openapi_config=OpenAPIConfig(title="Knapsaq's reference application", version="1"),
        # What a client did wrong is in its answer; only our own faults are worth a traceback in the log.
        logging_config=LoggingConfig(log_exceptions="always", disable_stack_trace={*range(400, 500), *HANDLERS}),
        debug=settings.debug,
    )


app = create_app()
