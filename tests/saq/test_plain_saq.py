"""What the tests of this folder show of SAQ: that it has these faults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.processes import clean_environment

ROOT = Path(__file__).parents[2]
SECONDS = 60.0


def test_every_test_that_takes_both_fails_on_plain_saq(tmp_path: Path) -> None:
    """In a process of its own; ``KNAPSAQ_FAULTS_ON=saq pytest tests/saq`` shows it at length."""
    report = tmp_path / "report.xml"
    # pytest's own tracebacks parse the sources, which now and then fails in Python 3.11.
    options = ["-q", "--tb=native", "-p", "no:cacheprovider", f"--junitxml={report}"]
    subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-m", "pytest", *options, "tests/saq"],
        cwd=ROOT,
        env=clean_environment(KNAPSAQ_FAULTS_ON="saq"),
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    outcomes: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - our own report
        failure = case.find("failure")
        outcomes[case.get("name", "")] = "passed" if failure is None else failure.get("message", "")
    assert len(outcomes) > 40
    assert [name for name, message in outcomes.items() if message == "passed"] == []
    # It has to be the fault that they fail of, not a name that SAQ does not have.
    other = ("AttributeError", "ImportError", "ModuleNotFoundError", "NameError")
    assert [name for name, message in outcomes.items() if message.startswith(other)] == []
