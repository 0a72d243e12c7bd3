"""The page's own scripts, run as a browser runs them, against the answers of a real application."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
from py_mini_racer import MiniRacer
from tests.litestar.conftest import Serve

from knapsaq import Registry

# As much of a browser as SAQ's script asks for. What it would draw is kept as snabbdom describes it.
BROWSER = """
var window = globalThis, shown = null, instructions = []
var location = {pathname: PATH}
var history = {replaceState: (state, title, path) => { location.pathname = path }, pushState: () => {}}
var console = {log: () => {}}
var setInterval = () => {}
var addEventListener = () => {}, requestAnimationFrame = () => {}
var document = {currentScript: {dataset: DATASET}, getElementById: () => ({})}
var fetch = async path => {
  if (!(path in ANSWERS)) throw new Error("asked for " + path)
  return {json: async () => JSON.parse(ANSWERS[path])}
}
"""
DRAW = "snabbdom = {...snabbdom, init: () => (container, node) => { shown = node }}"
READ = """
const words = []
const walk = node => {
  if (node === null || node === undefined) return
  if (Array.isArray(node)) return node.forEach(walk)
  if (typeof node !== "object") { words.push(String(node)); return }
  for (const name of Object.keys(node.data?.props || {})) instructions.push(name)
  if (node.text !== undefined) words.push(String(node.text))
  walk(node.children)
}
walk(shown)
JSON.stringify({words, instructions, path: location.pathname})
"""


async def drawn(http: httpx.AsyncClient, path: str) -> dict[str, Any]:
    """Return what the page at a path shows: its words, the properties that it sets, and its final path."""
    page = (await http.get(path)).raise_for_status().text
    api = f"/saq/api{path.removeprefix('/saq').rstrip('/') or '/queues'}"
    dataset = dict(re.findall(r'data-(root-path)="([^"]*)"', page))
    values = {"PATH": path, "DATASET": {"rootPath": dataset["root-path"]}, "ANSWERS": {api: (await http.get(api)).text}}
    engine = MiniRacer()
    for name, value in values.items():
        engine.eval(f"var {name} = {json.dumps(value)}")
    engine.eval(BROWSER)
    for source in re.findall(r'<script src="([^"]+)"', page):
        file = await http.get(source)
        assert file.status_code == 200
        engine.eval(file.text)
        if "snabbdom" in source:
            engine.eval(DRAW)
    found: dict[str, Any] = json.loads(str(engine.eval(READ)))
    return found


class TestScript:
    async def test_the_plain_address_shows_the_queues(self, serve: Serve) -> None:
        """SAQ's script knows its first page by the slash at its end alone, and says 404 without it."""
        async with serve(app={"debug": True}) as http:
            for path in ("/saq", "/saq/"):
                page = await drawn(http, path)
                assert {"Queues", "default", "mail"} <= set(page["words"]), page
                assert page["path"] == "/saq/"

    async def test_queues_jobs_and_errors_have_pages(self, serve: Serve, registry: Registry) -> None:
        """With or without a slash at the end, and with a key that has one in it."""

        @registry.task
        async def keep() -> None: ...

        await keep.using(key="a/b", delay=60).enqueue()
        async with serve(app={"debug": True}) as http:
            assert "a%2Fb" in (await drawn(http, "/saq/queues/default"))["words"]
            assert (await drawn(http, "/saq/queues/default/"))["path"] == "/saq/queues/default"
            assert "keep" in (await drawn(http, "/saq/queues/default/jobs/a%2Fb"))["words"]
            assert "no queue is named 'nope'" in (await drawn(http, "/saq/queues/nope"))["words"]

    async def test_arguments_are_shown_as_text_and_never_as_instructions(
        self, serve: Serve, registry: Registry
    ) -> None:
        """An argument called ``props`` with ``innerHTML`` in it is what SAQ's own page executes."""

        @registry.task
        async def keep(**anything: Any) -> None: ...

        job = await keep.using(delay=60).enqueue(props={"innerHTML": "<img src=x onerror=alert(1)>"})
        async with serve(app={"debug": True}) as http:
            for path in ("/saq/queues/default", f"/saq/queues/default/jobs/{job.key}"):
                page = await drawn(http, path)
                assert any("<img src=x onerror=alert(1)>" in word for word in page["words"])
                assert set(page["instructions"]) <= {"href", "value", "max", "open"}
