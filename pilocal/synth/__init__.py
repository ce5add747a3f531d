"""Training data from a prompt: queries that touch every entry of the template, answered by the prompted model."""

from pilocal.synth.files import synthesize

__all__ = ["synthesize"]
