"""``python -m knapsaq.cli``."""

from __future__ import annotations

from knapsaq.cli import main

if __name__ == "__main__":
    main(prog_name="knapsaq")
