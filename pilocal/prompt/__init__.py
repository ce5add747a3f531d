"""From a task to what the model reads: records, then tokens."""
