from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.measures import MEASURES
from benchmarks.systems import SAQ

ROOT = Path(__file__).parents[2]
JOBS = 400
SYSTEMS = ("knapsaq", "saq")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a short run writes as JSON."""
    folder = tmp_path_factory.mktemp("bench")
    options = f"--quick --only drain,enqueue --jobs {JOBS} --json {folder}/figures.json --markdown {folder}/table.md"
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "benchmarks", *options.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    figures["table"] = (folder / "table.md").read_text()
    return figures


def row(report: dict[str, Any], key: str) -> dict[str, Any]:
    [found] = [found for found in report["rows"] if found["key"] == key]
    return found


def test_every_body_runs_exactly_once_and_stores_its_result(report: dict[str, Any]) -> None:
    """A rate counts jobs that ran: the benchmark counts the bodies themselves, and the results that Redis holds."""
    assert report["errors"] == []
    assert {(found["system"], found["measure"]) for found in report["ran"]} == {
        (system, measure) for system in SYSTEMS for measure in ("drain", "drain, watched")
    }
    assert all(found["jobs"] == found["ran"] == JOBS for found in report["ran"])
    ours = [found for found in report["ran"] if found["system"] == "knapsaq"]
    assert all(found["bodies"] == found["results"] == JOBS for found in ours)


def test_every_job_that_is_enqueued_is_queued(report: dict[str, Any]) -> None:
    """A rate of enqueueing counts jobs that are in the queue afterwards."""
    assert all(found["queued"] == found["jobs"] > 0 for found in report["queued"])
    assert {found["measure"] for found in report["queued"]} == {"enqueue one", "enqueue gather", "enqueue many"}


@pytest.mark.parametrize("key", ["drain", "worker_cpu", "redis_cpu", "commands", "reads", "memory", "enqueue_one"])
def test_each_figure_is_there_for_both_systems_with_its_ratio(report: dict[str, Any], key: str) -> None:
    """JSON has the values of each round and how many times better Knapsaq is."""
    found = row(report, key)
    ours, theirs = (found["figures"][system]["median"] for system in SYSTEMS)
    assert found["figures"]["knapsaq"]["values"] == [ours]
    assert found["ratios"]["saq"] == pytest.approx(ours / theirs if found["better"] == "more" else theirs / ours)
    assert found["title"] in report["table"]


def test_each_bar_says_its_limit_what_was_measured_and_whether_it_holds(report: dict[str, Any]) -> None:
    """A reader of the JSON needs no other page to judge a figure."""
    [bar] = row(report, "commands")["bars"]
    assert bar["limit"] == 2
    assert bar["holds"] is (bar["value"] <= bar["limit"])


def test_commands_that_scripts_run_are_told_from_those_that_a_client_sends(report: dict[str, Any]) -> None:
    """SAQ runs ten commands a job and hardly a script; Knapsaq's commands are in scripts that many jobs share."""
    commands, inner = (row(report, key)["figures"] for key in ("commands", "script_commands"))
    assert 9 < commands["saq"]["median"] < 12
    assert commands["knapsaq"]["median"] < inner["knapsaq"]["median"]


def test_saq_takes_part_in_everything_that_it_can_do() -> None:
    """It has neither workflows nor rate limits; whatever else is measured is measured of it too."""
    assert {measure for measure in MEASURES if not SAQ.takes_part(measure)} == {"flow", "parked"}
