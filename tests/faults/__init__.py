"""Commands that are killed, interrupted, or that a disk fails, at any file they write: `python -m tests.faults`."""
