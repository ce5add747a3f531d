"""Evaluation: the arms side by side, scored on the test set and timed in llama.cpp."""
