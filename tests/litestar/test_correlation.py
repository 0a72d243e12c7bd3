"""Which request a job comes from."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar import Response, WebSocket, get, post, websocket
from litestar.exceptions import NotFoundException
from litestar.params import FromQuery
from litestar_saq import TaskQueues
from tests.litestar.conftest import Serve

from knapsaq import Client, Context, Registry
from knapsaq.lineage import origin
from knapsaq.litestar.correlation import headers_of
from knapsaq.testing import running_worker

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
MADE = re.compile(r"[A-Za-z0-9]{22}")


@pytest.fixture(autouse=True)
def tasks(registry: Registry) -> None:
    @registry.task
    async def first(ctx: Context) -> dict[str, str]:
        return await (await second.enqueue()).wait(5)

    @registry.task
    async def second(ctx: Context) -> dict[str, str]:
        return dict(ctx.headers)


@post("/enqueue")
async def enqueue(task_queues: TaskQueues, name: FromQuery[str] = "second") -> dict[str, str]:
    job = await task_queues.get("default").enqueue(name)
    assert job is not None
    return dict(job.headers)  # type: ignore[attr-defined]


class TestRequests:
    async def test_an_id_goes_from_the_request_to_the_job_and_to_the_jobs_that_it_enqueues(
        self, serve: Serve, client: Client, registry: Registry
    ) -> None:
        """And into the answer, so that the caller can quote it."""

        @post("/wait")
        async def wait(task_queues: TaskQueues) -> dict[str, str]:
            job = await task_queues.get("default").enqueue("first")
            assert job is not None
            found: dict[str, str] = await job.wait(5)  # type: ignore[attr-defined]
            return found

        async with serve(wait) as http, running_worker(registry=registry):
            answer = await http.post("/wait", headers={"X-Correlation-ID": "abc-123"})
        assert answer.json() == {"correlation_id": "abc-123"}
        assert answer.headers["X-Correlation-ID"] == "abc-123"

    async def test_without_one_it_is_made_and_no_two_requests_share_it(self, serve: Serve, client: Client) -> None:
        """What is enqueued after a request, outside of any, has none."""
        async with serve(enqueue) as http:
            answers = [await http.post("/enqueue") for _ in range(3)]
        made = [answer.json()["correlation_id"] for answer in answers]
        assert all(MADE.fullmatch(one) for one in made)
        assert len({*made}) == 3
        assert [answer.headers["X-Correlation-ID"] for answer in answers] == made
        assert origin.get() is None

    async def test_the_answer_to_a_request_that_failed_has_it_too(self, serve: Serve, client: Client) -> None:
        """Above all these are looked up in a log."""

        @get("/fails")
        async def fails() -> None:
            raise NotFoundException

        async with serve(fails) as http:
            answer = await http.get("/fails", headers={"X-Request-ID": "r1"})
        assert (answer.status_code, answer.headers["X-Correlation-ID"]) == (404, "r1")

    async def test_an_applications_own_header_stays(self, serve: Serve, client: Client) -> None:
        """It is not sent twice."""

        @get("/own")
        async def own() -> Response[None]:
            return Response(None, headers={"X-Correlation-ID": "mine"})

        async with serve(own) as http:
            answer = await http.get("/own")
        assert answer.headers.get_list("X-Correlation-ID") == ["mine"]

    async def test_plain_handlers_in_threads_have_it(self, serve: Serve, client: Client) -> None:
        """Context variables go along into threads."""

        @get("/plain", sync_to_thread=True)
        def plain() -> dict[str, str]:
            source = origin.get()
            return dict(source.headers) if source else {}

        async with serve(plain) as http:
            answer = await http.get("/plain", headers={"X-Correlation-ID": "t"})
        assert answer.json() == {"correlation_id": "t"}


async def test_a_websocket_is_an_origin_as_well(serve: Serve, client: Client) -> None:
    """What its handler enqueues is found by the id of the connection."""
    seen: list[Any] = []

    @websocket("/talk")
    async def talk(socket: WebSocket[Any, Any, Any]) -> None:
        seen.append(origin.get())
        await socket.accept()
        await socket.close()

    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async with serve(talk) as http:
        app: Any = http._transport.app  # type: ignore[attr-defined]
        scope = {
            "type": "websocket", "path": "/talk", "raw_path": b"/talk", "query_string": b"", "root_path": "",
            "headers": [(b"x-correlation-id", b"ws")], "scheme": "ws", "server": None, "client": None,
            "subprotocols": [], "extensions": {},
        }  # fmt: skip
        await app(scope, receive, send)
    assert [source.headers for source in seen] == [{"correlation_id": "ws"}]


class TestWhatIsTakenOver:
    @pytest.mark.parametrize(
        ("sent", "expected"),
        [
            ({"x-correlation-id": "a", "x-request-id": "b", "traceparent": TRACEPARENT}, "a"),
            ({"x-request-id": "b", "traceparent": TRACEPARENT}, "b"),
            ({"traceparent": TRACEPARENT}, TRACE),
            ({"x-correlation-id": "", "x-request-id": "b"}, "b"),
            ({"x-correlation-id": "a" * 128}, "a" * 128),
            ({"x-correlation-id": "not one", "x-request-id": "AZaz09._:/+=@-"}, "AZaz09._:/+=@-"),
        ],
    )
    def test_the_first_well_formed_id_counts(self, sent: dict[str, str], expected: str) -> None:
        """X-Correlation-ID before X-Request-ID before the trace."""
        found = headers_of((name.encode(), value.encode()) for name, value in sent.items())
        assert found["correlation_id"] == expected
        assert found.get("traceparent") == sent.get("traceparent")

    @pytest.mark.parametrize("wrong", ["a" * 129, "two words", "line\nbreak", "\x1b[31m", "ü", "<b>", '"', "a;b"])
    def test_what_a_log_could_trip_over_counts_as_not_sent(self, wrong: str) -> None:
        """Another id is made; the request itself is none the worse."""
        assert MADE.fullmatch(headers_of([(b"x-correlation-id", wrong.encode())])["correlation_id"])

    @pytest.mark.parametrize(
        "wrong",
        [
            f"ff-{TRACE}-00f067aa0ba902b7-01",
            f"00-{'0' * 32}-00f067aa0ba902b7-01",
            f"00-{TRACE}-{'0' * 16}-01",
            f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
            f"{TRACEPARENT}-more",
            TRACE,
        ],
    )
    def test_a_malformed_trace_does_not_travel(self, wrong: str) -> None:
        """As the recommendation has it."""
        found = headers_of([(b"traceparent", wrong.encode())])
        assert found.keys() == {"correlation_id"}
        assert MADE.fullmatch(found["correlation_id"])

    def test_of_a_header_that_is_sent_twice_the_first_counts(self) -> None:
        """A proxy's own comes first."""
        assert headers_of([(b"x-request-id", b"1"), (b"x-request-id", b"2")]) == {"correlation_id": "1"}

    @given(st.lists(st.tuples(st.sampled_from([b"x-correlation-id", b"x-request-id", b"traceparent"]), st.binary())))
    def test_whatever_is_sent_what_travels_is_short_and_plain(self, sent: list[tuple[bytes, bytes]]) -> None:
        """Letters, digits and a few signs, 128 at most."""
        for text in headers_of(sent).values():
            assert re.fullmatch(r"[A-Za-z0-9._:/+=@-]{1,128}", text)
