"""Payments: charged in the background, exactly once, against a provider that may fail."""
