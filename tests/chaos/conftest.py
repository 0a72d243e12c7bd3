"""The site that each fault test has to itself, and a summary of what was measured on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chaos.site import LONG_FORM, Site
from tests.support import Server

measured: list[tuple[str, list[str]]] = []
"""What each test of the session has measured."""


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site with a server and nobody on it."""
    server = Server(tmp_path / "server")
    server.start()
    site = Site(tmp_path, server)
    measured.append((request.node.name, site.figures))
    yield site
    site.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the long form has measured."""
    if LONG_FORM:
        terminalreporter.section("measured")
        for name, figures in measured:
            for figure in figures:
                terminalreporter.line(f"{name}: {figure}")
