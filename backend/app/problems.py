"""Errors as answers: problem details as in RFC 9457, with what to do in ``detail``."""

from __future__ import annotations

from http import HTTPStatus

from litestar.exceptions import HTTPException
from litestar.plugins.problem_details import ProblemDetailsConfig, ProblemDetailsException, ProblemDetailsPlugin
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from knapsaq import BrokerError, InvalidArgumentsError, KnapsaqError, NotConnectedError, PayloadTooLargeError

TRY_AGAIN_AFTER = 5
"""Seconds in the Retry-After header while the broker is away."""


def problem_details() -> ProblemDetailsPlugin:
    """Return the plugin that turns Litestar's errors and Knapsaq's into problem details."""
    return ProblemDetailsPlugin(
        ProblemDetailsConfig(
            exception_to_problem_detail_map={
                HTTPException: _of_http,
                KnapsaqError: _of_knapsaq,
                RedisConnectionError: _of_redis,
                RedisTimeoutError: _of_redis,
            }
        )
    )


def _problem(status: HTTPStatus, detail: str, **more: object) -> ProblemDetailsException:
    headers = {"Retry-After": str(TRY_AGAIN_AFTER)} if status is HTTPStatus.SERVICE_UNAVAILABLE else None
    return ProblemDetailsException(detail, status_code=status, title=status.phrase, headers=headers, extra=more)


def _of_http(error: HTTPException) -> ProblemDetailsException:
    status = HTTPStatus(error.status_code)
    more = error.extra if isinstance(error.extra, dict) else {"problems": error.extra} if error.extra else {}
    return ProblemDetailsException(
        error.detail, status_code=status, title=status.phrase, headers=error.headers, extra=more
    )


def _of_knapsaq(error: KnapsaqError) -> ProblemDetailsException:
    kind = {"error": type(error).__name__}
    if isinstance(error, InvalidArgumentsError | PayloadTooLargeError):
        return _problem(HTTPStatus.BAD_REQUEST, str(error), **kind)
    if isinstance(error, BrokerError | NotConnectedError):
        return _problem(HTTPStatus.SERVICE_UNAVAILABLE, f"nothing was queued: {error}", **kind)
    return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, str(error), **kind)


def _of_redis(error: Exception) -> ProblemDetailsException:
    return _problem(HTTPStatus.SERVICE_UNAVAILABLE, f"the broker cannot be reached ({error}); try again shortly")
