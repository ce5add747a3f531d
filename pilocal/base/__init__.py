"""The base model."""
