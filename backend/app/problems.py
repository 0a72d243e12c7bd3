"""Errors as answers: problem details as in RFC 9457, with what to do in ``detail``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.plugins.problem_details import ProblemDetailsConfig, ProblemDetailsException, ProblemDetailsPlugin
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from knapsaq import BrokerError, InvalidArgumentsError, PayloadTooLargeError

TRY_AGAIN_AFTER = 5
"""Seconds in the Retry-After header while the broker is away."""

logger = logging.getLogger(__name__)

AnyRequest = Request[Any, Any, Any]
Answer = Response[dict[str, Any]]


def problem_details() -> ProblemDetailsPlugin:
    """Return the plugin that answers Litestar's own errors with problem details."""
    return ProblemDetailsPlugin(ProblemDetailsConfig(exception_to_problem_detail_map={HTTPException: _of_http}))


def broker_away(request: AnyRequest, error: Exception) -> Answer:
    """Answer that the queue cannot be used; where it is and what is wrong with it is for the log."""
    logger.error("%s %s: %s", request.method, request.url.path, error)
    detail = f"the queue is away: {error}" if request.app.debug else "the queue is away; try again later"
    headers = {"Retry-After": str(TRY_AGAIN_AFTER)}
    return _problem(request, HTTPStatus.SERVICE_UNAVAILABLE, detail, headers)


def wrong_call(request: AnyRequest, error: Exception) -> Answer:
    """Answer that a task cannot take what the request holds."""
    return _problem(request, HTTPStatus.BAD_REQUEST, str(error))


def too_large(request: AnyRequest, error: Exception) -> Answer:
    """Answer that the request holds more than a job may carry."""
    return _problem(request, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error))


HANDLERS: Mapping[int | type[Exception], Callable[[AnyRequest, Exception], Answer]] = {
    BrokerError: broker_away,
    RedisConnectionError: broker_away,
    RedisTimeoutError: broker_away,
    InvalidArgumentsError: wrong_call,
    PayloadTooLargeError: too_large,
}


def _problem(request: AnyRequest, status: HTTPStatus, detail: str, headers: dict[str, str] | None = None) -> Answer:
    return ProblemDetailsException(detail, status_code=status, title=status.phrase, headers=headers).to_response(
        request
    )


def _of_http(error: HTTPException) -> ProblemDetailsException:
    status = HTTPStatus(error.status_code)
    more = error.extra if isinstance(error.extra, dict) else {"problems": error.extra} if error.extra else {}
    return ProblemDetailsException(
        error.detail, status_code=status, title=status.phrase, headers=error.headers, extra=more
    )
