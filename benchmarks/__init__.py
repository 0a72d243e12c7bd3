"""Benchmarks: Knapsaq beside plain SAQ and other task queues, in one run, as ratios."""
