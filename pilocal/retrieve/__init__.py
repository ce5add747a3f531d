"""Choosing shots: the bank of examples, how similar two of them are, and the ranking of the best for each."""

from pilocal.retrieve.bank import check_bank, contradictions
from pilocal.retrieve.embeddings import model_hash
from pilocal.retrieve.shots import ShotPicker

__all__ = ["ShotPicker", "check_bank", "contradictions", "model_hash"]
