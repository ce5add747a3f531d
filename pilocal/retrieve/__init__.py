"""Choosing shots: the bank of examples, how similar two of them are, and the ranking of the best for each."""

from pilocal.retrieve.bank import Question, check_bank, contradictions
from pilocal.retrieve.embeddings import model_hash
from pilocal.retrieve.shots import ShotPicker

__all__ = ["Question", "ShotPicker", "check_bank", "contradictions", "model_hash"]
