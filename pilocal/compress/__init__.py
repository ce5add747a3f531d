"""Shortening a template to a share of its tokens; one file per compressor."""

from pilocal.compress.compressor import Compressor, LanguageModel, Span, Tools
from pilocal.compress.removal import TOLERANCE
from pilocal.compress.template import CompressedTemplate, compress_template, compression_facts

__all__ = [
    "TOLERANCE",
    "CompressedTemplate",
    "Compressor",
    "LanguageModel",
    "Span",
    "Tools",
    "compress_template",
    "compression_facts",
]
