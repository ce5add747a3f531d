"""The training: one loop, two ways to compute."""
