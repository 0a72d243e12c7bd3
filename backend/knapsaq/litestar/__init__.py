"""Knapsaq in a Litestar application: plugin, web page, guards, and ``litestar workers run``."""

from __future__ import annotations

from knapsaq.litestar.guards import AdminGuard, same_origin
from knapsaq.litestar.plugin import KnapsaqPlugin

__all__ = ["AdminGuard", "KnapsaqPlugin", "same_origin"]
