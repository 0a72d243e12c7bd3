"""The site that each fault test has to itself, and a summary of what was measured on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chaos.site import LONG_FORM, Site
from tests.support import Server


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site with a server and nobody on it."""
    server = Server(tmp_path / "server")
    server.start()
    site = Site(tmp_path, server)
    request.node.user_properties.append(("measured", site.figures))  # goes with the report, from another process too
    yield site
    site.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the long form has measured."""
    if LONG_FORM:
        terminalreporter.section("measured")
        ended = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
        for report in ended:
            for figure in dict(report.user_properties).get("measured", ()) if report.when == "call" else ():
                terminalreporter.line(f"{report.nodeid.rpartition('::')[2]}: {figure}")
