"""Artefacts for other programs, made from a base and an adapter."""
