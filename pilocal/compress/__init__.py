"""Shortening a template to a share of its tokens; one file per compressor."""

from pilocal.compress.template import CompressedTemplate, Compressor, compress_template

__all__ = ["CompressedTemplate", "Compressor", "compress_template"]
