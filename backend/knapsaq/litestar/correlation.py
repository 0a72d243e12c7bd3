"""Correlation: which request a job comes from, and the jobs that it enqueues in turn.

Where in the flow: around every handler. What the caller says of itself (``X-Correlation-ID``, ``X-Request-ID``, W3C's
``traceparent``) or an id that is made here becomes the origin of what the handler enqueues, and is in the answer.

Invariants, each a test in ``tests/litestar/test_correlation.py``:

* nothing that a log or a header could trip over is taken over from a caller;
* two requests never share an origin.

Source: Trace Context, W3C Recommendation, 2021, for ``traceparent``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from litestar.datastructures import MutableScopeHeaders
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from knapsaq.job import new_key
from knapsaq.lineage import CORRELATION, Origin, origin

TRACEPARENT = "traceparent"
ANSWERED_AS = "X-Correlation-ID"
ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
TRACE = re.compile(rb"(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class CorrelationMiddleware(ASGIMiddleware):
    """Names each request as the origin of what is enqueued while it is answered."""

    scopes = (ScopeType.HTTP, ScopeType.WEBSOCKET)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Answer one request."""
        headers = headers_of(scope["headers"])

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableScopeHeaders.from_message(message).setdefault(ANSWERED_AS, headers[CORRELATION])
            await send(message)

        token = origin.set(Origin(headers))
        try:
            await next_app(scope, receive, answer)
        finally:
            origin.reset(token)


def headers_of(request: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return what travels with the jobs of a request: ``correlation_id`` always, ``traceparent`` if it has one.

    Args:
        request: Its headers, names in lower case. What is malformed or too long counts as not sent.
    """
    sent = dict(reversed(list(request)))  # the first of a name counts
    trace = TRACE.fullmatch(sent.get(b"traceparent", b""))
    named = (sent.get(name, b"") for name in (b"x-correlation-id", b"x-request-id"))
    found = next((value for value in named if ID.fullmatch(value)), trace[1] if trace else b"")
    headers = {CORRELATION: found.decode() or new_key()}
    if trace:
        headers[TRACEPARENT] = trace[0].decode()
    return headers
