"""The queue's configuration; importing it fills the registry.

A new domain takes one line here: the import of its tasks.
"""

from __future__ import annotations

from app.campaigns import tasks as campaign_tasks  # noqa: F401
from app.database import provide_database, provide_db_session
from app.payments import tasks as payment_tasks  # noqa: F401
from app.payments.provider import provide_payment_provider
from app.queue import tasks  # noqa: F401
from app.users import tasks as user_tasks  # noqa: F401
from knapsaq import Provide, Settings
from knapsaq.litestar import KnapsaqPlugin

settings = Settings()

dependencies = {
    "database": Provide(provide_database, scope="worker"),
    "db_session": Provide(provide_db_session),
    "payment_provider": Provide(provide_payment_provider, scope="worker"),
}

plugin = KnapsaqPlugin(settings, dependencies=dependencies)
