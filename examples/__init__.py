"""Runnable examples; those that measure something are `python -m examples`."""
