"""Web: SAQ's own page, served by the application.

The page and its scripts are SAQ's; what it shows comes from here. SAQ's page takes
an object for instructions on how to draw, so nothing here ever hands it one where
it expects text: arguments and results, which anybody may have filled, least of all.

Invariants, each a test in ``tests/litestar/test_web.py``:

* every value that the page shows is text or a number;
* the page runs scripts of this application alone, none of them inline;
* whatever goes wrong, the page gets an ``error`` that it can show.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from litestar import MediaType, Request, Response, Router, get, post
from litestar.di import NamedDependency
from litestar.exceptions import HTTPException, NotFoundException
from litestar.params import FromPath
from litestar.static_files import create_static_files_router
from litestar.types import Guard
from litestar_saq import TaskQueues
from saq.web.common import STATIC_PATH

from knapsaq.errors import BrokerError
from knapsaq.job import Job
from knapsaq.litestar.guards import same_origin
from knapsaq.litestar.views import job_view, queue_view
from knapsaq.queue import Queue
from knapsaq.redis.connection import broker_errors
from knapsaq.settings import Settings

OWN_STATIC = Path(__file__).parent / "static"

HEADERS = {
    "Cache-Control": "no-store",
    # SAQ's script sets styles through the DOM, which needs no `unsafe-inline`; Pico's style sheet has images in it.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

PAGE = """<!DOCTYPE html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <link rel="stylesheet" type="text/css" href="{root}/static/pico.min.css.gz">
    <link rel="icon" href="data:,">
    <title>SAQ</title>
  </head>
  <body>
    <div id="app"></div>
    <script src="{root}/static/start.js" data-root-path="{root}"></script>
    <script src="{root}/static/snabbdom.js.gz"></script>
    <script src="{root}/static/app.js"></script>
  </body>
</html>
"""


def web_router(path: str, guards: Sequence[Guard], settings: Settings) -> Router:
    """Return the page with all that it needs.

    Args:
        path: Where it is served, without a slash at its end.
        guards: Who may see it; they guard every file of it.
        settings: The broker, to name it in errors.
    """
    web = _Web(settings)
    static = create_static_files_router(
        "/static", directories=[OWN_STATIC, STATIC_PATH], name="knapsaq:static", opt={"exclude_from_auth": True}
    )
    return Router(
        path=path,
        route_handlers=[static, home, page, *web.handlers()],
        guards=guards,
        exception_handlers={HTTPException: _show_refusal, BrokerError: _show_outage},
        response_headers=HEADERS,
        include_in_schema=False,
        # The page sends no token against forged requests; `same_origin` keeps them off.
        opt={"exclude_from_csrf": True},
        tags=["SAQ"],
    )


@get("/", name="knapsaq:home", media_type=MediaType.HTML)
async def home(request: Request[Any, Any, Any]) -> str:
    """Serve the page; what it shows, its script finds in the location."""
    return _page(request)


@get(["/queues/{queue:str}", "/queues/{queue:str}/jobs/{key:path}"], media_type=MediaType.HTML)
async def page(request: Request[Any, Any, Any]) -> str:
    """Serve the page of a queue or a job."""
    return _page(request)


def _page(request: Request[Any, Any, Any]) -> str:
    root = request.scope.get("root_path", "").rstrip("/") + request.app.route_reverse("knapsaq:home").rstrip("/")
    return PAGE.format(root=html.escape(root))


class _Web:
    """What the page's script asks for; the shapes are those of litestar-saq's controller."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.broker_url

    def handlers(self) -> list[Any]:
        """Return the route handlers."""

        @get("/api/queues")
        async def queues(task_queues: NamedDependency[TaskQueues]) -> dict[str, Any]:
            with broker_errors(self._url):
                return {"queues": [queue_view(await queue.info()) for queue in task_queues.queues.values()]}

        @get("/api/queues/{queue:str}")
        async def queue(task_queues: NamedDependency[TaskQueues], queue: FromPath[str]) -> dict[str, Any]:
            with broker_errors(self._url):
                return {"queue": queue_view(await _queue(task_queues, queue).info(jobs=True))}

        # A key may have slashes in it.
        @get("/api/queues/{queue:str}/jobs/{key:path}")
        async def job(
            task_queues: NamedDependency[TaskQueues], queue: FromPath[str], key: FromPath[str]
        ) -> dict[str, Any]:
            with broker_errors(self._url):
                found = await _job(task_queues, queue, key)
            return {"job": job_view(found.to_dict(), whole=True)}

        @post("/api/queues/{queue:str}/jobs/{key:path}", guards=[same_origin], status_code=HTTPStatus.ACCEPTED)
        async def act(
            task_queues: NamedDependency[TaskQueues], queue: FromPath[str], key: FromPath[str]
        ) -> dict[str, Any]:
            with broker_errors(self._url):
                return await _act(task_queues, queue, key)

        @get("/health", media_type=MediaType.TEXT)
        async def health(task_queues: NamedDependency[TaskQueues]) -> Response[str]:
            try:
                with broker_errors(self._url):
                    for each in task_queues.queues.values():
                        await each.count("queued")
            except BrokerError:
                return Response("Service Unavailable", status_code=HTTPStatus.SERVICE_UNAVAILABLE)
            return Response("OK")

        return [queues, queue, job, act, health]


async def _act(task_queues: TaskQueues, queue: str, path: str) -> dict[str, Any]:
    """Retry or abort a job; the path ends with which."""
    key, _, action = path.rpartition("/")
    if action not in ("retry", "abort"):
        raise NotFoundException(f"a job can be told to retry or abort, not {action!r}")
    job = await _job(task_queues, queue, key)
    if action == "abort":
        await job.abort("aborted on the web page")
    elif job.ended:
        await job.retry("retried on the web page")
    else:
        raise HTTPException(f"job {job.key} has not ended: abort it first", status_code=HTTPStatus.CONFLICT)
    return {}


def _queue(task_queues: TaskQueues, name: str) -> Queue:
    queue = task_queues.queues.get(name)
    if not isinstance(queue, Queue):
        raise NotFoundException(f"no queue is named {name!r}")
    return queue


async def _job(task_queues: TaskQueues, queue: str, path: str) -> Job[Any]:
    job = await _queue(task_queues, queue).job(path.removeprefix("/"))
    if job is None:
        raise NotFoundException(f"queue {queue!r} has no job {path.removeprefix('/')!r}; its result may have expired")
    return job


def _show_refusal(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    return _shown(request, error.status_code, error.detail, error.headers or {})


def _show_outage(request: Request[Any, Any, Any], error: BrokerError) -> Response[Any]:
    return _shown(request, HTTPStatus.SERVICE_UNAVAILABLE, str(error), {"Retry-After": "5"})


def _shown(request: Request[Any, Any, Any], status: int, detail: str, headers: Mapping[str, str]) -> Response[Any]:
    headers = {**HEADERS, **headers}
    if getattr(request.route_handler, "media_type", None) == MediaType.HTML:
        return Response(f"{detail}\n", status_code=status, media_type=MediaType.TEXT, headers=headers)
    body = {"status_code": status, "detail": detail, "error": detail}
    return Response(body, status_code=status, media_type=MediaType.JSON, headers=headers)
