"""A server under load for long: `python -m tests.soak [MINUTES]`."""
