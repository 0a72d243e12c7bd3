"""Benchmarks: Knapsaq beside plain SAQ, in one run, as ratios."""
