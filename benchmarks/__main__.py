"""Measure Knapsaq beside plain SAQ and others: alternating rounds on a private server, medians, ratios."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.bench import QUICK, Bench, Sizes
from benchmarks.environments import interpreter
from benchmarks.measures import MEASURES
from benchmarks.processes import Launcher, MeasureError
from benchmarks.report import Report
from benchmarks.rows import Figures
from benchmarks.server import Server
from benchmarks.systems import KNAPSAQ, PEERS, SAQ, System

WIDTH = 140  # of the tables, where no terminal says how wide it is
LIMIT = 180.0  # seconds after which a single step has hung


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", help=f"measures with commas between them: {', '.join(MEASURES)}")
    parser.add_argument("--rounds", type=int, help="rounds (default 3)")
    parser.add_argument("--jobs", type=int, help=f"jobs a drain (default {Sizes.jobs:,})")
    parser.add_argument("--backlog", type=int, help=f"jobs in the long queue (default {Sizes.backlog:,})")
    parser.add_argument("--quick", action="store_true", help="one short round: it shows that all works, not how fast")
    parser.add_argument("--peers", help="other systems with commas between them, or `all` (PEERS=1); default none")
    parser.add_argument("--server", help="the server's program on the PATH (default: the embedded broker's)")
    parser.add_argument("--json", type=Path, help="write all figures into this file")
    parser.add_argument("--markdown", type=Path, help="write the table into this file")
    options = parser.parse_args(arguments)
    if options.server and not shutil.which(options.server):
        parser.error(f"there is no {options.server} on the PATH")
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.only = options.only.split(",") if options.only else list(MEASURES)
    if unknown := [name for name in options.only if name not in MEASURES]:
        parser.error(f"no such measure: {', '.join(unknown)}")
    names = options.peers or ("all" if os.environ.get("PEERS", "0") not in ("", "0") else "")
    options.peers = [peer for peer in PEERS if names == "all" or peer.name in names.split(",")]
    if unknown := [name for name in names.split(",") if name not in ("", "all", *(peer.name for peer in PEERS))]:
        parser.error(f"no such system: {', '.join(unknown)}")
    return options


def run(
    bench: Bench, systems: list[System], options: argparse.Namespace, console: Console
) -> tuple[Figures, list[str]]:
    """Take every measure of every system, round by round; the order of the systems turns round each time."""
    figures: Figures = {}
    failed: dict[tuple[str, str], str] = {}
    plan = [(measure, system) for measure in options.only for system in systems if system.takes_part(measure)]
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=options.rounds * len(plan))
        for number in range(options.rounds):
            for measure in options.only:
                turn = [system for name, system in plan if name == measure]
                for system in turn if number % 2 == 0 else turn[::-1]:
                    progress.update(task, description=f"round {number + 1}: {measure}, {system.name}")
                    try:
                        if (measure, system.name) not in failed:
                            for key, value in MEASURES[measure](bench, system).items():
                                figures.setdefault(key, {}).setdefault(system.name, []).append(value)
                    except MeasureError as error:
                        failed[measure, system.name] = f"{measure}, {system.name}: {error}"
                    progress.advance(task)
    return figures, list(failed.values())


def about(bench: Bench, systems: list[System], options: argparse.Namespace, load: float) -> dict[str, object]:
    """Describe the machine, the options and the systems."""
    packages = ("saq", "redis", "hiredis", "uvloop")
    return {
        "machine": {
            "cpus": os.cpu_count(),
            "cpu": _processor(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "server": bench.server.version,
            "load_before": load,
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "options": {**dataclasses.asdict(bench.sizes), "rounds": options.rounds, "only": options.only},
        "systems": {
            system.name: {
                "settings": system.settings,
                "packages": system.requirements.read_text().split("\n")[:-1] if system.requirements else None,
            }
            for system in systems
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Measure, and report."""
    options = parse()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server and the workers are ended
    systems = [KNAPSAQ, SAQ, *options.peers]
    chosen = {name: value for name in ("jobs", "backlog") if (value := getattr(options, name))}
    sizes = dataclasses.replace(QUICK if options.quick else Sizes(), **chosen)
    try:
        pythons = {system.name: interpreter(system, console.print) for system in systems}
    except subprocess.CalledProcessError as error:
        sys.exit(f"cannot make an environment: {error.stderr}")
    with tempfile.TemporaryDirectory(prefix="knapsaq-bench-") as folder, Server(Path(folder), options.server) as server:
        load = os.getloadavg()[0]
        bench = Bench(server, Launcher(pythons, server.url, LIMIT), sizes, Path(folder))
        figures, errors = run(bench, systems, options, console)
        for system in systems:
            for key, value in bench.faults(system).items():
                figures.setdefault(key, {})[system.name] = [value]
        report = Report(figures, about(bench, systems, options, load), bench, errors)
    report.show(console)
    if options.json:
        options.json.write_text(json.dumps(report.data(), indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(report.markdown())
    sys.exit(1 if any(f", {KNAPSAQ.name}:" in error for error in errors) else 0)


if __name__ == "__main__":
    main()
