"""A program that nobody has read, kept apart."""
