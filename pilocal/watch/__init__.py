"""A run as it goes on: its state, told from the run folder alone, and a page that shows it."""
