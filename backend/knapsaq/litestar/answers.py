"""Answers: what a client hears of Knapsaq's errors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.exceptions.responses import create_exception_response

from knapsaq.errors import BrokerError, InvalidArgumentsError, KnapsaqError, PayloadTooLargeError, UnknownTaskError

RETRY_AFTER_SECONDS = 5
# A reply that was lost on its way does not tell whether the job had been stored.
AWAY = (
    "the queue cannot be reached; the job may or may not have been queued. Try again shortly: "
    "with a `key` of your own for the job that is safe, without one it may run twice"
)

logger = logging.getLogger("knapsaq.litestar")

Handler = Callable[[Request[Any, Any, Any], Any], Response[Any]]


def _wrong_call(request: Request[Any, Any, Any], error: KnapsaqError) -> Response[Any]:
    return _answer(request, HTTPStatus.BAD_REQUEST, str(error))


def _too_large(request: Request[Any, Any, Any], error: PayloadTooLargeError) -> Response[Any]:
    return _answer(request, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error))


def _broker_away(request: Request[Any, Any, Any], error: BrokerError) -> Response[Any]:
    # Where the broker is and what is wrong with it is the operator's business.
    logger.error("%s %s: %s", request.method, request.url.path, error)
    detail = str(error) if request.app.debug else AWAY
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return _answer(request, HTTPStatus.SERVICE_UNAVAILABLE, detail, headers)


def _answer(
    request: Request[Any, Any, Any], status: HTTPStatus, detail: str, headers: dict[str, str] | None = None
) -> Response[Any]:
    error = HTTPException(status_code=status, detail=detail, headers=headers)
    return create_exception_response(request, error)


ANSWERS: dict[type[KnapsaqError], Handler] = {
    InvalidArgumentsError: _wrong_call,
    UnknownTaskError: _wrong_call,
    PayloadTooLargeError: _too_large,
    BrokerError: _broker_away,
}
"""Exception handlers, for an application that has none of its own for these errors."""
