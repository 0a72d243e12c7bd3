"""Guards: who may see the web page of the queues, and from where it may be told to act.

Invariants, each a test in ``tests/litestar/test_guards.py``:

* outside debug mode nobody gets in without ``KNAPSAQ_API_TOKEN``;
* the token is compared in constant time and never shown;
* a page of another site cannot make a visitor's browser retry or abort a job.
"""

from __future__ import annotations

import base64
import hmac
from urllib.parse import urlsplit

from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException, PermissionDeniedException
from litestar.handlers import BaseRouteHandler

from knapsaq.environment import SecretStr
from knapsaq.settings import Settings

CHALLENGE = {"WWW-Authenticate": 'Basic realm="knapsaq", charset="UTF-8"'}


class AdminGuard:
    """Lets people in who show ``KNAPSAQ_API_TOKEN``; in debug mode everybody, without a token nobody else.

    The token is the password of HTTP Basic, with any user name, or a bearer token.

    Args:
        settings: Where the token comes from.
    """

    def __init__(self, settings: Settings) -> None:
        self._token: SecretStr | None = settings.api_token

    async def __call__(self, connection: ASGIConnection, _handler: BaseRouteHandler) -> None:  # type: ignore[type-arg]
        """Refuse who may not enter.

        Raises:
            PermissionDeniedException: There is no token with which anybody could enter.
            NotAuthorizedException: The token is missing or wrong.
        """
        if connection.app.debug:
            return
        if self._token is None:
            raise PermissionDeniedException(
                "nobody may see this page: set KNAPSAQ_API_TOKEN and log in with it as the password, "
                "or give KnapsaqPlugin(guards=[...])"
            )
        shown = _shown_token(connection.headers.get("authorization", ""))
        if not hmac.compare_digest(shown, self._token.get_secret_value().encode()):
            raise NotAuthorizedException("log in with KNAPSAQ_API_TOKEN as the password", headers=CHALLENGE)


def _shown_token(header: str) -> bytes:
    """Return the token in an Authorization header; nothing if there is none."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except ValueError:  # also where it is not ASCII
            return b""
    return b""


async def same_origin(connection: ASGIConnection, _handler: BaseRouteHandler) -> None:  # type: ignore[type-arg]
    """Refuse a request that a page of another site has sent.

    Raises:
        PermissionDeniedException: The browser says so, or nothing tells that it is ours.
    """
    site = connection.headers.get("sec-fetch-site")
    if site is not None:
        allowed = site == "same-origin"
    else:
        # Browsers send the former over TLS and to localhost alone.
        origin, host = urlsplit(connection.headers.get("origin", "")), connection.headers.get("host", "")
        allowed = bool(origin.netloc) and origin.netloc.lower() == host.lower()
    if not allowed:
        raise PermissionDeniedException("only the page itself may ask for this: send `Sec-Fetch-Site: same-origin`")
