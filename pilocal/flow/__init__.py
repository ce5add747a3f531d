"""From a task folder to a served file, resumable."""
