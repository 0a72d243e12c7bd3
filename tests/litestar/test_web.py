from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from litestar import Litestar
from litestar.config.csrf import CSRFConfig
from tests.litestar.conftest import Serve, served
from tests.support import Server, store

from knapsaq import Client, Registry, Settings
from knapsaq.litestar import KnapsaqPlugin
from knapsaq.testing import running_worker

HOSTILE = {"innerHTML": "<img src=x onerror=alert(1)>"}
OURS = {"Sec-Fetch-Site": "same-origin"}
DEBUG = {"debug": True}


def values(view: Any) -> list[Any]:
    """Return every value in a view of a job or worker."""
    return [value for item in view.values() for value in (values(item) if isinstance(item, dict) else [item])]


class TestPage:
    @pytest.mark.parametrize(
        "path", ["/saq", "/saq/", "/saq/queues/default", "/saq/queues/default/jobs/a", "/saq/queues/default/jobs/a%2Fb"]
    )
    async def test_every_address_of_the_page_serves_it(self, serve: Serve, path: str) -> None:
        """With all of its files, as types that a browser accepts."""
        async with serve(app=DEBUG) as http:
            answer = await http.get(path)
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/html")
            for source in re.findall(r'(?:src|href)="(/[^"]+)"', answer.text):
                file = await http.get(source)
                assert file.status_code == 200
                assert file.headers["content-type"].startswith(("text/javascript", "text/css"))

    async def test_it_runs_no_inline_script_and_none_of_others(self, serve: Serve) -> None:
        """Whatever slips into it is not executed."""
        async with serve(app=DEBUG) as http:
            answer = await http.get("/saq")
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert re.findall(r"<script(?![^>]* src=)", answer.text) == []
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"

    async def test_it_knows_where_it_is_mounted(self, settings: Settings, registry: Registry, client: Client) -> None:
        """Under the application's own path, behind a proxy that cuts a prefix off, and at another path."""
        plugin = KnapsaqPlugin(settings, registry=registry, web_path="/ops/queues/")
        app = Litestar([], plugins=[plugin], logging_config=None, path="/shop", debug=True)
        async with served(app, root_path='/"proxy"') as http:
            text = (await http.get("/shop/ops/queues")).text
        assert 'data-root-path="/&quot;proxy&quot;/shop/ops/queues"' in text
        assert 'src="/&quot;proxy&quot;/shop/ops/queues/static/app.js"' in text

    async def test_it_can_be_switched_off(self, serve: Serve) -> None:
        """Then there are no routes at all."""
        async with serve(web=False, app=DEBUG) as http:
            assert (await http.get("/saq")).status_code == 404

    async def test_its_routes_are_no_part_of_the_schema(self, serve: Serve) -> None:
        """They are for people."""
        async with serve(app=DEBUG) as http:
            assert "saq" not in (await http.get("/schema/openapi.json")).text


class TestApi:
    @pytest.fixture(autouse=True)
    def tasks(self, registry: Registry) -> None:
        """Two tasks: one gives back what it gets, one fails."""

        @registry.task
        async def keep(**anything: Any) -> Any:
            return anything

        @registry.task
        async def fail() -> None:
            raise ValueError("redis://user:hunter2@db/0 refused")

    async def test_queues_have_litestar_saqs_shape(self, serve: Serve, registry: Registry) -> None:
        """As SAQ's script expects it."""
        async with serve(app=DEBUG) as http, running_worker(registry=registry):
            done = await registry.get("keep").enqueue()
            await done.wait(10)
            await registry.get("keep").using(delay=60).enqueue(x=1)
            queues = (await http.get("/saq/api/queues")).json()["queues"]
            queue = (await http.get("/saq/api/queues/default")).json()["queue"]
        assert [each["name"] for each in queues] == ["default", "mail"]
        assert queue.keys() == {"name", "queued", "active", "scheduled", "workers", "jobs"}
        assert queue["scheduled"] == 1
        [worker] = queue["workers"].values()
        assert worker["stats"].keys() == {"complete", "failed", "retried", "aborted", "uptime"}
        assert [job["kwargs"] for job in queue["jobs"]] == ["{'x': 1}"]

    async def test_the_page_is_never_handed_an_object(self, serve: Serve, client: Client, registry: Registry) -> None:
        """The page takes an object for drawing instructions, innerHTML among them: a stored script."""
        job = await registry.get("keep").using(delay=60).enqueue(props=HOSTILE, attrs=[HOSTILE], sel="div")
        result = await registry.get("keep").enqueue(props=HOSTILE)
        # Whoever can write to Redis need not have gone through a task.
        record = {"queue": "mail", "function": "f", "key": "odd", "status": "queued", "error": str(HOSTILE)}
        record |= {"kwargs": HOSTILE, "result": [HOSTILE], "meta": {"props": HOSTILE}}
        await store(client.queue("mail"), "odd", msgspec.json.encode(record))
        async with serve(app=DEBUG) as http:
            async with running_worker(["default"], registry=registry):
                await result.wait(10)
            views = [
                (await http.get(f"/saq/api/queues/default/jobs/{each.key}")).json()["job"] for each in (job, result)
            ]
            views.append((await http.get("/saq/api/queues/mail/jobs/odd")).json()["job"])
            for queue in ("default", "mail"):
                listed = (await http.get(f"/saq/api/queues/{queue}")).json()["queue"]
                views += [*listed["jobs"], *listed["workers"].values()]
        assert len(views) >= 5
        for view in views:
            assert all(isinstance(value, (str, int, float, type(None))) for value in values(view)), view
        assert "innerHTML" in views[0]["kwargs"]
        assert "innerHTML" in views[1]["result"]

    async def test_secrets_are_not_shown(self, serve: Serve, registry: Registry) -> None:
        """Neither by their name nor in an address, be it in an argument or in an error."""
        kwargs = {"password": "hunter2", "nested": [{"API_KEY": "hunter2"}], "url": "https://me:hunter2@host/"}
        job = await registry.get("keep").enqueue(**kwargs)
        failed = await registry.get("fail").enqueue()
        async with serve(app=DEBUG) as http:
            waiting = await http.get("/saq/api/queues/default")
            async with running_worker(["default"], registry=registry):
                await job.wait(10)
                await failed.get_queue().wait_ended(failed, 10)  # type: ignore[attr-defined]
            texts = [waiting.text]
            texts += [(await http.get(f"/saq/api/queues/default/jobs/{each.key}")).text for each in (job, failed)]
        assert "***" in texts[0]
        assert "refused" in texts[2]
        assert all("hunter2" not in text for text in texts)

    async def test_a_long_value_is_cut(self, serve: Serve, registry: Registry) -> None:
        """The page asks every two seconds."""
        await registry.get("keep").using(delay=60).enqueue(text="x" * 100_000)
        async with serve(app=DEBUG) as http:
            assert len((await http.get("/saq/api/queues/default")).content) < 2000

    @pytest.mark.parametrize("key", ["a/b", "cron:keep:1795179837", "100%", "what?", "a#b", "with blank"])
    async def test_a_key_may_hold_what_a_path_may_not(
        self, serve: Serve, client: Client, registry: Registry, key: str
    ) -> None:
        """The key that the list gives is right in a link, and the link finds the job."""
        await client.queue().enqueue("keep", key=key, scheduled=4_000_000_000)
        async with serve(app=DEBUG) as http:
            [listed] = (await http.get("/saq/api/queues/default")).json()["queue"]["jobs"]
            link = f"/saq/api/queues/default/jobs/{listed['key']}"
            assert (await http.get(link)).json()["job"]["key"] == key
            assert (await http.post(f"{link}/abort", headers=OURS)).status_code == 202
        job = await client.queue().job(key)
        assert job is not None
        assert job.status.value == "aborted"

    async def test_retry_runs_an_ended_job_again_and_no_other(self, serve: Serve, registry: Registry) -> None:
        """One that runs would run twice."""
        job = await registry.get("keep").enqueue()
        async with serve(app=DEBUG) as http:
            link = f"/saq/api/queues/default/jobs/{job.key}/retry"
            early = await http.post(link, headers=OURS)
            assert (early.status_code, "abort it first" in early.json()["error"]) == (409, True)
            async with running_worker(["default"], registry=registry):
                await job.wait(10)
            assert (await http.post(link, headers=OURS)).status_code == 202
        await job.refresh()
        assert job.status.value == "queued"

    @pytest.mark.parametrize(
        "path",
        [
            "/saq/api/queues/nope",
            "/saq/api/queues/nope/jobs/a",
            "/saq/api/queues/default/jobs/nope",
            "/saq/static/nope.js",
        ],
    )
    async def test_what_is_not_there_is_404_in_words_that_the_page_can_show(self, serve: Serve, path: str) -> None:
        """It shows what is called `error`."""
        async with serve(app=DEBUG) as http:
            answer = await http.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"] == answer.json()["detail"]

    async def test_there_are_two_things_that_a_job_can_be_told(self, serve: Serve) -> None:
        """Anything else is not found."""
        async with serve(app=DEBUG) as http:
            assert (await http.post("/saq/api/queues/default/jobs/a/explode", headers=OURS)).status_code == 404

    async def test_the_applications_protection_against_forgery_is_not_in_the_way(self, serve: Serve) -> None:
        """Ours looks at where the request comes from, as SAQ's page sends no token."""
        async with serve(app={**DEBUG, "csrf_config": CSRFConfig(secret="x" * 32)}) as http:
            answer = await http.post("/saq/api/queues/default/jobs/a/abort", headers=OURS)
        assert answer.status_code == 404

    async def test_health_and_lists_tell_that_the_broker_is_away(
        self, serve: Serve, settings: Settings, tmp_path: Path
    ) -> None:
        """With 503, for whatever asks."""
        server = Server(tmp_path)
        own = settings.with_values(broker_url=server.start())
        async with serve(settings=own, app=DEBUG) as http:
            assert (await http.get("/saq/health")).text == "OK"
            server.kill()
            assert (await http.get("/saq/health")).status_code == 503
            answer = await http.get("/saq/api/queues")
            assert answer.status_code == 503
            assert json.loads(answer.text)["error"]
        server.stop()
