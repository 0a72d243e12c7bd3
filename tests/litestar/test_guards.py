from __future__ import annotations

import base64
from typing import Any

import pytest
from litestar.connection import ASGIConnection
from litestar.exceptions import PermissionDeniedException
from litestar.handlers import BaseRouteHandler
from tests.litestar.conftest import Serve

from knapsaq import Client, Registry, Settings
from knapsaq.environment import SecretStr

PATHS = ["/saq", "/saq/queues/default", "/saq/api/queues", "/saq/health", "/saq/static/app.js", "/saq/static/start.js"]


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


@pytest.fixture
def guarded(settings: Settings) -> Settings:
    return settings.with_values(api_token=SecretStr("s3cret:with colon"))


class TestAdminGuard:
    @pytest.mark.parametrize("path", PATHS)
    async def test_without_a_token_nobody_gets_in_and_is_told_what_to_set(self, serve: Serve, path: str) -> None:
        """Denied by default, every file of it."""
        async with serve(app={"debug": False}) as http:
            answer = await http.get(path, headers=basic("admin", ""))
        assert answer.status_code == 403
        assert "KNAPSAQ_API_TOKEN" in answer.text

    @pytest.mark.parametrize("path", PATHS)
    async def test_in_debug_mode_everybody_gets_in(self, serve: Serve, path: str) -> None:
        """On a developer's machine there is nothing to set up."""
        async with serve(app={"debug": True}) as http:
            assert (await http.get(path)).status_code == 200

    @pytest.mark.parametrize("path", PATHS)
    async def test_a_token_asks_for_a_login(self, serve: Serve, guarded: Settings, path: str) -> None:
        """The browser shows its own form."""
        async with serve(settings=guarded) as http:
            answer = await http.get(path)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")
        assert "s3cret" not in answer.text

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            (basic("anybody", "s3cret:with colon"), 200),
            ({"Authorization": "Bearer s3cret:with colon"}, 200),
            ({"Authorization": "bearer s3cret:with colon"}, 200),
            (basic("s3cret:with colon", ""), 401),
            (basic("anybody", "s3cret"), 401),
            ({"Authorization": "Basic s3cret:with colon"}, 401),
            ({"Authorization": "Basic !!!"}, 401),
            ({"Authorization": b"Basic \xe9\xe9"}, 401),
            ({"Authorization": b"Bearer \xe9\xe9"}, 401),
            ({"Authorization": "Bearer"}, 401),
            ({"Authorization": "Digest s3cret:with colon"}, 401),
        ],
    )
    async def test_the_token_is_the_password_or_a_bearer_token(
        self, serve: Serve, guarded: Settings, headers: dict[str, Any], status: int
    ) -> None:
        """Nothing else is, a part of it least of all."""
        async with serve(settings=guarded) as http:
            assert (await http.get("/saq", headers=headers)).status_code == status

    async def test_other_guards_take_its_place(self, serve: Serve) -> None:
        """Also in debug mode; an empty list is nobody's guard."""

        async def nobody(_connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
            raise PermissionDeniedException("not today")

        async with serve(guards=[nobody], app={"debug": True}) as http:
            assert (await http.get("/saq")).text == "not today\n"
        async with serve(guards=[]) as http:
            assert (await http.get("/saq")).status_code == 200


class TestSameOrigin:
    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"Sec-Fetch-Site": "same-origin"}, 202),
            ({"Sec-Fetch-Site": "same-site"}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "none"}, 403),
            ({"Sec-Fetch-Site": "cross-site", "Origin": "http://shop.test"}, 403),
            ({"Origin": "http://shop.test"}, 202),
            ({"Origin": "http://shop.test:8000"}, 403),
            ({"Origin": "https://evil.test"}, 403),
            ({"Origin": "null"}, 403),
            ({}, 403),
        ],
    )
    async def test_only_the_page_itself_may_act(
        self, serve: Serve, client: Client, registry: Registry, headers: dict[str, str], status: int
    ) -> None:
        """The browser's word counts; without it, origin and host have to be the same."""

        @registry.task
        async def echo() -> None: ...

        job = await echo.enqueue()
        async with serve(app={"debug": True}) as http:
            answer = await http.post(
                f"/saq/api/queues/default/jobs/{job.key}/abort", headers={"Host": "shop.test", **headers}
            )
        assert answer.status_code == status
        await job.refresh()
        assert job.status.value == ("aborted" if status == 202 else "queued")
