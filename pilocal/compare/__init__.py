"""Comparing: every way of answering a task, side by side, over several seeds, in one table."""
