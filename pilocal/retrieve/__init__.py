"""Choosing shots: vectors of the examples, an index over them, and the ranking by BLEU."""

from pilocal.retrieve.shots import ShotPicker, check_pool

__all__ = ["ShotPicker", "check_pool"]
